"""Groups of weights that are pruned as one: a selection over groups is one over their scores, expanded to masks.

`in_groups` makes layers whose elements are the groups. Everything that selects weights selects groups of such layers
in the same way: counts, quotas, ties and positions are those of groups. `of_weights` expands the result.

A group's score is the mean of its weights' scores. Its position is its index in the grid of the weight's groups, which
puts groups in the order of their first weights. The result is the same for every memory layout, device and sharding,
because a sum is always taken in the same order: along each dimension of the group in turn, its second half is added to
its first half, and so on with what that gives, until one number is left. A shorter group has zeros at its end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from fggp.scores import Formula, Quantity, Score
from fggp.weights.dtensor import Part
from fggp.weights.grid import Grid
from fggp.weights.layers import Block, Layer, Layout
from fggp.weights.processes import ALONE, Processes

Marks = list[Tensor]
"""A set of weights: for each layer a bool tensor [n] in the layer's memory order."""

PIECE_SIZE = 1 << 18
"""Weights whose scores are added up at a time on a CPU: temporaries of this size stay in cache."""

SHORT = 32
"""Up to this extent, a sum over a dimension of a group adds slices, which are long, instead of halves."""


@dataclass(frozen=True, kw_only=True)
class GroupLayer(Layer):
    """A layer whose elements are the groups of another one; ``weight`` is zero, because groups have none.

    Args:
        members: the layer of the weights.
        whole: whether this process has all of the layer's groups, though it holds only a part of its weights: some
            part ends inside a group. The first process then counts them.
    """

    members: Layer
    whole: bool


def in_groups(
    layers: Sequence[Layer], marks: Sequence[Tensor], processes: Processes = ALONE
) -> tuple[list[Layer], Marks]:
    """Layers of groups and the marked ones; unchanged if single weights are pruned.

    Args:
        layers: the weights and gradients.
        marks: the marked weights, a bool tensor [n] for each layer. Of a group, all or none are marked.
        processes: those that hold the weights; all of them call this together.
    """
    if not any(layer.grid is not None and layer.grid.limit is None for layer in layers):
        return list(layers), list(marks)
    groups: list[Layer] = []
    marked = []
    for layer, own, whole in zip(layers, marks, cut_layers(layers, processes), strict=True):
        grid, part = layer.grid, layer.layout.part
        assert grid is not None
        shaped = layer.layout.shaped(own)
        if whole:
            shaped, part = assembled(layer, shaped, processes), full(part)
        cells = grid.of_part(part)
        layout = Layout(cells, layer.layout.order)
        group = GroupLayer(
            layer.name,
            layout,
            layer.weight.new_zeros(()).expand(math.prod(cells.shape)),
            None,
            layer.dtype,
            owned=processes.first if whole else layer.owned,
            members=layer,
            whole=whole,
        )
        groups.append(group)
        marked.append(layout.flat(grid.firsts(part, shaped)))
    return groups, marked


def of_weights(layers: Sequence[Layer], marks: Sequence[Tensor]) -> Marks:
    """The weights of marked groups; what `in_groups` left unchanged is left so.

    Args:
        layers: those that `in_groups` returned.
        marks: a bool tensor [groups] for each.
    """
    return [_expanded(layer, m) if isinstance(layer, GroupLayer) else m for layer, m in zip(layers, marks, strict=True)]


def by_value(layers: Sequence[Layer], score: Score, processes: Processes = ALONE) -> tuple[Sequence[Layer], Score]:
    """For layers of groups: layers whose ``weight`` is the groups' score, and the score that reads it, without ties.

    Unchanged for layers of weights, and for positional scores, which groups have like weights.

    Args:
        layers: of weights, or of groups.
        score: a score of weights.
        processes: those that hold the weights; all of them call this together.
    """
    if score.positional or not any(isinstance(layer, GroupLayer) for layer in layers):
        return layers, score
    # A formula keeps its sign, so that the C++ kernels read the means.
    negated = score.formula is not None and score.formula.negated
    of = _value if score.formula is None else Formula(Quantity.WEIGHT, negated)
    valued = [
        replace(layer, weight=_means(layer, score.of, processes)) if isinstance(layer, GroupLayer) else layer
        for layer in layers
    ]
    return valued, Score(score.name, of, score.needs_gradient)


def _value(block: Block) -> Tensor:
    return block.layer.weight[block.where]


def cut_layers(layers: Sequence[Layer], processes: Processes) -> list[bool]:
    """For each layer whether the part of some process ends inside a group."""
    cut = [layer.grid is not None and layer.grid.cuts(layer.layout.part) for layer in layers]
    return [count > 0 for count in processes.sum(list(map(int, cut)))]


