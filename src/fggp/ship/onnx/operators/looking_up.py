"""Operators that look elements up, or replace some."""

from __future__ import annotations

import numpy as np
import torch

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Node, by_name
from fggp.ship.onnx.operands import Constant, Operand, Running, constant_array, symbolic
from fggp.ship.onnx.operators.elementwise import where
from fggp.ship.onnx.sizes import Size, product, simplest

aten = torch.ops.aten


def _gather(b: Builder, n: Node) -> Operand:
    x, index = n.input(0), n.input(1)
    axis = n.axis(x.rank, 0)
    if isinstance(index, Constant) and index.array.size == 1 and isinstance(x, Running):
        return _one(b, x, axis, int(index.array.reshape(-1)[0]), index.rank)
    if not isinstance(x, Running) and not isinstance(index, Running):
        x = b.running(x)
    _reaching(b, x.sizes[axis], index)
    return b.take(x, index, axis)


def _reaching(b: Builder, size: Size, index: Operand) -> None:
    """Note that a dimension reaches as far as constant places."""
    if isinstance(index, Constant) and index.array.size:
        b.at_least(size, int(max(index.array.max() + 1, -index.array.min())))


def _one(b: Builder, x: Running, axis: int, place: int, rank: int) -> Operand:
    """One element of a dimension."""
    start = place if place >= 0 else symbolic(x.sizes[axis] + place, torch.int64)
    first = start if isinstance(start, int) else simplest(start.array.item())
    b.at_least(x.sizes[axis], place + 1 if place >= 0 else -place)
    part = b.slice(x, axis, first, first + 1)
    return part if rank == 1 else b.reshape(part, (*x.sizes[:axis], *[1] * rank, *x.sizes[axis + 1 :]))


def _gather_elements(b: Builder, n: Node) -> Operand:
    x, index = n.input(0), n.input(1)
    axis = n.axis(x.rank, 0)
    place = _from_the_front(b, index, x.sizes[axis])
    _reaching(b, x.sizes[axis], index)
    for dim in range(x.rank):
        if dim != axis:
            b.at_least(x.sizes[dim], index.sizes[dim])
    return b.call(aten.gather.default, b.argument(x), axis, b.argument(place), sizes=index.sizes, dtype=x.dtype)


def _from_the_front(b: Builder, index: Operand, size: Size) -> Operand:
    """Places of which negative ones counted from the end of a dimension of this size."""
    if isinstance(index, Constant) and (index.array >= 0).all():
        return index
    negative = b.pointwise(aten.lt.Scalar, index, 0, dtype=torch.bool)
    counted = b.pointwise(aten.add.Tensor, index, symbolic(size, torch.int64))
    return where(b, negative, counted, index)


def _gather_nd(b: Builder, n: Node) -> Operand:
    """The last dimension of the index has places in the first dimensions of x, which become one."""
    x, index = n.input(0), n.input(1)
    count = index.sizes[-1]
    if n.get("batch_dims", 0) or not isinstance(count, int):
        raise Inexpressible("it has batch_dims, or a free number of dimensions; expressed is neither")
    places: Operand | None = None
    for dim in range(count):
        part: Operand = b.reshape(b.slice(index, index.rank - 1, dim, dim + 1), index.sizes[:-1])
        part = _from_the_front(b, part, x.sizes[dim])
        if places is not None:
            before = b.pointwise(aten.mul.Tensor, places, symbolic(x.sizes[dim], torch.int64))
            part = b.pointwise(aten.add.Tensor, before, part)
        places = part
    assert places is not None
    flat = b.reshape(x, (product(x.sizes[:count]), *x.sizes[count:]))
    return b.take(flat, places, 0)


def _one_hot(b: Builder, n: Node) -> Operand:
    depth, values = int(constant_array(n.input(1), "depth").reshape(-1)[0]), n.input(2)
    off, on = constant_array(values, "values")
    index = b.cast(n.input(0), torch.int64)
    axis = n.get("axis", -1) % (index.rank + 1)
    index = _from_the_front(b, index, depth)
    index = b.reshape(index, (*index.sizes[:axis], 1, *index.sizes[axis:]))
    places = Constant(np.arange(depth).reshape(-1, *[1] * (index.rank - 1 - axis)))
    same = b.pointwise(aten.eq.Tensor, index, places, dtype=torch.bool)
    return where(b, same, Constant(np.asarray(on)), Constant(np.asarray(off)))


HANDLERS = by_name(
    {
        "Gather": _gather,
        "GatherElements": _gather_elements,
        "GatherND": _gather_nd,
        "OneHot": _one_hot,
    }
)
