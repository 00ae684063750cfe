"""The table that `print` shows of a compiled network: each layer, what runs it, and its time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fggp.ship.graph.operations import Call, Conv2d, Linear, Op
from fggp.ship.runtime.engine import SparseEngine
from fggp.ship.runtime.instructions import Product, Step, Torch

HEADER = ("layer", "operation", "weight", "non-zero", "runs on", "ms")


def summary(name: str, engine: SparseEngine, inputs: Sequence[Tensor]) -> str:
    """Run the network once for these inputs, and list its steps and their times as a table."""
    profile = engine.profile(inputs)
    sparse = f"fggp {engine.kernels.cpu}"
    rows = [row for step, seconds in profile for row in _rows(step, seconds * 1e3, sparse)]
    products = [op for op in engine.graph.ops if isinstance(op, (Conv2d, Linear))]
    on_kernels = sum(len(step.chain) for step, _ in profile if isinstance(step, Product))
    total = sum(seconds for _, seconds in profile) * 1e3
    threads = torch.get_num_threads()
    threads_text = "1 thread" if threads == 1 else f"{threads} threads"
    lines = [
        f"{name} compiled by fggp for a batch of {engine.batch_size(inputs)}: {on_kernels} of {len(products)} "
        f"convolutions and linear layers on the sparse {engine.kernels.cpu} kernels; {threads_text}",
        *_aligned([HEADER, *rows, ("total", "", "", "", "", f"{total:.3f}")]),
    ]
    return "\n".join(lines)


def _rows(step: Step, ms: float, sparse: str) -> Iterable[tuple[str, ...]]:
    if isinstance(step, Product):
        for convolve in step.chain:
            last = convolve is step.chain[-1]
            yield (*_operation(convolve.op), sparse, f"{ms:.3f}" if last else "with the next")
    elif isinstance(step, Torch):
        yield (*_operation(step.op), "PyTorch", f"{ms:.3f}")
    elif step.op is not None:
        yield (*_operation(step.op), sparse, f"{ms:.3f}")
    else:
        direction = "to" if step.name == "load" else "from"
        yield ("", f"convert {direction} the kernels' layout", "", "", sparse, f"{ms:.3f}")


def _operation(op: Op) -> tuple[str, str, str, str]:
    """The layer's path, the operation's name, and the shape and density of its weight."""
    if isinstance(op, (Conv2d, Linear)):
        density = float(op.weight.count_nonzero()) / max(1, op.weight.numel())
        shape = "×".join(map(str, op.weight.shape))
        return op.layer or op.output.name, type(op).__name__, shape, f"{density:.1%}"
    name = op.target_name if isinstance(op, Call) else type(op).__name__
    return op.output.module or op.output.name, name, "", ""


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = "<<<><>"
    return ["  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)).rstrip() for row in rows]
