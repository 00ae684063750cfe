"""The first part: is the code right on a GPU? Its tests, and mask updates beside a CPU's and over NCCL."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import images
import torch
import torch.distributed as dist
from day import ROOT, Day
from torch import nn

import fggp
from fggp.lab.training import models

TESTS = (
    "tests/selection/test_one_gpu.py",
    "tests/lab/training/test_step.py",
    "-k",
    "cuda or _a_gpu or _the_gpu or no_waiting",
)
"""Those that need a GPU."""


def pruned_network(day: Day, device: str, ties: bool = False, wrap: Any = None) -> tuple[Any, Any, Any]:
    """Return a network with gradients, its optimizer, and an FGGP pruner that updates in every step."""
    torch.manual_seed(0)
    model = models.create("digits-cnn" if day.rehearse else "resnet50", 10)
    if ties:
        for p in model.parameters():
            p.data.mul_(64).round_().div_(64)
    network = model.to(device, memory_format=torch.channels_last)
    if wrap is not None:
        network = wrap(model.to(memory_format=torch.contiguous_format))
        network(torch.zeros(2, 3, 8, 8, device=device)).sum().backward()  # gradients go over NCCL
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = torch.empty_like(p, requires_grad=False)
        local(p.grad).copy_(gradient.relu() if ties else gradient)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, fused=True if device == "cuda" and wrap is None else None
    )
    return model, optimizer, fggp.Pruner(network, optimizer, sparsity=0.9, begin=0, end=20, every=1)


def local(tensor: Any) -> torch.Tensor:
    """Return a tensor, or this process's part of a DTensor, which is all of it: the process is alone."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def update(*arguments: Any) -> str:
    """Make a mask update; return a digest of the masks."""
    _, optimizer, pruner = pruned_network(*arguments)
    optimizer.step()
    digest = hashlib.sha256(f"{pruner.sparsity}".encode())
    for mask in pruner.masks.values():
        digest.update(local(mask).cpu().contiguous().numpy().tobytes())
    assert pruner.sparsity > 0
    return digest.hexdigest()


def beside_a_cpu(day: Day) -> dict[str, bool]:
    """Whether the masks are a CPU's."""
    cases = {"without ties": False, "with ties": True}
    return {name: update(day, "cpu", ties) == update(day, day.device, ties) for name, ties in cases.items()}


def over_nccl(day: Day) -> dict[str, Any]:
    """Whether the masks under DDP and FSDP2, with one process, are those without."""
    from torch.distributed.fsdp import fully_shard

    backend = "gloo" if day.rehearse else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    wraps = {"DDP": nn.parallel.DistributedDataParallel, "FSDP2": fully_shard}
    alone = update(day, day.device)
    same = {name: update(day, day.device, False, wrap) == alone for name, wrap in wraps.items()}
    dist.destroy_process_group()
    return {"backend": backend, **same}


def two_of_four(day: Day) -> dict[str, bool]:
    """Whether weights that were pruned to 2:4 convert to PyTorch's semi-structured form, and multiply as before."""
    torch.manual_seed(0)
    model = nn.Linear(256, 128, bias=False).to(day.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    fggp.Pruner(model, optimizer, sparsity=0.5, begin=0, end=4, every=1, granularity=fggp.NM(2, 4))
    for _ in range(4):
        model.weight.grad = torch.randn_like(model.weight)
        optimizer.step()
    weight = model.weight.detach().half()
    found = {"at most 2 of 4": bool((weight.view(-1, 4) != 0).sum(1).max() <= 2)}
    if day.rehearse:  # there is no such form on a CPU
        return found
    x = torch.randn(64, 256, device=day.device, dtype=torch.half)
    converted = torch.sparse.to_sparse_semi_structured(weight)
    same = torch.allclose(nn.functional.linear(x, converted), nn.functional.linear(x, weight), rtol=1e-2, atol=1e-2)
    return {**found, "converted": torch.equal(converted.to_dense(), weight), "same product": same}


def main() -> None:
    day = Day.given()
    if not day.rehearse and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU; run.py --rehearse runs on a CPU")
    log = Path(day.out) / "tests.log"
    environment = {**os.environ, "HYPOTHESIS_EXAMPLES": "20", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "_hypothesis_pytestplugin", "-p", "no:cacheprovider", *TESTS]
    with log.open("w") as file:  # the tests run beside the rest: nothing is timed here
        tests = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)

    def finished_tests() -> dict[str, Any]:
        code = tests.wait(timeout=day.until - time.time())
        return {"exit code": code, "last line": log.read_text().strip().rpartition("\n")[2]}

    packed = Path(day.packed)
    day.note("check", "machine", {"python": platform.python_version(), "processors": os.cpu_count()})
    day.measure("check", "images", lambda: images.unpack(packed / "images.npz", packed / "images.pt"))
    day.measure("check", "same masks as on a CPU", lambda: beside_a_cpu(day))
    day.measure("check", "same masks with a process group", lambda: over_nccl(day))
    day.measure("check", "two of four", lambda: two_of_four(day))
    day.measure("check", "tests", finished_tests)


if __name__ == "__main__":
    main()
