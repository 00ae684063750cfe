"""N:M patterns (`fggp.NM`): which weights of a group of M are the N that may stay.

Single weights are selected. A pattern only says among which: those that exceed N in their groups are pruned before any
other, and a weight grows only where its group has room. So it needs nothing but one question, which `lowest_in_groups`
answers: in each group, which marked weights rank lowest?
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from fggp.scores import Score, largest
from fggp.selection.groups import PIECE_SIZE, Marks, assembled, cut_layers
from fggp.weights.layers import Layer
from fggp.weights.processes import ALONE, Processes


def has_pattern(layers: Sequence[Layer]) -> bool:
    """Whether some layer keeps to a pattern."""
    return any(layer.grid is not None and layer.grid.limit is not None for layer in layers)


def surplus(layers: Sequence[Layer], active: Sequence[Tensor], score: Score, processes: Processes = ALONE) -> Marks:
    """The lowest-ranked active weights of each group, as many as exceed N.

    Args:
        layers: the weights and gradients.
        active: the active weights, a bool tensor [n] for each layer.
        score: what they are ranked by in their groups.
        processes: those that hold the weights; all of them call this together.
    """
    counts = _counts(layers, active, processes)
    return _lowest(layers, active, score, [n - _limit(la) for la, n in zip(layers, counts, strict=True)], processes)


def leaders(layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, processes: Processes = ALONE) -> Marks:
    """The N lowest-ranked of the marked weights of each group; the arguments are those of `surplus`."""
    counts = _counts(layers, marks, processes)
    return _lowest(
        layers, marks, score, [torch.full_like(n, _limit(la)) for la, n in zip(layers, counts, strict=True)], processes
    )


def growable(layer: Layer, before: Tensor, kept: Tensor, score: Score, processes: Processes = ALONE) -> Tensor:
    """The inactive weights of a layer that may all grow together: bool [n].

    A group grows to N active weights; if it had more before the update, to as many as it had.

    Args:
        layer: the weights and gradients.
        before: the active weights before the update, bool [n].
        kept: those that are not dropped, bool [n].
        score: the weights with the largest scores grow first.
        processes: those that hold the weights; all of them call this together.
    """
    [old], [left] = _counts([layer], [before], processes), _counts([layer], [kept], processes)
    room = old.clamp(min=_limit(layer)) - left
    return _lowest([layer], [~kept], largest(score), [room], processes)[0]


def allowed(layers: Sequence[Layer], active: Sequence[Tensor], processes: Processes = ALONE) -> list[int]:
    """How many of each layer's active weights may stay, on all processes: at most N in each group."""
    whole = cut_layers(layers, processes)
    counts = []
    for layer, n, is_whole in zip(layers, _counts(layers, active, processes), whole, strict=True):
        counts_here = processes.first if is_whole else layer.owned
        counts.append(int(n.clamp(max=_limit(layer)).sum()) if counts_here else 0)
    return processes.sum(counts)


def _limit(layer: Layer) -> int:
    assert layer.grid is not None
    assert layer.grid.limit is not None
    return layer.grid.limit


def _counts(layers: Sequence[Layer], marks: Sequence[Tensor], processes: Processes) -> list[Tensor]:
    """How many weights of each group are marked: ints, for each layer in the shape of its groups.

    Of a layer that some process's part cuts inside a group, all processes have all groups.
    """
    found = []
    for layer, own, whole in zip(layers, marks, cut_layers(layers, processes), strict=True):
        cells = _cells(layer, own, whole, processes)
        dtype = torch.int8 if len(cells) < 64 else torch.int32  # short numbers are fast
        count = torch.zeros_like(cells[0], dtype=dtype)
        for cell in cells:
            count += cell
        found.append(count)
    return found


