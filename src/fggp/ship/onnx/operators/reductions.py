"""Reductions over dimensions, and sorting."""

from __future__ import annotations

from typing import Any

import torch

from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Handler, Node, Result, by_name
from fggp.ship.onnx.operands import Operand, Running, numbers_of

aten = torch.ops.aten


def _dims(n: Node, x: Operand) -> list[int]:
    """The dimensions that are reduced: all if none is given, or none if that is said."""
    axes = n.axes(x.rank)
    if axes:
        return axes
    return [] if n.get("noop_with_empty_axes", 0) else list(range(x.rank))


def _kept(x: Operand, dims: list[int], keep: bool) -> list[Any]:
    return [1 if dim in dims else size for dim, size in enumerate(x.sizes) if keep or dim not in dims]


def reduced(b: Builder, target: Any, x: Operand, dims: list[int], keep: bool) -> Running:
    """Reduce dimensions."""
    return b.call(target, b.argument(x), dims, keep, sizes=_kept(x, dims, keep), dtype=x.dtype)


def _reduction(target: Any, before: Any = None, after: Any = None) -> Handler:
    """A reduction of a function of the numbers, and a function of that."""

    def write(b: Builder, n: Node) -> Operand:
        x = n.input(0)
        dims, keep = _dims(n, x), bool(n.get("keepdims", 1))
        y: Operand = b.pointwise(aten.mul.Tensor, x, x) if before == "square" else x
        y = b.pointwise(before, x) if before not in (None, "square") else y
        if dims and x.rank:
            y = reduced(b, target, y, dims, keep)
        return y if after is None else b.pointwise(after, y)

    return write


def _product(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    dims, keep = _dims(n, x), bool(n.get("keepdims", 1))
    for dim in sorted(dims, reverse=True):
        x = b.call(aten.prod.dim_int, b.argument(x), dim, keep, sizes=_kept(x, [dim], keep), dtype=x.dtype)
    return x


def _log_sum_exp(b: Builder, n: Node) -> Operand:
    x = n.floats(0)
    dims, keep = _dims(n, x), bool(n.get("keepdims", 1))
    return reduced(b, aten.logsumexp.default, x, dims, keep) if dims else x


def _place(target: Any) -> Handler:
    """argmax and argmin; the last of equal numbers by reversing the dimension."""

    def write(b: Builder, n: Node) -> Operand:
        x = n.input(0)
        dim, keep = n.axis(x.rank, 0), bool(n.get("keepdims", 1))
        last = bool(n.get("select_last_index", 0))
        if last:
            x = b.call(aten.flip.default, b.argument(x), [dim], sizes=x.sizes, dtype=x.dtype)
        found = b.call(target, b.argument(x), dim, keep, sizes=_kept(x, [dim], keep), dtype=torch.int64)
        if not last:
            return found
        size: Any = x.sizes[dim] - 1
        number = b.number(size, torch.int64)
        return b.pointwise(aten.sub.Tensor, number, found)

    return write


def _cumulative_sum(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    dim = int(n.number("axis", 1)) % x.rank

    def reversed_(y: Operand) -> Operand:
        return b.call(aten.flip.default, b.argument(y), [dim], sizes=y.sizes, dtype=y.dtype)

    x = reversed_(x) if n.get("reverse", 0) else x
    y: Operand = b.call(aten.cumsum.default, b.argument(x), dim, sizes=x.sizes, dtype=x.dtype)
    if n.get("exclusive", 0):
        y = b.pointwise(aten.sub.Tensor, y, x)
    return reversed_(y) if n.get("reverse", 0) else y


def _top(b: Builder, n: Node) -> Result:
    x = n.input(0)
    dim = n.axis(x.rank, -1)
    count = n.get("k") or numbers_of(n.input(1), "K")[0]
    b.at_least(x.sizes[dim], count)
    sizes = [count if i == dim else size for i, size in enumerate(x.sizes)]
    args = b.argument(x), b.size(count), dim, bool(n.get("largest", 1)), True
    return b.call_of_several(aten.topk.default, *args, results=[(sizes, x.dtype), (sizes, torch.int64)])


HANDLERS = by_name(
    {
        "ReduceSum": _reduction(aten.sum.dim_IntList),
        "ReduceMean": _reduction(aten.mean.dim),
        "ReduceMax": _reduction(aten.amax.default),
        "ReduceMin": _reduction(aten.amin.default),
        "ReduceProd": _product,
        "ReduceL1": _reduction(aten.sum.dim_IntList, aten.abs.default),
        "ReduceL2": _reduction(aten.sum.dim_IntList, "square", aten.sqrt.default),
        "ReduceSumSquare": _reduction(aten.sum.dim_IntList, "square"),
        "ReduceLogSum": _reduction(aten.sum.dim_IntList, None, aten.log.default),
        "ReduceLogSumExp": _log_sum_exp,
        "ArgMax": _place(aten.argmax.default),
        "ArgMin": _place(aten.argmin.default),
        "CumSum": _cumulative_sum,
        "TopK": _top,
    }
)
