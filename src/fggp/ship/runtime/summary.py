"""The table that `print` shows of a compiled network: each layer, what runs it, and its time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from fggp.ship.runtime.engine import Engine, Step

HEADER = ("layer", "operation", "weight", "non-zero", "runs on", "ms")
_RUNS = {"kernels": "fggp sparse", "operator": "fggp dense", "conversion": "fggp", "PyTorch": "PyTorch"}
_PRODUCTS = ("conv", "linear", "quantized_conv", "quantized_linear", "Conv2d", "Linear")


def summary(name: str, engine: Engine, inputs: Sequence[Tensor]) -> str:
    """Run the network a few times for these inputs, and list its steps and their times as a table."""
    steps = engine.profile(inputs)
    rows = [row for step in steps for row in _rows(step, engine)]
    sparse = sum(operator in _PRODUCTS for step in steps if step.runs == "kernels" for operator in step.operators)
    products = sum(operator in _PRODUCTS for step in steps for operator in step.operators)
    total = sum(step.milliseconds for step in steps)
    threads = torch.get_num_threads()
    shapes = ", ".join("×".join(map(str, x.shape)) for x in inputs)
    lines = [
        f"{name} compiled by fggp for inputs of {shapes}: {sparse} of {products} convolutions and linear layers on the "
        f"sparse {engine.cpu} kernels; {threads} thread{'s' if threads > 1 else ''}",
        *_aligned([HEADER, *rows, ("total", "", "", "", "", f"{total:.3f}")]),
    ]
    return "\n".join(lines)


def _rows(step: Step, engine: Engine) -> Iterable[tuple[str, ...]]:
    ms = f"{step.milliseconds:.3f}"
    if not step.operators:
        yield ("", "conversion of layout", "", "", _RUNS[step.runs], ms)
    for i, (name, operator) in enumerate(zip(step.names, step.operators, strict=True)):
        last = i == len(step.operators) - 1
        weight = engine.products.get(name) if operator in _PRODUCTS else None
        described = ("", "") if weight is None else ("×".join(map(str, weight.shape)), f"{weight.density:.1%}")
        operation = operator if weight is None else weight.operation
        yield (name, operation, *described, _RUNS[step.runs], ms if last else "with the next")


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    align = "<<<><>"
    return ["  ".join(f"{cell:{a}{w}}" for cell, a, w in zip(row, align, widths, strict=True)).rstrip() for row in rows]
