"""A compiled network keeps no dense weights, and the C library that allocated them does not either."""

import os
import platform
import subprocess
import sys

import pytest

# In a process of its own, whose memory no other test uses.
PROGRAM = """
import os
import torch
from torch import nn
import fggp

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

torch.set_num_threads(1)
fggp.compile(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)).eval(), torch.randn(2, 8))  # imports what it needs
layers = [layer for _ in range(6) for layer in (nn.Linear(1500, 1500, bias=False), nn.BatchNorm1d(1500))]
model = nn.Sequential(*layers).eval()
with torch.no_grad():
    for layer in model[::2]:
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.01)
before = resident()
fast = fggp.compile(model, torch.randn(2, 1500))
print((resident() - before) / sum(layer.weight.nbytes for layer in model[::2]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the GNU C library")
def test_the_memory_of_dense_weights_is_given_back():
    # Whether the C library gives memory back by itself depends on what lies above it: here it never does.
    never = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(1 << 40))
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, env={**os.environ, **never}, check=True, capture_output=True, text=True)
    assert float(done.stdout) < 0.45
