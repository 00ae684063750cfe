"""Pools."""

from __future__ import annotations

import math
from typing import Any

import torch

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Node, Result, by_name
from fggp.ship.onnx.operands import Operand, Running
from fggp.ship.onnx.operators.products import spatial_pads, split_pads
from fggp.ship.onnx.sizes import Size, quotient, quotient_up, simplest, smaller

aten = torch.ops.aten
_MAX = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
_AVERAGE = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


def _windows(sizes: Any, padding: Any, span: Any, stride: Any, ceil: bool) -> list[Size]:
    """How many windows there are; the last one starts inside the tensor or its front padding."""
    found: list[Size] = []
    for size, p, s, step in zip(sizes, padding, span, stride, strict=True):
        room = simplest(size + 2 * p - s)
        if not ceil:
            found.append(simplest(quotient(room, step) + 1))
        else:
            # Each starts inside anyway if it is no further from the one before than it is long.
            count = quotient_up(room, step)
            found.append(simplest((count if step + p <= s else smaller(count, quotient(size + p - 1, step))) + 1))
    return found


def _settings(n: Node, x: Operand) -> tuple[Any, ...]:
    count = x.rank - 2
    kernel = n.get("kernel_shape")
    stride, dilation = n.get("strides", [1] * count), n.get("dilations", [1] * count)
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    ceil = bool(n.get("ceil_mode", 0)) and n.get("auto_pad", "NOTSET") == "NOTSET"
    return count, list(kernel), list(stride), list(dilation), span, ceil


def _max_pool(b: Builder, n: Node) -> Result:
    if len(n.proto.output) > 1 and n.proto.output[1]:
        raise Inexpressible("its second result, the places of the largest numbers, is used")
    x = n.floats(0)
    count, kernel, stride, dilation, span, ceil = _settings(n, x)
    x, padding = _padded(b, x, spatial_pads(n, x.sizes[2:], span, stride), kernel, -math.inf)
    sizes = (*x.sizes[:2], *_windows(x.sizes[2:], padding, span, stride, ceil))
    return b.call(_MAX[count], b.argument(x), kernel, stride, padding, dilation, ceil, sizes=sizes)


def _padded(b: Builder, x: Operand, pads: Any, kernel: list[int], value: float) -> tuple[Operand, list[int]]:
    """As `split_pads`. A padding of more than half a window, too, is put into the input."""
    if any(not isinstance(p, int) or p > k // 2 for (p, _), k in zip(pads, kernel, strict=True)):
        return b.pad(x, [(0, 0), (0, 0), *pads], value=value), [0] * len(kernel)
    return split_pads(b, x, pads, value)


def _average_pool(b: Builder, n: Node) -> Operand:
    x = n.floats(0)
    count, kernel, stride, dilation, span, ceil = _settings(n, x)
    if any(d != 1 for d in dilation):
        raise Inexpressible(f"its dilations are {dilation}; the network file's average pool has none")
    counted = bool(n.get("count_include_pad", 0))
    pads = spatial_pads(n, x.sizes[2:], span, stride)
    padded, padding = _padded(b, x, pads, kernel, 0.0)
    sizes = (*padded.sizes[:2], *_windows(padded.sizes[2:], padding, span, stride, ceil))

    def pooled(y: Operand, sizes: Any) -> Running:
        args = kernel, stride, padding, ceil, counted
        return b.call(_AVERAGE[count], b.argument(y), *args, sizes=sizes)

    if padded is x or counted:
        return pooled(padded, sizes)
    # The padding lies in the input now, and must not count: divided by the share of each window that is none.
    ones = b.pad(b.filled((1, 1, *x.sizes[2:]), 1.0, torch.float32), [(0, 0), (0, 0), *pads])
    return b.pointwise(aten.div.Tensor, pooled(padded, sizes), pooled(ones, (1, 1, *sizes[2:])))


def _global_average(b: Builder, n: Node) -> Operand:
    x = n.floats(0)
    dims = list(range(2, x.rank))
    return b.call(aten.mean.dim, b.argument(x), dims, True, sizes=(*x.sizes[:2], *[1] * len(dims)))


def _global_max(b: Builder, n: Node) -> Operand:
    x = n.floats(0)
    dims = list(range(2, x.rank))
    return b.call(aten.amax.default, b.argument(x), dims, True, sizes=(*x.sizes[:2], *[1] * len(dims)))


HANDLERS = by_name(
    {
        "MaxPool": _max_pool,
        "AveragePool": _average_pool,
        "GlobalAveragePool": _global_average,
        "GlobalMaxPool": _global_max,
    }
)
