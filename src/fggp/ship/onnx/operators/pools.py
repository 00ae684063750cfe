"""Pools."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Node, Result, by_name
from fggp.ship.onnx.operands import Operand, Running
from fggp.ship.onnx.operators.products import spatial_pads
from fggp.ship.onnx.sizes import Size, equal, larger, quotient, quotient_up, simplest, smaller

aten = torch.ops.aten
_MAX = {1: aten.max_pool1d.default, 2: aten.max_pool2d.default, 3: aten.max_pool3d.default}
_AVERAGE = {1: aten.avg_pool1d.default, 2: aten.avg_pool2d.default, 3: aten.avg_pool3d.default}


def _windows(sizes: Any, pads: Any, span: Any, stride: Any, ceil: bool) -> list[Size]:
    """How many windows there are; with ceil_mode, the last one starts inside the tensor or its front padding."""
    found: list[Size] = []
    for size, (before, after), s, step in zip(sizes, pads, span, stride, strict=True):
        room = simplest(size + before + after - s)
        if not ceil:
            found.append(simplest(quotient(room, step) + 1))
        else:
            # Each starts inside anyway if it is no further from the one before than it is long.
            count = quotient_up(room, step)
            inside = equal(before, after) and step + before <= s
            found.append(simplest((count if inside else smaller(count, quotient(size + before - 1, step))) + 1))
    return found


@dataclass(frozen=True)
class _Pool:
    """What a pool does to its input.

    Args:
        kernel, stride, dilation: as in the node.
        pads: before and after each spatial dimension.
        windows: how many there are of each.
        inside: whether the operator pads. If not, the padding is put into the input, up to the end of the last window.
        reach: how far the input is padded then, before and after.
        ceil: ``ceil_mode``.
    """

    kernel: list[int]
    stride: list[int]
    dilation: list[int]
    pads: list[tuple[Size, Size]]
    windows: list[Size]
    inside: bool
    reach: list[tuple[Size, Size]]
    ceil: bool

    @property
    def padding(self) -> list[int]:
        """The operator's own, which is the same on both sides and at most half a window."""
        return [int(before) for before, _ in self.pads] if self.inside else [0] * len(self.kernel)


def _pool(n: Node, x: Operand) -> _Pool:
    count, sizes, kernel = x.rank - 2, x.sizes[2:], list(n.get("kernel_shape"))
    stride, dilation = list(n.get("strides", [1] * count)), list(n.get("dilations", [1] * count))
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    ceil = bool(n.get("ceil_mode", 0)) and n.get("auto_pad", "NOTSET") == "NOTSET"
    pads = spatial_pads(n, sizes, span, stride)
    windows = _windows(sizes, pads, span, stride, ceil)
    inside = all(
        isinstance(before, int) and before == after and before <= k // 2
        for (before, after), k in zip(pads, kernel, strict=True)
    )
    reach = pads
    if ceil and not inside:
        ends = [simplest((w - 1) * step + s) for w, step, s in zip(windows, stride, span, strict=True)]
        reach = [
            (before, larger(simplest(end - size - before), 0))
            for (before, _), end, size in zip(pads, ends, sizes, strict=True)
        ]
    return _Pool(kernel, stride, dilation, pads, windows, inside, reach, ceil and inside)


def _max_pool(b: Builder, n: Node) -> Result:
    if len(n.proto.output) > 1 and n.proto.output[1]:
        raise Inexpressible("its second result, the places of the largest numbers, is used")
    x = n.floats(0)
    p = _pool(n, x)
    y = x if p.inside else b.pad(x, [(0, 0), (0, 0), *p.reach], value=-math.inf)
    args = p.kernel, p.stride, p.padding, p.dilation, p.ceil
    return b.call(_MAX[x.rank - 2], b.argument(y), *args, sizes=(*x.sizes[:2], *p.windows))


def _average_pool(b: Builder, n: Node) -> Operand:
    x = n.floats(0)
    p = _pool(n, x)
    if any(d != 1 for d in p.dilation):
        raise Inexpressible(f"its dilations are {p.dilation}; the network file's average pool has none")
    counted = bool(n.get("count_include_pad", 0))

    def pooled(y: Operand) -> Running:
        args = p.kernel, p.stride, p.padding, p.ceil, counted
        return b.call(_AVERAGE[x.rank - 2], b.argument(y), *args, sizes=(*y.sizes[:2], *p.windows))

    if p.inside:
        return pooled(x)
    padded = pooled(b.pad(x, [(0, 0), (0, 0), *p.reach]))
    if counted and p.reach == p.pads:
        return padded
    # What does not count lies in the input now: divided by the share of each window that does.
    sizes, reach = list(x.sizes[2:]), p.reach
    if counted:
        ends = [smaller(after, end) for (_, after), (_, end) in zip(p.pads, reach, strict=True)]
        sizes = [simplest(size + before + end) for size, (before, _), end in zip(sizes, reach, ends, strict=True)]
        reach = [(0, simplest(after - end)) for (_, after), end in zip(reach, ends, strict=True)]
    ones = b.pad(b.filled((1, 1, *sizes), 1.0, torch.float32), [(0, 0), (0, 0), *reach])
    return b.pointwise(aten.div.Tensor, padded, pooled(ones))


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
