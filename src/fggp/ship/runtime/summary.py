"""What `print` shows of a compiled network: what runs where, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fggp.ship.graph.operations import Conv2d, Linear, Op
from fggp.ship.runtime.engine import Engine
from fggp.ship.runtime.instructions import Elementwise, Product, Step, Torch

HEADER = ("layer", "weight", "left", "runs on", "ms")


def summary(name: str, engine: Engine, inputs: Sequence[Tensor]) -> str:
    """A table of all that is done for these inputs, run here and now."""
    taken = engine.profile(inputs)
    sparse = f"fggp {engine.kernels.cpu}"
    rows = [row for step, seconds in taken for row in _rows(step, seconds * 1e3, sparse)]
    products = [op for op in engine.graph.ops if isinstance(op, (Conv2d, Linear))]
    ours = sum(len(step.chain) for step, _ in taken if isinstance(step, Product))
    total = sum(seconds for _, seconds in taken) * 1e3
    threads = torch.get_num_threads()
    lines = [
        f"{name} compiled by fggp for a batch of {engine.batch(inputs)}: {ours} of {len(products)} convolutions and "
        f"linear layers on the sparse {engine.kernels.cpu} kernels; {threads} threads",
        *_aligned([HEADER, *rows, ("", "", "", "", f"{total:.3f}")]),
    ]
    return "\n".join(lines)


def _rows(step: Step, ms: float, sparse: str) -> Iterable[tuple[str, ...]]:
    if isinstance(step, Product):
        for convolve in step.chain:
            last = convolve is step.chain[-1]
            yield (*_weight(convolve.op), sparse, f"{ms:.3f}" if last else "with the next")
    elif isinstance(step, Torch):
        yield (*_weight(step.op), "PyTorch", f"{ms:.3f}")
    elif isinstance(step, Elementwise):
        yield (*_weight(step.op), "PyTorch, in place", f"{ms:.3f}")
    elif step.op is not None:
        yield (*_weight(step.op), sparse, f"{ms:.3f}")
    else:
        yield ("layout in" if step.name == "load" else "layout out", "", "", sparse, f"{ms:.3f}")


def _weight(op: Op) -> tuple[str, str, str]:
    if isinstance(op, (Conv2d, Linear)):
        left = float(op.weight.count_nonzero()) / max(1, op.weight.numel())
        shape = "×".join(map(str, op.weight.shape))
        return op.layer or op.output.name, shape, f"{left:.1%}"
    return op.output.module or op.output.name, "", ""


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = "<<><>"
    return ["  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)).rstrip() for row in rows]
