"""Timings of a mask update and of zeroing pruned weights; `measure.py` runs them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def pruned_network(rehearse: bool, device: str, ties: bool) -> tuple[Any, Any, Any]:
    """Return a network with gradients, its optimizer, and an FGGP pruner that updates in every step."""
    import torch

    import fggp
    from fggp.lab.training import models

    torch.manual_seed(0)
    model = models.create("digits-cnn" if rehearse else "resnet50", 10).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = torch.empty_like(p).copy_(gradient.relu() if ties else gradient)
        if ties:
            p.data.mul_(64).round_().div_(64)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True if device == "cuda" else None)
    pruner = fggp.Pruner(model, optimizer, sparsity=0.9, begin=0, end=20, every=1)
    return model, optimizer, pruner


def prunable(model: Any, pruner: Any) -> list[Any]:
    """Return the parameters that the pruner has masks for."""
    return [parameter for name, parameter in model.named_parameters() if name in pruner.masks]


def update_times(rehearse: bool) -> Any:
    """Time a step with an update, one without and one of a dense network, beside torch.topk of the same weights."""
    import torch

    model, optimizer, pruner = pruned_network(rehearse, "cpu" if rehearse else "cuda", ties=False)
    joined = torch.cat([weight.detach().abs().flatten() for weight in prunable(model, pruner)])
    with_update, memory = times(rehearse, optimizer.step, 5), peak_memory(rehearse, optimizer.step)
    while pruner.step < 20:
        optimizer.step()
    found: dict[str, Any] = {
        "step with an update": with_update,
        "step without one": times(rehearse, optimizer.step, 15),
        "torch.topk of joined |w|": times(rehearse, lambda: torch.topk(joined, len(joined) // 2, largest=False), 9),
        "torch.sort of joined |w|": times(rehearse, joined.sort, 9),
        "weights": len(joined),
        "bytes a weight an update takes": round(memory / len(joined), 2),
    }
    pruner.remove()
    return {**found, "step, dense": times(rehearse, optimizer.step, 15)}


def zeroing_times(rehearse: bool) -> Any:
    """Time ways to zero pruned weights and momenta; the first is fggp's."""
    import torch

    from fggp.masks.zeroing import zero_pruned

    model, optimizer, pruner = pruned_network(rehearse, "cpu" if rehearse else "cuda", ties=False)
    optimizer.step()
    tensors = [t.detach() for p in prunable(model, pruner) for t in (p, optimizer.state[p]["momentum_buffer"])]
    masks = [m for m in pruner.masks.values() for _ in range(2)]

    def fill() -> None:
        for i in range(0, len(tensors), 2):
            pruned = masks[i].logical_not()
            tensors[i].masked_fill_(pruned, 0)
            tensors[i + 1].masked_fill_(pruned, 0)

    def widen() -> None:
        bits = [t.view(torch.int32) for t in tensors]
        wide = [torch.empty_like(b) for b in bits[::2]]
        torch._foreach_copy_(wide, masks[::2])
        torch._foreach_mul_(bits, [w for w in wide for _ in range(2)])

    ways = {"bits times mask": lambda: zero_pruned(tensors, masks), "masked_fill_": fill, "wide masks, foreach": widen}
    found = {
        name: {"until done": times(rehearse, way, 30), "until launched": times(rehearse, way, 30, False)}
        for name, way in ways.items()
    }
    if not rehearse:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            zero_pruned(tensors, masks)
        found["bits times mask, captured"] = {"until done": times(rehearse, graph.replay, 30)}
    return found


def times(rehearse: bool, action: Callable[[], Any], rounds: int, wait: bool = True) -> float:
    """Return the median milliseconds until the device has done an action, or without waiting until it is launched."""
    import torch

    synchronize = (lambda: None) if rehearse else torch.cuda.synchronize
    durations = []
    for _ in range(3 if rehearse else rounds):
        synchronize()
        start = time.perf_counter()
        action()
        if wait:
            synchronize()
        durations.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(durations), 4)


def peak_memory(rehearse: bool, action: Callable[[], Any]) -> int:
    """Return the most bytes that an action holds beyond those held before it."""
    import torch

    if rehearse:
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    return torch.cuda.max_memory_allocated() - before
