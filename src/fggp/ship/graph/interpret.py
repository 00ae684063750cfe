"""Running a graph with PyTorch's own operators: the reference for the kernels, and the fallback without them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from fggp.ship.graph.activations import activated
from fggp.ship.graph.operations import (
    Activate,
    AdaptiveAvgPool2d,
    Add,
    Affine,
    AvgPool2d,
    Call,
    Channels,
    Concat,
    Conv2d,
    Dequantize,
    Flatten,
    Gate,
    Graph,
    Linear,
    MaxPool2d,
    Op,
    Quantization,
    Quantize,
    QuantizedAdd,
    QuantizedConv2d,
    QuantizedLinear,
    QuantizedMean,
    QuantizedProduct,
    Value,
    map_leaves,
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
    if isinstance(op, (Quantize, Dequantize, QuantizedProduct, QuantizedAdd, QuantizedMean)):
        return _quantized(op, *(values[v] for v in op.inputs))
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


def _quantized(op: Op, x: Tensor, *more: Tensor) -> Tensor:
    """An operation on whole numbers, with the same results as the kernels. Sums of products are exact in float64."""
    channel: tuple[int, ...]
    match op:
        case Quantize():
            return quantize(x, op.to)
        case Dequantize():
            return dequantize(x, op.of)
        case QuantizedAdd():
            a, b = op.of
            return quantize(activated(dequantize(x, a) + dequantize(more[0], b), op.activation), op.to)
        case QuantizedMean():
            total = (x.long() - op.of.zero).sum((2, 3), keepdim=True)
            return total.float() * (torch.tensor(op.of.scale) / torch.tensor(float(x.shape[2] * x.shape[3])))
        case QuantizedConv2d():
            given, weight = x.double() - op.of.zero, op.weight.double()
            total = F.conv2d(given, weight, None, op.stride, op.padding, op.dilation, op.groups)
            channel = (-1, 1, 1)
        case QuantizedLinear():
            total, channel = F.linear(x.double() - op.of.zero, op.weight.double()), (-1,)
        case _:
            raise NotImplementedError(f"no PyTorch equivalent is known for an operation of type {type(op).__name__}")
    y = total.float() * op.scale.view(channel)
    y = y + (0 if op.bias is None else op.bias.view(channel))
    if op.residual_of is not None:
        y = y + dequantize(more[0], op.residual_of)
    y = activated(y, op.activation)
    return y if op.to is None else quantize(y, op.to)


def quantize(x: Tensor, to: Quantization) -> Tensor:
    """float32 as uint8."""
    scaled = x * (1 / torch.tensor(to.scale))
    return (scaled.clamp(-to.zero, 255 - to.zero).nan_to_num(-to.zero).round() + to.zero).to(torch.uint8)


def dequantize(x: Tensor, of: Quantization) -> Tensor:
    """uint8 as the float32 that it stands for."""
    return (x.int() - of.zero).float() * torch.tensor(of.scale)
