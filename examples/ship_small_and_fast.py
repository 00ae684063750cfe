"""Store a pruned network in a small file, load it again, and run it faster on the CPU.

The network trains for 60 steps on scikit-learn's digits, enlarged to 32×32 pixels, and FGGP prunes 95 % of its weights.

    python examples/ship_small_and_fast.py
"""

import tempfile
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import fggp

torch.set_num_threads(1)  # these batches are too small for several threads to pay


def network() -> nn.Sequential:
    """Return an untrained network for images [n, 1, 32, 32] and 10 classes."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in ((1, 32), (32, 64), (64, 128), (128, 256)):
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.BatchNorm2d(channels_out), nn.ReLU()]
        layers += [nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256 * 2 * 2, 10))


def milliseconds(function: nn.Module | fggp.Compiled, x: torch.Tensor) -> float:
    """Return the shortest of 30 calls' times, in ms."""
    times = []
    with torch.no_grad():
        for _ in range(30):
            start = time.perf_counter()
            function(x)
            times.append(time.perf_counter() - start)
    return 1000 * min(times)


torch.manual_seed(0)
digits = load_digits()
images = nn.functional.interpolate(torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, size=32)
classes = torch.tensor(digits.target)

model = network()
optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
pruner = fggp.Pruner(model, optimizer, sparsity=0.95, begin=5, end=50, every=5)
for _ in range(60):
    batch = torch.randint(len(images), (32,))
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images[batch]), classes[batch]).backward()
    optimizer.step()
model.eval()

with tempfile.TemporaryDirectory() as folder:
    dense, small = Path(folder, "dense.pt"), Path(folder, "small.safetensors")
    torch.save(model.state_dict(), dense)
    fggp.save(model, small)
    dense_bytes, small_bytes = dense.stat().st_size, small.stat().st_size

    loaded = network().eval()
    fggp.load(small, loaded)

# The kernels add in another order than PyTorch does, so outputs differ by rounding.
fast = fggp.compile(loaded, images[:1])
with torch.no_grad():
    difference = (fast(images[:100]) - model(images[:100])).abs().max().item()
same = all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values(), strict=True))

print(fast)
print(f"file: {small_bytes:,} bytes instead of {dense_bytes:,}, {dense_bytes / small_bytes:.1f} times smaller")
print(f"loaded weights equal the saved ones bit for bit: {same}")
for size in (1, 32):
    before, after = milliseconds(loaded, images[:size]), milliseconds(fast, images[:size])
    print(f"batch {size:2}: {after:.3f} ms instead of {before:.3f}, {before / after:.1f} times faster")
print(f"largest difference of an output: {difference:.1e}")
