"""Operators that move elements: shapes, parts, joins, looking up."""

from __future__ import annotations

import operator
from typing import Any

import torch

from fggp.ship.graph.calls import Call
from fggp.ship.network.aten.common import number, operand, result_dtype, sizes_of
from fggp.ship.network.description import Inexpressible
from fggp.ship.network.nodes import Handler, Operand, Writer, broadcast
from fggp.ship.network.sizes import Size, added, divided, expression, multiplied, product

aten = torch.ops.aten


def _reshape(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, sizes = operand(w, a["self"]), sizes_of(call)
    if x.rank == 4 and len(sizes) == 2 and sizes[0] == x.sizes[0] and call.target is aten.flatten.using_ints:
        return w.node("flatten", [x], x.dtype, sizes)
    return w.reshape(x, sizes)


def _at_least_1d(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
    found = (operand(w, x) for x in a["tensors"])
    return tuple(x if x.rank else w.reshape(x, (1,)) for x in found)


def _expand(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return w.expand(operand(w, a["self"]), sizes_of(call))


def _permute(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return w.permute(operand(w, a["self"]), a["dims"])


def _transpose(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    first, second = (a[key] for key in (("dim0", "dim1") if "dim0" in a else ("axis0", "axis1")))
    return w.transpose(x, first, second) if x.rank > 1 else x


def _t(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    return w.permute(x, list(reversed(range(x.rank))))


def _matrix_transpose(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return w.transpose(operand(w, a["self"]), -1, -2)


def _movedim(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    sources, targets = ([d] if isinstance(d, int) else d for d in (a["source"], a["destination"]))
    sources, targets = [d % x.rank for d in sources], [d % x.rank for d in targets]
    others = iter(dim for dim in range(x.rank) if dim not in sources)
    moved = dict(zip(targets, sources, strict=True))
    return w.permute(x, [moved[dim] if dim in moved else next(others) for dim in range(x.rank)])


def _select(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    dim, index = a["dim"] % x.rank, a["index"]
    if isinstance(index, int) and index < 0:
        index = added(x.sizes[dim], index)
    if isinstance(index, Operand):
        raise Inexpressible("its index is a tensor")
    return w.reshape(w.slice(x, dim, index, added(index, 1), 1), sizes_of(call))


def _slice(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    dim = a["dim"] % x.rank
    size = x.sizes[dim]
    start = _from_the_front(a["start"], size, 0)
    stop = _from_the_front(a["end"], size, size)
    return w.slice(x, dim, start, stop, sizes_of(call)[dim], number(a["step"], "step"))


def _from_the_front(place: Any, size: Size, default: Size) -> Size:
    """A start or stop, counted from the front. A negative size expression would be taken as counted so already."""
    if place is None:
        return default
    if isinstance(place, int):
        if place < 0:
            return max(size + place, 0) if isinstance(size, int) else f"Max(0, ({size}) + ({place}))"
        return size if place >= 2**62 else place
    if isinstance(place, str):
        # PyTorch has established its sign for the example only.
        text = place.strip()
        return f"Max(0, ({size}) + ({place}))" if text.startswith("-") and "+" not in text else place
    raise Inexpressible(f"its start or end is {place!r:.40}, which depends on data")


def _narrow(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, start = operand(w, a["self"]), a["start"]
    dim = a["dim"] % x.rank
    if isinstance(start, (Operand, torch.Tensor)):
        raise Inexpressible("its start is a tensor")
    start = added(x.sizes[dim], start) if isinstance(start, int) and start < 0 else start
    return w.slice(x, dim, start, added(start, a["length"]), a["length"])


def _split(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
    """split, chunk, tensor_split by number and unsafe_split: parts of one size, the last one smaller."""
    x = operand(w, a["self"])
    dim = a["dim"] % x.rank
    total = x.sizes[dim]
    size = a.get("split_size", a.get("split_size_or_sections"))
    if isinstance(total, str) or isinstance(size, str):
        return _split_free(w, x, dim, size, a.get("chunks", a.get("sections")))
    if size is None and "sections" in a:
        count = a["sections"]
        return _parts(w, x, dim, [total // count + (i < total % count) for i in range(count)])
    if size is None:
        size = max(-(-total // a["chunks"]), 1)
    if isinstance(size, (list, tuple)):
        return _parts(w, x, dim, size)
    if not total:
        return _parts(w, x, dim, [0])
    return _parts(w, x, dim, [min(size, total - start) for start in range(0, total, size)])


def _split_free(w: Writer, x: Operand, dim: int, size: Any, chunks: Any) -> tuple[Operand, ...]:
    """Parts of a dimension of free size: their number must not depend on it."""
    if isinstance(chunks, int) and chunks > 0:
        total = x.sizes[dim]
        size = divided(added(total, chunks - 1), chunks)
        starts = [multiplied(size, i) for i in range(chunks)]
        stops = [*starts[1:], total]
        return tuple(w.slice(x, dim, a, b, added(b, multiplied(a, -1))) for a, b in zip(starts, stops, strict=True))
    if isinstance(size, str):  # the example had the parts that the getitems take
        raise Inexpressible("the number of its parts depends on a free size")
    raise Inexpressible(f"the number of its parts depends on the size {x.sizes[dim]}")


def _split_with_sizes(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
    x = operand(w, a["self"])
    return _parts(w, x, a["dim"] % x.rank, a.get("split_sizes", a.get("split_size")))


def _parts(w: Writer, x: Operand, dim: int, sizes: Any) -> tuple[Operand, ...]:
    parts, start = [], 0
    for size in sizes:
        stop: Any = added(start, size)
        parts.append(w.slice(x, dim, start, stop, size))
        start = stop
    return tuple(parts)


def _unbind(w: Writer, call: Call, a: dict[str, Any]) -> tuple[Operand, ...]:
    x = operand(w, a["self"])
    dim = a["dim"] % x.rank
    if isinstance(x.sizes[dim], str):
        raise Inexpressible(f"the number of its results is the free size {x.sizes[dim]}")
    rest = [size for i, size in enumerate(x.sizes) if i != dim]
    return tuple(w.reshape(w.slice(x, dim, i, i + 1, 1), rest) for i in range(int(x.sizes[dim])))


def _getitem(w: Writer, call: Call, a: dict[str, Any]) -> Any:
    parts, index = a["0"], a["1"]
    if not isinstance(parts, tuple) or not isinstance(index, int) or index >= len(parts):
        raise Inexpressible("it takes a result that the file's operator does not have")
    return parts[index]


def _concat(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    dtype = result_dtype(call)
    sizes = sizes_of(call)
    # PyTorch skips tensors [0] beside others of more dimensions.
    parts = [w.cast(operand(w, x, f"tensors.{i}"), dtype) for i, x in enumerate(a["tensors"])]
    parts = [x for x in parts if not (x.sizes == (0,) and len(sizes) != 1)]
    return w.concat(parts, a["dim"], sizes)


def _stack(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    dtype, sizes = result_dtype(call), sizes_of(call)
    dim = a["dim"] % len(sizes)
    parts = [w.cast(operand(w, x, f"tensors.{i}"), dtype) for i, x in enumerate(a["tensors"])]
    parts = [w.reshape(x, (*x.sizes[:dim], 1, *x.sizes[dim:])) for x in parts]
    return w.concat(parts, dim, sizes)


def _scatter(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """A tensor with a part of a dimension replaced."""
    x, part = operand(w, a["self"]), operand(w, a["src"], "src")
    dim = a["dim"] % x.rank
    size = x.sizes[dim]
    if "index" in a:
        start = added(size, a["index"]) if isinstance(a["index"], int) and a["index"] < 0 else a["index"]
        stop: Size = added(start, 1)
        part = w.reshape(part, (*part.sizes[:dim], 1, *part.sizes[dim:]))
    else:
        start, stop = _from_the_front(a["start"], size, 0), _from_the_front(a["end"], size, size)
        stop = min(stop, size) if isinstance(stop, int) and isinstance(size, int) else stop
        if a["step"] != 1:
            raise Inexpressible(f"its step is {a['step']}; expressed is 1")
    before = w.slice(x, dim, 0, start, start)
    after = w.slice(x, dim, stop, size, added(size, multiplied(stop, -1)))
    parts = [y for y in (before, w.cast(part, x.dtype), after) if y.sizes[dim] != 0]
    return w.concat(parts, dim, x.sizes)


def _repeat(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, repeats = operand(w, a["self"]), a["repeats" if "repeats" in a else "dims"]
    repeats = [1] * (x.rank - len(repeats)) + list(repeats)
    x = w.reshape(x, (*[1] * (len(repeats) - x.rank), *x.sizes))
    apart = [size for s in x.sizes for size in (1, s)]
    repeated = [size for s, count in zip(x.sizes, repeats, strict=True) for size in (count, s)]
    return w.reshape(w.expand(w.reshape(x, apart), repeated), sizes_of(call))


def _repeat_interleave(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, repeats = operand(w, a["self"]), a["repeats"]
    if isinstance(repeats, (Operand, torch.Tensor)):
        raise Inexpressible("its repeats are a tensor, on which the shape of the result depends")
    if a["dim"] is None:
        x, dim = w.reshape(x, [product(x.sizes)]), 0
    else:
        dim = a["dim"] % x.rank
    apart = (*x.sizes[: dim + 1], 1, *x.sizes[dim + 1 :])
    repeated = (*x.sizes[: dim + 1], repeats, *x.sizes[dim + 1 :])
    return w.reshape(w.expand(w.reshape(x, apart), repeated), sizes_of(call))


def _pad(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """Pads are listed from the last dimension on, before and after."""
    x, given, mode = operand(w, a["self"]), a["pad" if "pad" in a else "padding"], a.get("mode", "constant")
    target = str(call.target)
    for name, of in (("reflection", "reflect"), ("replication", "replicate"), ("circular", "circular")):
        mode = of if name in target else mode
    pads = [[0, 0] for _ in range(x.rank)]
    for i in range(len(given) // 2):
        pads[-1 - i] = [expression(given[2 * i]), expression(given[2 * i + 1])]
    flat = [number for pair in pads for number in pair]
    value = (a.get("value") or 0) if mode == "constant" else None
    if value is not None and x.dtype != torch.float32:
        value = bool(value) if x.dtype == torch.bool else int(value)
    return w.node("pad", [x], x.dtype, sizes_of(call), pads=flat, mode=mode, value=value)


def _roll(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, dims, shifts = operand(w, a["self"]), a["dims"], a["shifts"]
    shifts = [shifts] if isinstance(shifts, int) else list(shifts)
    if not all(isinstance(shift, int) for shift in shifts):
        raise Inexpressible(f"its shifts are {shifts}, and must be numbers")
    if not dims:
        flat = w.reshape(x, [product(x.sizes)])
        return w.reshape(w.node("roll", [flat], x.dtype, flat.sizes, dims=[0], shifts=shifts), x.sizes)
    dims = [dims] if isinstance(dims, int) else dims
    together: dict[int, int] = {}
    for dim, shift in zip(dims, shifts, strict=True):
        together[dim % x.rank] = together.get(dim % x.rank, 0) + shift
    return w.node("roll", [x], x.dtype, x.sizes, dims=list(together), shifts=list(together.values()))


def _flip(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    dims = {"fliplr": [1], "flipud": [0]}.get(call.target._schema.name.removeprefix("aten::"), a.get("dims"))  # type: ignore[attr-defined]
    return w.node("flip", [x], x.dtype, x.sizes, dims=[dim % x.rank for dim in dims or []])


# Looking up.


def _take(w: Writer, x: Operand, index: Operand, dim: int) -> Operand:
    sizes = (*x.sizes[:dim], *index.sizes, *x.sizes[dim + 1 :])
    return w.node("take", [x, w.cast(index, torch.int64)], x.dtype, sizes, dim=dim)


def _embedding(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    return _take(w, operand(w, a["weight"], "weight"), operand(w, a["indices"], "indices"), 0)


def _index_select(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x = operand(w, a["self"])
    return w.reshape(_take(w, x, operand(w, a["index"], "index"), a["dim"] % max(x.rank, 1)), sizes_of(call))


def _gather(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, index = operand(w, a["self"]), operand(w, a["index"], "index")
    return w.node("gather", [x, index], x.dtype, index.sizes, dim=a["dim"] % x.rank)


def _index(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """x[…, index, …] with integers of one or more adjacent dimensions, which become one."""
    x = operand(w, a["self"])
    given = {dim: operand(w, index, f"indices.{dim}") for dim, index in enumerate(a["indices"]) if index is not None}
    if any(index.dtype == torch.bool for index in given.values()):
        raise Inexpressible("it is indexed by bool, and the shape of its result depends on the data")
    dims = sorted(given)
    if dims != list(range(dims[0], dims[0] + len(dims))):
        # Dimensions that are apart: PyTorch moves them to the front.
        others = [dim for dim in range(x.rank) if dim not in dims]
        x = w.permute(x, [*dims, *others])
        given = {i: given[dim] for i, dim in enumerate(dims)}
        dims = sorted(given)
    first, last = dims[0], dims[-1]
    index, shape = given[first], given[first].sizes
    for dim in dims:
        shape = broadcast(shape, given[dim].sizes)
    if len(dims) > 1:
        index = None  # type: ignore[assignment]
        for dim in dims:
            # Negative ones count from the end of their own dimension.
            size, part = w.number(x.sizes[dim]), w.cast(given[dim], torch.int64)
            negative = w.binary("lt", part, w.scalar(0, torch.int64), torch.bool)
            part = w.node("where", [negative, w.binary("add", part, size), part], torch.int64, part.sizes)
            index = part if index is None else w.binary("add", w.binary("mul", index, size), part)
        x = w.reshape(x, (*x.sizes[:first], product(x.sizes[first : last + 1]), *x.sizes[last + 1 :]))
    return w.reshape(_take(w, x, index, first), sizes_of(call))


def _difference(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """Each number less the one before it."""
    x = operand(w, a["self"])
    dim = a["dim"] % x.rank
    parts = [w.cast(operand(w, a[key], key), x.dtype) for key in ("prepend", "append") if a[key] is not None]
    if a["n"] != 1:
        raise Inexpressible(f"its n is {a['n']}; expressed is 1")
    if parts:
        parts = [*parts[:1], x, *parts[1:]] if a["prepend"] is not None else [x, *parts]
        total: Size = 0
        for part in parts:
            total = added(total, part.sizes[dim])
        x = w.concat(parts, dim, [total if i == dim else size for i, size in enumerate(x.sizes)])
    size, fewer = x.sizes[dim], sizes_of(call)[dim]
    after, before = w.slice(x, dim, 1, size, fewer), w.slice(x, dim, 0, added(size, -1), fewer)
    return w.binary("xor" if x.dtype == torch.bool else "sub", after, before)


# Shuffles.


def _pixel_shuffle(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, r = operand(w, a["self"]), a["upscale_factor"]
    *front, channels, height, width = x.sizes
    y = w.reshape(x, (*front, divided(channels, r * r), r, r, height, width))
    n = len(front)
    y = w.permute(y, [*range(n), n, n + 3, n + 1, n + 4, n + 2])
    return w.reshape(y, sizes_of(call))


def _pixel_unshuffle(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, r = operand(w, a["self"]), a["downscale_factor"]
    *front, channels, height, width = x.sizes
    y = w.reshape(x, (*front, channels, divided(height, r), r, divided(width, r), r))
    n = len(front)
    y = w.permute(y, [*range(n), n, n + 2, n + 4, n + 1, n + 3])
    return w.reshape(y, sizes_of(call))


def _channel_shuffle(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    x, groups = operand(w, a["self"]), a["groups"]
    y = w.reshape(x, (x.sizes[0], groups, divided(x.sizes[1], groups), *x.sizes[2:]))
    return w.reshape(w.transpose(y, 1, 2), sizes_of(call))


def _unfold(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """Windows of a dimension, which become a last one: by one index for each place of each window."""
    x = operand(w, a["self"])
    dim, size, step = a["dimension"] % x.rank, a["size"], a["step"]
    count = sizes_of(call)[dim]
    starts = w.with_number("mul", w.arange(count), step) if step != 1 else w.arange(count)
    index = w.binary("add", w.reshape(starts, (count, 1)), w.arange(size))
    taken = _take(w, x, index, dim)  # […, count, size, …]
    order = [*range(dim + 1), *range(dim + 2, taken.rank), dim + 1]
    return w.permute(taken, order)


def _im2col(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
    """`F.unfold`: the pixels of each window as channels."""
    x = operand(w, a["self"])
    kernel, dilation, padding, stride = (a[key] for key in ("kernel_size", "dilation", "padding", "stride"))
    if any(padding):
        pads = [0, 0] * (x.rank - 2) + [p for p in padding for _ in range(2)]
        sizes = [*x.sizes[:-2], *(added(s, 2 * p) for s, p in zip(x.sizes[-2:], padding, strict=True))]
        x = w.node("pad", [x], x.dtype, sizes, pads=pads, mode="constant", value=0)
    for i in range(2):  # rows become […, KH, OH, W], then columns […, KH, OH, KW, OW]
        dim = x.rank - 2 + i
        count = added(divided(added(x.sizes[dim], -dilation[i] * (kernel[i] - 1) - 1), stride[i]), 1)
        inside = w.reshape(w.with_number("mul", w.arange(kernel[i]), dilation[i]), (kernel[i], 1))
        x = _take(w, x, w.binary("add", inside, w.with_number("mul", w.arange(count), stride[i])), dim)
    n = x.rank - 4
    return w.reshape(w.permute(x, [*range(n), n, n + 2, n + 1, n + 3]), sizes_of(call))


def _triangle(upper: bool) -> Handler:
    def write(w: Writer, call: Call, a: dict[str, Any]) -> Operand:
        x, diagonal = operand(w, a["self"]), number(a["diagonal"], "diagonal")
        rows = w.reshape(w.arange(x.sizes[-2]), (x.sizes[-2], 1))
        offset = w.binary("sub", w.arange(x.sizes[-1]), rows)
        kept = w.binary("ge" if upper else "le", offset, w.scalar(diagonal, torch.int64), torch.bool)
        zero = w.scalar(False if x.dtype == torch.bool else 0, x.dtype)
        return w.node("where", [kept, x, zero], x.dtype, x.sizes)

    return write


_NEW_SHAPE = (
    "reshape view _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as _reshape_alias "
    "atleast_1d atleast_2d atleast_3d ravel"
)


def _every(names: str, handler: Handler) -> dict[Any, Handler]:
    """All overloads of operators, as far as this PyTorch has them."""
    found: dict[Any, Handler] = {}
    for name in names.split():
        packet = getattr(aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            takes_tensors = overload == "Sequence"
            if not overload.endswith("out") and not takes_tensors and not (name == "view" and overload == "dtype"):
                found[getattr(packet, overload)] = handler
    return found


HANDLERS: dict[Any, Handler] = {
    **_every(_NEW_SHAPE, _reshape),
    aten.atleast_1d.Sequence: _at_least_1d,
    **_every("expand expand_as broadcast_to", _expand),
    **_every("permute", _permute),
    **_every("transpose swapaxes swapdims", _transpose),
    **_every("t numpy_T", _t),
    **_every("mT matrix_H adjoint", _matrix_transpose),
    **_every("movedim moveaxis", _movedim),
    aten.select.int: _select,
    aten.slice.Tensor: _slice,
    **_every("narrow", _narrow),
    aten.split.Tensor: _split,
    aten.split.sizes: _split_with_sizes,
    aten.split_with_sizes.default: _split_with_sizes,
    aten.chunk.default: _split,
    aten.tensor_split.sections: _split,
    aten.unbind.int: _unbind,
    operator.getitem: _getitem,
    **_every("cat concat concatenate", _concat),
    aten.stack.default: _stack,
    **_every("repeat tile", _repeat),
    aten.repeat_interleave.self_int: _repeat_interleave,
    **_every(
        "pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
        "replication_pad3d _pad_circular",
        _pad,
    ),
    aten.roll.default: _roll,
    **_every("slice_scatter select_scatter", _scatter),
    **_every("flip fliplr flipud", _flip),
    aten.embedding.default: _embedding,
    aten.index_select.default: _index_select,
    aten.gather.default: _gather,
    aten.index.Tensor: _index,
    aten.diff.default: _difference,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.unfold.default: _unfold,
    aten.im2col.default: _im2col,
    **_every("tril", _triangle(upper=False)),
    **_every("triu", _triangle(upper=True)),
}
