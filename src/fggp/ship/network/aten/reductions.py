"""Reductions over dimensions, and what is made of them."""

from __future__ import annotations

import math
from typing import Any

import torch

from fggp.ship.graph.calls import Call
from fggp.ship.network.aten.common import floats, number, operand, result_dtype, sizes_of
from fggp.ship.network.nodes import Handler, Operand, Writer
from fggp.ship.network.sizes import expression, product

aten = torch.ops.aten


def _dims(x: Operand, a: dict[str, Any]) -> list[int]:
    """The dimensions that a call reduces; none given means all."""
    dims = a.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    return [dim % max(x.rank, 1) for dim in dims] if dims else list(range(x.rank))


def _reduction(function: str) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        dtype = result_dtype(call)
        x = w.cast(operand(w, a["self"]), dtype)
        return w.reduce(function, x, _dims(x, a), keep=a.get("keepdim", False))

    return write


def _any(function: str) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x = w.cast(operand(w, a["self"]), torch.bool)
        return w.reduce(function, x, _dims(x, a), keep=a.get("keepdim", False))

    return write


def _extreme(function: str) -> Handler:
    """max and min of one dimension, with the places; of all, without."""

    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand | tuple[Operand, ...]:
        x = operand(w, a["self"])
        values = w.reduce(function, x, _dims(x, a), keep=a.get("keepdim", False))
        if "dim" not in a:
            return values
        return values, w.reduce(f"arg{function}", x, _dims(x, a), keep=a["keepdim"], dtype=torch.int64)

    return write


def _place(function: str) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x, dim = operand(w, a["self"]), a["dim"]
        if dim is None:  # of all numbers in a row
            flat = w.reshape(x, [product(x.sizes)])
            return w.reshape(w.reduce(function, flat, [0], keep=False, dtype=torch.int64), sizes_of(call))
        return w.reduce(function, x, [dim], keep=a["keepdim"], dtype=torch.int64)

    return write


def _deviations(w: Writer, x: Operand, dims: list[int], correction: float) -> tuple[Operand, Operand]:
    """The variance over dimensions, which stay, and the mean."""
    mean = w.reduce("mean", x, dims, keep=True)
    centred = w.binary("sub", x, mean)
    squares = w.binary("mul", centred, centred)
    if correction == 0:
        return w.reduce("mean", squares, dims, keep=True), mean
    sizes = [x.sizes[dim] for dim in dims]
    if all(isinstance(size, int) for size in sizes):
        count = max(math.prod(size for size in sizes if isinstance(size, int)) - correction, 0.0)
        return w.with_number("div", w.reduce("sum", squares, dims, keep=True), float(count)), mean
    ones = w.fill([x.sizes[dim] if dim in dims else 1 for dim in range(x.rank)], 1.0, torch.float32)
    count_ = w.with_number("max", w.with_number("sub", w.reduce("sum", ones, dims, keep=True), correction), 0.0)
    return w.binary("div", w.reduce("sum", squares, dims, keep=True), count_), mean


def _variance(root: bool, with_mean: bool) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand | tuple[Operand, ...]:
        x = floats(w, a["self"])
        correction = a["correction"] if "correction" in a else a.get("unbiased", True)
        dims, keep = _dims(x, a), a.get("keepdim", False)
        variance, mean = _deviations(w, x, dims, 1.0 if correction is None else float(number(correction, "correction")))
        result = w.unary("sqrt", variance) if root else variance
        kept = x.sizes if keep else [size for dim, size in enumerate(x.sizes) if dim not in dims]
        sizes = [1 if dim in dims else size for dim, size in enumerate(kept)] if keep else kept
        return (w.reshape(result, sizes), w.reshape(mean, sizes)) if with_mean else w.reshape(result, sizes)

    return write


