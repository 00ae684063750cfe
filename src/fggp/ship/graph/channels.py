"""Recognising splits, slices, concatenations and shuffles of channels, and composing them."""

from __future__ import annotations

import operator
from dataclasses import replace
from itertools import accumulate

import torch
from torch._ops import OpOverload

from fggp.ship.graph.calls import Call, arguments
from fggp.ship.graph.operations import Channels, Concat, Graph, Op, Value

aten = torch.ops.aten
_SPLITS = frozenset([aten.chunk.default, aten.split.Tensor, aten.split_with_sizes.default])


def recognise_channels(graph: Graph) -> Graph:
    """Replace splits, slices and shuffles of channels by `Channels`. What only they have read is still in the graph."""
    made: dict[Value, Op] = {}
    ops: list[Op] = []
    for op in graph.ops:
        if isinstance(op, Call) and isinstance(op.output.dtype, torch.dtype):
            op = _part_of_split(op, made) or _slice(op) or _shuffle(op, made) or op
        made[op.output] = op
        ops.append(op)
    return replace(graph, ops=tuple(ops))


def _is_image(x: object) -> bool:
    return isinstance(x, Value) and len(x.shape) == 4 and x.dtype == torch.float32 and isinstance(x.sizes[1], int)


def _part_of_split(op: Call, made: dict[Value, Op]) -> Channels | None:
    if op.target is not operator.getitem or not isinstance(op.args[1], int):
        return None
    split = made.get(op.args[0])
    if not isinstance(split, Call) or split.target not in _SPLITS:
        return None
    given = arguments(split.target, split.args, split.kwargs)
    x, dim, part = given["self"], given["dim"], op.args[1]
    if not _is_image(x) or dim not in (1, -3) or part < 0:
        return None
    if split.target is aten.split_with_sizes.default:
        first = sum(given["split_sizes"][:part])
    else:
        size = given["split_size"] if "split_size" in given else -(-x.shape[1] // given["chunks"])
        first = size * part
    return Channels((x,), op.output, tuple(range(first, first + op.output.shape[1])))


def _slice(op: Call) -> Channels | None:
    if op.target is not aten.slice.Tensor:
        return None
    given = arguments(op.target, op.args, op.kwargs)
    x = given["self"]
    if (
        not _is_image(x)
        or given["dim"] not in (1, -3)
        or any(isinstance(v, Value) for v in given.values() if v is not x)
    ):
        return None
    taken = range(x.shape[1])[slice(given["start"], given["end"], given["step"])]
    return Channels((x,), op.output, tuple(taken)) if len(taken) else None


def _shuffle(op: Call, made: dict[Value, Op]) -> Channels | None:
    """Channels that were split into groups, the groups' channels then interleaved."""
    if isinstance(op.target, OpOverload) and op.target is aten.channel_shuffle.default:
        given = arguments(op.target, op.args, op.kwargs)
        return _interleaved(given["self"], op.output, given["groups"])
    if op.target is not aten.reshape.default:
        return None
    swapped = made.get(op.args[0])
    if not isinstance(swapped, Call) or swapped.target is not aten.transpose.int:
        return None
    grouped = made.get(swapped.args[0])
    if not isinstance(grouped, Call) or grouped.target is not aten.reshape.default:
        return None
    x, y, between = grouped.args[0], op.output, grouped.output.sizes
    if {d % 5 for d in swapped.args[1:3]} != {1, 2} or len(between) != 5 or not (_is_image(x) and x.sizes == y.sizes):
        return None
    if (between[0], *between[3:]) != (x.sizes[0], *x.sizes[2:]):
        return None
    return _interleaved(x, y, between[1])


def _interleaved(x: Value, y: Value, groups: int | str) -> Channels | None:
    if not _is_image(x) or not isinstance(groups, int) or x.shape[1] % groups:
        return None
    size = x.shape[1] // groups
    return Channels((x,), y, tuple(group * size + i for i in range(size) for group in range(groups)))


def compose_channels(graph: Graph) -> Graph:
    """Let each `Channels` read what its inputs are made of, where that saves a copy; concatenations become `Channels`.

    Args:
        graph: without unused operations, which would count as readers.

    Returns:
        The graph. What was composed is still in it.
    """
    uses = graph.uses()
    made: dict[Value, Channels] = {}
    ops: list[Op] = []
    for op in graph.ops:
        found = op
        if isinstance(op, Concat) and op.dim == 1 and all(map(_is_image, op.inputs)):
            found = Channels(op.inputs, op.output, tuple(range(op.output.shape[1])))
        if isinstance(found, Channels):
            found = _with_sources(found, {v: m for v, m in made.items() if uses[v] == 1 or len(m.inputs) == 1})
            made[found.output] = found
        ops.append(found)
    return replace(graph, ops=tuple(ops))


def _with_sources(op: Channels, made: dict[Value, Channels]) -> Channels:
    sources: list[tuple[Value, int]] = []  # of each channel of the inputs side by side
    for v in op.inputs:
        if v in made:
            inner = _channels_of(made[v].inputs)
            sources += [inner[i] for i in made[v].index]
        else:
            sources += _channels_of((v,))
    taken = [sources[i] for i in op.index]
    inputs = tuple(dict.fromkeys(v for v, _ in taken))
    first = dict(zip(inputs, accumulate((v.shape[1] for v in inputs), initial=0), strict=False))
    return replace(op, inputs=inputs, index=tuple(first[v] + i for v, i in taken))


def _channels_of(values: tuple[Value, ...]) -> list[tuple[Value, int]]:
    return [(v, i) for v in values for i in range(v.shape[1])]
