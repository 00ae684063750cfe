"""Running a graph with PyTorch's own operators: the reference, and what runs where no compiler is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from fggp.ship.graph.operations import (
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    Call,
    Concat,
    Conv2d,
    Flatten,
    Graph,
    Linear,
    MaxPool2d,
    Op,
    ReLU,
    Value,
    swap,
)


@torch.no_grad()
def run(graph: Graph, inputs: Sequence[Tensor]) -> Any:
    """Run a network.

    Args:
        graph: simplified or not.
        inputs: one tensor for each of the graph's inputs (`Graph.flatten`).

    Returns:
        What the network returns, in its structure.
    """
    values: dict[Value, Any] = dict(zip(graph.inputs, inputs, strict=True))
    left = graph.uses()
    for op in graph.ops:
        values[op.output] = execute(op, values)
        for v in op.inputs:
            left[v] -= 1
            if not left[v]:  # read for the last time: its memory is free
                del values[v]
    # A caller may write into what is returned, and constants must stay as they are.
    returned = [values[x] if isinstance(x, Value) else x.clone() if isinstance(x, Tensor) else x for x in graph.outputs]
    return tree_unflatten(returned, graph.out_spec)


def execute(op: Op, values: dict[Value, Any]) -> Any:
    """What one operation produces from the values it reads."""
    if isinstance(op, Call):
        args, kwargs = swap((op.args, op.kwargs), lambda x: values[x] if isinstance(x, Value) else x)
        return op.target(*args, **kwargs)
    y = _product(op, *(values[v] for v in op.inputs))
    return F.relu(y) if getattr(op, "relu", False) else y


def _product(op: Op, x: Tensor, *more: Tensor) -> Tensor:
    """All of an operation but the ReLU after it."""
    match op:
        case Conv2d():
            y = F.conv2d(x, op.weight, op.bias, op.stride, op.padding, op.dilation, op.groups)
            return y + more[0] if more else y
        case Linear():
            y = F.linear(x, op.weight, op.bias)
            return y + more[0] if more else y
        case MaxPool2d():
            return F.max_pool2d(x, op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)
        case AvgPool2d():
            return F.avg_pool2d(
                x, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad, op.divisor_override
            )
        case AdaptiveAvgPool2d():
            return F.adaptive_avg_pool2d(x, op.size)
        case Add():
            return x + more[0]
        case ReLU():
            return F.relu(x)
        case Affine():
            shape = (-1, *(1 for _ in x.shape[2:]))
            return torch.addcmul(op.shift.to(x.dtype).view(shape), x, op.scale.to(x.dtype).view(shape))
        case Concat():
            return torch.cat([x, *more], op.dim)
        case Flatten():
            return x.flatten(1)
    raise NotImplementedError(f"an operation of type {type(op).__name__}")
