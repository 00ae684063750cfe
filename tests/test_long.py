"""Thousands of steps with an update at each: the counts stay exact and nothing grows."""

import gc
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fggp
import helpers
import reference

WINDOWS = 4
"""What stays allocated is compared over this many windows of equal length, after a warm-up of the same length."""


def count_tensors():
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


def resident_bytes():
    """The process's resident memory; 0 on systems that do not tell it."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.exists() else 0


@pytest.mark.parametrize(("method", "steps"), [("fggp", 3_000), ("granet", 1_000)])
def test_an_update_at_each_of_many_steps(method, steps):
    # In a process of its own, whose memory no other test uses.
    code = f"import test_long; test_long.update_at_each_step({method!r}, {steps})"
    paths = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def update_at_each_step(method, steps):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 60, bias=False), nn.Linear(60, 16, bias=False))
    weights = helpers.prunable(model)
    total = sum(w.numel() for w in weights)
    optimizer = helpers.sgd(model, lr=0.01)
    chosen = fggp.FGGP() if method == "fggp" else fggp.GraNet(total_steps=steps)
    pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=steps, every=1, method=chosen)
    gradients = [[torch.randn_like(w) for w in weights] for _ in range(7)]  # faster than a backward pass

    window = steps // (WINDOWS + 1)
    seen = []
    for t in range(1, steps + 1):
        for weight, gradient in zip(weights, gradients[t % 7], strict=True):
            weight.grad = gradient
        optimizer.step()
        active = reference.active_count(reference.sparsity(t, 0.9, 0, steps), total)
        assert (pruner.step, pruner.last_update, pruner.sparsity) == (t, t, 1 - active / total)
        if t % 500 == 0:
            assert sum(int(mask.sum()) for mask in pruner.masks.values()) == active
            helpers.assert_exactly_zero(pruner, optimizer)
        if t % window == 0:
            gc.collect()
            seen.append({"tensors": count_tensors(), "objects": sys.getallocatedblocks(), "bytes": resident_bytes()})

    # What an update leaves behind grows in every window. The interpreter and the allocator grow now and then by
    # themselves, by some hundred objects and kilobytes, but not in each window.
    least = {what: min(b[what] - a[what] for a, b in itertools.pairwise(seen)) for what in seen[0]}
    assert least["tensors"] == 0
    assert least["objects"] < window / 3  # less than one an update
    assert least["bytes"] < window * total / 2  # less than half a mask an update