def _lowest(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, quotas: Sequence[Tensor], processes: Processes
) -> Marks:
    """In each group, of the marked weights the lowest-ranked, as many as its quota or all.

    Equal scores rank by tie-breakers, then by position; NaN as infinity.

    Args:
        layers: the weights and gradients.
        marks: a bool tensor [n] for each layer.
        score: what they are ranked by.
        quotas: for each layer an int tensor in the shape of its groups.
        processes: those that hold the weights.
    """
    result = []
    wanted = processes.sum([int((quota > 0).any()) for quota in quotas])
    for layer, own, quota, whole, some in zip(
        layers, marks, quotas, cut_layers(layers, processes), wanted, strict=True
    ):
        if not some:  # as in every update after a pattern is reached
            result.append(torch.zeros_like(own))
            continue
        marked = _cells(layer, own, whole, processes)
        keys = _keys(layer, score, whole, processes)
        chosen = torch.empty((*quota.shape, len(marked)), dtype=torch.bool, device=quota.device)
        line = max(1, quota[:1].numel() * len(marked))
        size = max(1, PIECE_SIZE // line) if quota.device.type == "cpu" else len(quota)
        for start in range(0, len(quota), max(1, size)):
            piece = slice(start, start + size)
            ranked = [[v[piece].contiguous() for v in values] for values in (marked, *keys)]
            for place, lowest in enumerate(_lowest_of_each(ranked[0], ranked[1:], quota[piece])):
                chosen[piece, ..., place] = lowest
        result.append(_from_cells(layer, chosen, whole))
    return result


def _lowest_of_each(marked: Sequence[Tensor], keys: Sequence[Sequence[Tensor]], quota: Tensor) -> list[Tensor]:
    """`_lowest` for groups given by their elements: for each of these bool, and the keys to rank it by."""
    ahead = [torch.zeros_like(quota) for _ in marked]  # how many marked ones of its group rank below each
    for i in range(len(marked)):
        for j in range(i):
            first = _precedes([key[j] for key in keys], [key[i] for key in keys])
            ahead[i] += marked[j] & first
            ahead[j] += marked[i] & ~first
    return [m & (a < quota) for m, a in zip(marked, ahead, strict=True)]


def _keys(layer: Layer, score: Score, whole: bool, processes: Processes) -> list[list[Tensor]]:
    """The values of a score and of its tie-breakers, each as `_cells`."""
    found, of = [], score
    while True:
        values = of.of(layer.block(0, len(layer)))
        if values.is_floating_point():
            values = values.nan_to_num(math.inf, math.inf, -math.inf)
        found.append(_cells(layer, values, whole, processes))
        if of.ties is None:
            return found
        of = of.ties


def _precedes(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """Whether weights rank below others at higher positions, by their keys, the most significant first."""
    result = first[-1] <= second[-1]
    for a, b in zip(reversed(first[:-1]), reversed(second[:-1]), strict=True):
        result = (a < b) | ((a == b) & result)
    return result


def _divided(layer: Layer) -> tuple[int, int]:
    """The dimension that the groups divide, and how many weights they have."""
    assert layer.grid is not None
    d = next((d for d, step in enumerate(layer.grid.steps) if step > 1), 0)
    return d, layer.grid.steps[d]


def _cells(layer: Layer, flat: Tensor, whole: bool, processes: Processes) -> list[Tensor]:
    """The first, the second, … element of each group; zero or False where a last, shorter group has none.

    Args:
        layer: the weights.
        flat: a number for each, [n].
        whole: whether to return the groups of all processes.
        processes: those that hold the weights.
    """
    d, step = _divided(layer)
    shaped = layer.layout.shaped(flat)
    if whole:
        shaped = assembled(layer, shaped, processes)
    missing = -shaped.shape[d] % step
    if missing:
        shaped = pad(shaped, [0, 0] * (shaped.ndim - d - 1) + [0, missing])
    return list(torch.unflatten(shaped, d, (shaped.shape[d] // step, step)).unbind(d + 1))


def _from_cells(layer: Layer, cells: Tensor, whole: bool) -> Tensor:
    """The inverse of `_cells`, of this process's part, [n]; the elements of a group lie along the last dimension."""
    d, _ = _divided(layer)
    part = layer.layout.part
    length = part.full_shape[d] if whole else part.shape[d]
    shaped = cells.movedim(-1, d + 1).flatten(d, d + 1).narrow(d, 0, length)
    return layer.layout.flat(part.cut_from(shaped) if whole else shaped).contiguous()