def _norm(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = floats(w, a["self"])
    order = a.get("ord", a.get("p", 2))
    order = 2 if order is None else order
    dims, keep = _dims(x, a), a.get("keepdim", False)
    size = w.unary("abs", x)
    if order == 2:
        return w.unary("sqrt", w.reduce("sum", w.binary("mul", x, x), dims, keep=keep))
    if order == 1:
        return w.reduce("sum", size, dims, keep=keep)
    if math.isinf(order):
        return w.reduce("max" if order > 0 else "min", size, dims, keep=keep)
    if order == 0:
        nonzero = w.cast(w.cast(x, torch.bool), torch.float32)
        return w.reduce("sum", nonzero, dims, keep=keep)
    total = w.reduce("sum", w.with_number("pow", size, float(order)), dims, keep=keep)
    return w.with_number("pow", total, 1 / order)


def _log_sum_exp(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = floats(w, a["self"])
    dims = _dims(x, a)
    largest = w.reduce("max", x, dims, keep=True)
    # If the largest is infinite, nothing is subtracted: ∞ − ∞ would be NaN.
    finite = w.binary("lt", w.unary("abs", largest), w.scalar(math.inf, x.dtype), torch.bool)
    shift = w.node("where", [finite, largest, w.scalar(0.0, x.dtype)], x.dtype, largest.sizes)
    total = w.reduce("sum", w.unary("exp", w.binary("sub", x, shift)), dims, keep=True)
    return w.reshape(w.binary("add", w.unary("log", total), shift), sizes_of(call))


def _cumulative_sum(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = w.cast(operand(w, a["self"]), result_dtype(call))
    if not x.rank:
        return x
    return w.node("cumsum", [x], x.dtype, x.sizes, dim=a["dim"] % x.rank)


def _top(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
    x, count = operand(w, a["self"]), a["k"]
    dim = a["dim"] % x.rank
    return _topk(w, x, count, dim, largest=a["largest"])


def _sort(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
    x = operand(w, a["self"])
    dim = a["dim"] % x.rank
    return _topk(w, x, x.sizes[dim], dim, largest=a["descending"])


def _argsort(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return _sort(w, call, a)[1]


def _topk(w: Writer, x: Operand, count: Any, dim: int, *, largest: bool) -> tuple[Operand, ...]:
    sizes = [count if i == dim else size for i, size in enumerate(x.sizes)]
    outputs = [(x.dtype, sizes), (torch.int64, sizes)]
    return w.nodes_of("topk", [x], outputs, count=expression(count), dim=dim, largest=largest)


def _every(names: str, handler: Handler) -> dict[Any, Handler]:
    """The overloads of operators by dimension or over all."""
    found: dict[Any, Handler] = {}
    for name in names.split():
        packet = getattr(aten, name)
        for overload in packet.overloads():
            schema = getattr(packet, overload)._schema
            arguments = {argument.name: str(argument.type) for argument in schema.arguments}
            if "out" in overload or "str" in arguments.get("dim", "") or "other" in arguments or "names" in overload:
                continue
            found[getattr(packet, overload)] = handler
    return found


HANDLERS: dict[Any, Handler] = {
    **_every("sum", _reduction("sum")),
    **_every("mean", _reduction("mean")),
    **_every("prod", _reduction("prod")),
    **_every("amax", _reduction("max")),
    **_every("amin", _reduction("min")),
    **_every("max", _extreme("max")),
    **_every("min", _extreme("min")),
    **_every("any", _any("any")),
    **_every("all", _any("all")),
    **_every("argmax", _place("argmax")),
    **_every("argmin", _place("argmin")),
    **_every("var", _variance(root=False, with_mean=False)),
    **_every("std", _variance(root=True, with_mean=False)),
    **_every("var_mean", _variance(root=False, with_mean=True)),
    **_every("std_mean", _variance(root=True, with_mean=True)),
    **_every("linalg_vector_norm norm", _norm),
    **_every("logsumexp", _log_sum_exp),
    **_every("cumsum", _cumulative_sum),
    aten.topk.default: _top,
    **_every("sort", _sort),
    **_every("argsort", _argsort),
}
