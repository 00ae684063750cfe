"""Running a graph with PyTorch's own operators: the reference for the kernels, and the fallback without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from fggp.ship.graph import quantized
from fggp.ship.graph.activations import activated
from fggp.ship.graph.calls import Call, map_leaves
from fggp.ship.graph.operations import (
    Activate,
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    Channels,
    Concat,
    Conv2d,
    Flatten,
    Gate,
    Graph,
    Linear,
    MaxPool2d,
    Op,
    Value,
)


@torch.no_grad()
def run(graph: Graph, inputs: Sequence[Tensor]) -> Any:
    """Run a network.

    Args:
        graph: simplified or not.
        inputs: one tensor for each of the graph's inputs (`Graph.flatten`).

    Returns:
        The network's return value, in its own structure.
    """
    wanted = {x for x in graph.outputs if isinstance(x, Value)}
    values = {v: x for v, x in steps(graph, inputs) if v in wanted}
    # Constants are cloned, because a caller may write into the results.
    returned = [values[x] if isinstance(x, Value) else x.clone() if isinstance(x, Tensor) else x for x in graph.outputs]
    return tree_unflatten(returned, graph.out_spec)


def steps(graph: Graph, inputs: Sequence[Tensor]) -> Iterator[tuple[Value, Any]]:
    """Run a network one operation at a time. Yields the inputs, then what each operation computes.

    Results are freed when nothing is left that reads them, so that the caller decides how many are in memory.
    """
    values: dict[Value, Any] = dict(zip(graph.inputs, inputs, strict=True))
    yield from values.items()
    remaining_uses = Counter(v for op in graph.ops for v in op.inputs)
    for op in graph.ops:
        result = execute(op, values)
        yield op.output, result
        if remaining_uses[op.output]:
            values[op.output] = result
        del result
        for v in op.inputs:
            remaining_uses[v] -= 1
            if not remaining_uses[v]:
                del values[v]


def execute(op: Op, values: dict[Value, Any]) -> Any:
    """Run one operation on the values it reads, and return its output."""
    if isinstance(op, Call):
        args, kwargs = map_leaves((op.args, op.kwargs), lambda x: values[x] if isinstance(x, Value) else x)
        return op.target(*args, **kwargs)
    if isinstance(op, quantized.OPERATIONS):
        return quantized.compute(op, *(values[v] for v in op.inputs))
    return activated(_compute(op, *(values[v] for v in op.inputs)), getattr(op, "activation", None))


def _compute(op: Op, x: Tensor, *more: Tensor) -> Tensor:
    """The operation without the activation after it."""
    match op:
        case Conv2d():
            y = F.conv2d(x, op.weight, op.bias, op.stride, op.padding, op.dilation, op.groups)
            return y + more[0] if more else y
        case Linear():
            y = F.linear(x, op.weight, op.bias)
            return y + more[0] if more else y
        case MaxPool2d():
            y = F.max_pool2d(x.float(), op.kernel, op.stride, op.padding, op.dilation, op.ceil_mode)
            return y.to(x.dtype)
        case AvgPool2d():
            return F.avg_pool2d(
                x, op.kernel, op.stride, op.padding, op.ceil_mode, op.count_include_pad, op.divisor_override
            )
        case AdaptiveAvgPool2d():
            return F.adaptive_avg_pool2d(x, op.size)
        case Add():
            return x + more[0]
        case Gate():
            return x * more[0]
        case Activate():
            return x
        case Affine():
            shape = (-1, *(1 for _ in x.shape[2:]))
            return torch.addcmul(op.shift.to(x.dtype).view(shape), x, op.scale.to(x.dtype).view(shape))
        case Concat():
            return torch.cat([x, *more], op.dim)
        case Channels():
            return torch.cat([x, *more], 1)[:, list(op.index)]
        case Flatten():
            return x.flatten(1)
    raise NotImplementedError(f"no PyTorch equivalent is known for an operation of type {type(op).__name__}")
