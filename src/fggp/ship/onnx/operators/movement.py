"""Operators that move elements: shapes, parts, joins, pads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch

from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.builder import Builder
from fggp.ship.onnx.nodes import Node, Result, by_name
from fggp.ship.onnx.operands import Constant, Operand, file_dtype, numbers_of, symbolic, whole_numbers
from fggp.ship.onnx.sizes import Size, equal, larger, product, quotient, quotient_up, simplest, smaller

aten = torch.ops.aten


def _shape(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    first, last = n.get("start", 0), n.get("end", x.rank)
    return symbolic(list(x.sizes[slice(first, last)]), torch.int64)


def _size(b: Builder, n: Node) -> Operand:
    return symbolic(product(n.input(0).sizes), torch.int64)


def _reshape(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    given = list(n.get("shape") or numbers_of(n.optional(1), "shape"))
    sizes: list[Any] = [x.sizes[i] if size == 0 and not n.get("allowzero", 0) else size for i, size in enumerate(given)]
    total = product(x.sizes)
    if -1 in sizes:
        place = sizes.index(-1)
        sizes[place] = quotient(total, product(size for i, size in enumerate(sizes) if i != place))
    elif isinstance(total, int) or isinstance(product(sizes), int):
        b.same(total, product(sizes))
    else:
        b.equalities.append((total, product(sizes)))
    return b.reshape(x, sizes)


def _flatten(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    axis = n.get("axis", 1)
    axis += x.rank if axis < 0 else 0
    return b.reshape(x, (product(x.sizes[:axis]), product(x.sizes[axis:])))


def _squeeze(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    axes = n.axes(x.rank)
    if axes is None:
        free = [size for size in x.sizes if not isinstance(size, int)]
        if free:
            raise Inexpressible(f"it drops dimensions of size 1, and {free[0]} may be 1: name it in `fixed`")
        axes = [dim for dim, size in enumerate(x.sizes) if size == 1]
    for axis in axes:
        b.same(x.sizes[axis], 1)
    return b.reshape(x, [size for dim, size in enumerate(x.sizes) if dim not in axes])


def _unsqueeze(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    given = n.get("axes") or whole_numbers(n.optional(1), "axes")
    rank = x.rank + len(given)
    axes = {axis % rank for axis in given}
    rest = iter(x.sizes)
    return b.reshape(x, [1 if dim in axes else next(rest) for dim in range(rank)])


def _transpose(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    return b.permute(x, n.get("perm", list(reversed(range(x.rank)))))


def _expand(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    return expanded(b, x, numbers_of(n.input(1), "shape"))


def expanded(b: Builder, x: Operand, shape: Sequence[Size]) -> Operand:
    """A tensor broadcast with a shape."""
    sizes = b.broadcast(x.sizes, [1 if size == -1 else size for size in shape])
    if x.rank < len(sizes):
        x = b.reshape(x, (*[1] * (len(sizes) - x.rank), *x.sizes))
    return b.expand(x, sizes)


def _tile(b: Builder, n: Node) -> Operand:
    x, repeats = n.input(0), numbers_of(n.input(1), "repeats")
    apart = [size for s in x.sizes for size in (1, s)]
    repeated = [size for s, count in zip(x.sizes, repeats, strict=True) for size in (count, s)]
    whole = [simplest(s * count) for s, count in zip(x.sizes, repeats, strict=True)]
    return b.reshape(b.expand(b.reshape(x, apart), repeated), whole)


def _concat(b: Builder, n: Node) -> Operand:
    parts = [n.input(i) for i in range(len(n.inputs))]
    axis = n.axis(parts[0].rank, 1)
    parts = [x for x in parts if x.sizes[axis] != 0] or parts[:1]
    return parts[0] if len(parts) == 1 else b.concat(parts, axis)


def bound(place: Any, size: Size, lowest: int, default: Size) -> Size:
    """A bound of a slice as a place from the front: clamped to the dimension."""
    if isinstance(place, int) and isinstance(size, int):
        place = place + size if place < 0 else place
        return min(max(place, lowest), default if lowest < 0 else size)
    if isinstance(place, int):
        if place >= 2**31 - 1:
            return size
        # Free sizes are taken to reach as far as a slice that starts at the front or ends at the back.
        return simplest(size + place) if place < 0 and place > -(2**31) else max(place, 0)
    if place.could_extract_minus_sign():
        return larger(simplest(size + place), 0)
    return place if equal(place, size) or (place - size).is_nonpositive else smaller(place, size)


def _slice(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    starts, ends = (n.get(name) or numbers_of(n.optional(i), name) for i, name in ((1, "starts"), (2, "ends")))
    steps = [1] * len(starts) if n.optional(4) is None else whole_numbers(n.optional(4), "steps")
    axes = n.axes(x.rank, 3) or list(range(len(starts)))
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.sizes[axis]
        if step < 0:
            x = b.call(aten.flip.default, b.argument(x), [axis], sizes=x.sizes, dtype=x.dtype)
            start, end = _mirrored(start, size), _mirrored(end, size)
            # Going backwards starts inside the dimension.
            start = min(start, size - 1) if isinstance(start, int) and isinstance(size, int) else start
        first, last = bound(start, size, 0, 0), bound(end, size, 0, size)
        if isinstance(first, int) and isinstance(last, int):
            last = max(first, last)
        if equal(first, 0) and equal(last, size) and abs(step) == 1:
            continue
        x = b.slice(x, axis, first, last, abs(step))
    return x


def _mirrored(place: Any, size: Size) -> Any:
    """A bound of a slice that goes backwards, in the reversed dimension."""
    if isinstance(place, int) and place <= -(2**31):
        return size
    if isinstance(place, int) and place >= 2**31 - 1:
        return 0
    if isinstance(place, int) and place < 0:
        return -place - 1
    mirrored = simplest(size - 1 - place)
    return max(mirrored, 0) if isinstance(mirrored, int) else mirrored


def _split(b: Builder, n: Node) -> Result:
    x = n.input(0)
    axis = n.axis(x.rank, 0)
    given, count = n.optional(1), len(n.proto.output)
    size = x.sizes[axis]
    if given is not None or n.get("split"):
        lengths = list(n.get("split") or numbers_of(given, "split"))
    elif "num_outputs" in n.attributes:
        each = quotient_up(size, count)
        lengths = [each] * (count - 1) + [simplest(size - each * (count - 1))]
    else:
        lengths = [quotient(size, count)] * count
    parts, start = [], 0
    for length in lengths:
        stop = simplest(start + length)
        parts.append(b.slice(x, axis, start, stop))
        start = stop
    return tuple(parts)


_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(b: Builder, n: Node) -> Operand:
    x = n.input(0)
    pads = list(n.get("pads") or numbers_of(n.optional(1), "pads"))
    axes = n.axes(x.rank, 3) or list(range(x.rank))
    around: list[tuple[Size, Size]] = [(0, 0)] * x.rank
    for i, axis in enumerate(axes):
        around[axis] = pads[i], pads[i + len(axes)]
    mode = _MODES[n.get("mode", "constant")]
    if mode != "constant":
        for size, pair in zip(x.sizes, around, strict=True):
            for added in pair:
                b.at_least(size, simplest(added + 1) if mode == "reflect" else added)
    value = n.number("value", 2, 0) if mode == "constant" else 0
    return b.pad(x, around, mode, value)


def _constant_of_shape(b: Builder, n: Node) -> Operand:
    value = n.get("value")
    number: Any = 0.0
    if value is not None:
        import onnx

        number = onnx.numpy_helper.to_array(value).reshape(-1)[0].item()
    dtype = torch.bool if isinstance(number, bool) else torch.int64 if isinstance(number, int) else torch.float32
    return b.filled(numbers_of(n.input(0), "shape"), number, dtype)


def _range(b: Builder, n: Node) -> Operand:
    (start,), (stop,), (step,) = (numbers_of(n.input(i), name) for i, name in enumerate(("start", "limit", "delta")))
    if any(n.input(i).dtype != torch.int64 for i in range(3)) or not isinstance(step, int):
        raise Inexpressible("its numbers are fractions that depend on free sizes")
    count = quotient_up(simplest(stop - start), step)
    numbers: Operand = b.arange(count)
    if step != 1:
        numbers = b.pointwise(aten.mul.Tensor, numbers, step)
    return b.pointwise(aten.add.Tensor, numbers, symbolic(start, torch.int64)) if start != 0 else numbers


def _depth_to_space(b: Builder, n: Node) -> Operand:
    x, r = n.input(0), n.get("blocksize")
    batch, channels, height, width = x.sizes
    each = quotient(channels, r * r)
    if n.get("mode", "DCR") == "CRD":
        y = b.permute(b.reshape(x, (batch, each, r, r, height, width)), [0, 1, 4, 2, 5, 3])
    else:
        y = b.permute(b.reshape(x, (batch, r, r, each, height, width)), [0, 3, 4, 1, 5, 2])
    return b.reshape(y, (batch, each, simplest(height * r), simplest(width * r)))


def _space_to_depth(b: Builder, n: Node) -> Operand:
    x, r = n.input(0), n.get("blocksize")
    batch, channels, height, width = x.sizes
    rows, columns = quotient(height, r), quotient(width, r)
    y = b.permute(b.reshape(x, (batch, channels, rows, r, columns, r)), [0, 3, 5, 1, 2, 4])
    return b.reshape(y, (batch, simplest(channels * r * r), rows, columns))


def _triangle(b: Builder, n: Node) -> Operand:
    x, diagonal = n.input(0), n.number("k", 1, 0)
    rows = b.reshape(b.arange(x.sizes[-2]), (x.sizes[-2], 1))
    offset = b.pointwise(aten.sub.Tensor, b.arange(x.sizes[-1]), rows)
    target = aten.ge.Scalar if n.get("upper", 1) else aten.le.Scalar
    kept = b.pointwise(target, offset, diagonal, dtype=torch.bool)
    zero = Constant(torch.zeros((), dtype=x.dtype).numpy())
    args = b.argument(kept), b.argument(x), b.argument(zero)
    return b.call(aten.where.self, *args, sizes=x.sizes, dtype=x.dtype)


def _eye(b: Builder, n: Node) -> Operand:
    x, element = n.input(0), n.get("dtype")
    dtype = x.dtype if element is None else file_dtype(element)
    if dtype is None:
        name = onnx.TensorProto.DataType.Name(element)
        raise Inexpressible(f"it returns {name}, and the network file has float32, int64 and bool")
    rows = b.reshape(b.arange(x.sizes[0]), (x.sizes[0], 1))
    columns = b.pointwise(aten.sub.Tensor, b.arange(x.sizes[1]), n.get("k", 0))
    same = b.pointwise(aten.eq.Tensor, columns, rows, dtype=torch.bool)
    return b.cast(same, dtype)


HANDLERS = by_name(
    {
        "Shape": _shape,
        "Size": _size,
        "Reshape": _reshape,
        "Flatten": _flatten,
        "Squeeze": _squeeze,
        "Unsqueeze": _unsqueeze,
        "Transpose": _transpose,
        "Expand": _expand,
        "Tile": _tile,
        "Concat": _concat,
        "Slice": _slice,
        "Split": _split,
        "Pad": _pad,
        "ConstantOfShape": _constant_of_shape,
        "Range": _range,
        "DepthToSpace": _depth_to_space,
        "SpaceToDepth": _space_to_depth,
        "Trilu": _triangle,
        "EyeLike": _eye,
    }
)