def assembled(layer: Layer, own: Tensor, processes: Processes) -> Tensor:
    """The full tensor of which each process has the part that belongs to its weights.

    Args:
        layer: the weights.
        own: this process's part.
        processes: those that hold the weights; all of them call this together.
    """
    flat = layer.layout.flat(own.view(torch.uint8) if own.dtype == torch.bool else own)
    index = layer.layout.position(torch.arange(len(flat) if layer.owned else 0, device=flat.device))
    values = processes.gather(flat[: len(index)])
    result = flat.new_zeros(layer.total_size)
    result[processes.gather(index)] = values
    return result.view(own.dtype).view(layer.layout.part.full_shape)


def full(part: Part) -> Part:
    """All of the tensor that a part belongs to."""
    return Part(part.full_shape, part.full_shape, (0,) * len(part.full_shape))


def _expanded(group: GroupLayer, marks: Tensor) -> Tensor:
    """The marks of the weights of a layer, [n] in its memory order, from those of its groups."""
    layout, grid = group.members.layout, group.members.grid
    assert grid is not None
    shaped, part = group.layout.shaped(marks), full(layout.part) if group.whole else layout.part
    for d, step in enumerate(grid.steps):
        if step > 1:
            size = shaped.shape[d]
            repeated = shaped.unsqueeze(d + 1).expand(*shaped.shape[: d + 1], step, *shaped.shape[d + 1 :])
            shaped = repeated.flatten(d, d + 1).narrow(d, 0, min(size * step, part.shape[d]))
    return layout.flat(layout.part.cut_from(shaped) if group.whole else shaped).contiguous()


def _means(group: GroupLayer, of: Callable[[Block], Tensor], processes: Processes) -> Tensor:
    """The mean of the weights' scores for each of a layer's groups, [groups]."""
    layer = group.members
    grid, layout = layer.grid, layer.layout
    assert grid is not None
    if group.whole:
        scores = assembled(layer, layout.shaped(of(layer.block(0, len(layer)))), processes)
        return group.layout.flat(_means_of_part(grid, full(layout.part), scores))
    # Some indices of the slowest dimension at a time, whole groups of them.
    slowest, step = layout.order[0], grid.steps[layout.order[0]]
    length = layout.shape[slowest]
    line = len(layer) // max(1, length)
    piece = length if layer.weight.device.type != "cpu" else max(1, PIECE_SIZE // max(1, line * step)) * step
    found = []
    for start in range(0, max(1, length), max(1, piece)):
        stop = min(start + piece, length)
        part = _narrowed(layout.part, slowest, start, stop)
        scores = Layout(part, layout.order).shaped(of(layer.block(start * line, stop * line)))
        found.append(_means_of_part(grid, part, scores))
    return group.layout.flat(torch.cat(found, slowest)).contiguous()


def _means_of_part(grid: Grid, part: Part, scores: Tensor) -> Tensor:
    """The means of the cells of a part, from the scores of its weights, both in the part's shape."""
    sizes = 1
    by_cell: list[Tensor] = []
    for d, step in enumerate(grid.steps):
        if step == 1:
            continue
        length = scores.shape[d]
        scores = _add_up(scores, d, step)
        if length % step == 0:
            sizes *= step
        else:  # the last cell of the weight is shorter
            extent = torch.full((scores.shape[d],), step, device=scores.device)
            extent[-1] = length % step
            by_cell.append(extent.view(-1, *[1] * (scores.ndim - d - 1)))
    for extent in by_cell:
        sizes = sizes * extent  # type: ignore[assignment]
    return scores / sizes


def _add_up(values: Tensor, dim: int, step: int) -> Tensor:
    """The sum over each run of ``step`` indices of a dimension, in the order that this module's text defines."""
    if values.shape[dim] % step:
        values = pad(values, [0, 0] * (values.ndim - dim - 1) + [0, -values.shape[dim] % step])
    runs = torch.unflatten(values, dim, (values.shape[dim] // step, step))
    while runs.shape[dim + 1] > SHORT:
        size = runs.shape[dim + 1]
        first, second = torch.split(runs, [size - size // 2, size // 2], dim + 1)
        if size % 2:
            first = first.clone()
            first.narrow(dim + 1, 0, size // 2).add_(second)
            runs = first
        else:
            runs = first + second
    slices = list(runs.unbind(dim + 1))
    while len(slices) > 1:
        half = len(slices) - len(slices) // 2
        slices = [slices[i] + slices[half + i] if half + i < len(slices) else slices[i] for i in range(half)]
    return slices[0]


def _narrowed(part: Part, dim: int, start: int, stop: int) -> Part:
    """The indices start … stop − 1 of a dimension of a part."""
    shape, offset = list(part.shape), list(part.offset)
    shape[dim], offset[dim] = stop - start, part.offset[dim] + start
    return Part(part.full_shape, tuple(shape), tuple(offset))
