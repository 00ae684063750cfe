"""Directions of weight norm: every row keeps a weight, because weight norm divides a row by its norm.

Weight norm computes w = g · v / ‖v‖ for each row of v. Without a weight in a row that is 0 / 0, which is NaN. A
selection knows nothing of rows, so `keep_rows` corrects its result. All weights of v that a selection would put to zero
in an emptied row compete for the row's place, and the largest gets it. The smallest weights of other rows are pruned
instead, so the layer's count does not change.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fggp.scores import Score
from fggp.selection.chains import count_marked, count_marked_each, select_smallest
from fggp.selection.groups import Marks
from fggp.weights.layers import Layer, flatten
from fggp.weights.processes import ALONE, Processes
from fggp.weights.prunable import Prunable

_SIZE = Score("|v|", lambda block: block.weight.abs().nan_to_num(math.inf, math.inf))
"""|v|, NaN as infinity; equal ones by position."""


def least_active(weight: Prunable) -> int:
    """The number of active weights that a weight needs: one for each row of a direction, otherwise none."""
    return weight.rows or 0


def keep_rows(
    weights: Sequence[Prunable],
    layers: Sequence[Layer],
    before: Sequence[Tensor],
    active: Sequence[Tensor],
    processes: Processes = ALONE,
) -> Marks:
    """Correct a selection so that no row of a direction loses its last weight that is not zero.

    In each row that did, the largest |v| of the weights that it lost is active again. For each of them, the active
    weight of the layer with the smallest |v| is pruned whose row keeps another. Of equal weights, those at the lower
    position are pruned. The result is the same on any number of processes.

    Args:
        weights: the weights; those with ``norm_dim`` are directions, of whole rows in each process.
        layers: the same, flattened.
        before: the active weights before the selection, bool [n] for each layer.
        active: those after it; not modified.
        processes: those that hold the weights; all of them call this together.

    Returns:
        The active weights, as many as before in each layer. Layers that need no correction share memory with
        ``active``.

    Raises:
        ValueError: a layer that needs a correction has fewer active weights than rows (`least_active`).
    """
    result = list(active)
    directions = [i for i, w in enumerate(weights) if w.norm_dim is not None]
    lost = [_lost_rows(weights[i], layers[i], before[i], active[i]) for i in directions]
    owned = [layers[i].owned for i in directions]
    lost_counts = count_marked_each(owned, lost, processes)
    active_counts = count_marked_each(owned, [active[i] for i in directions], processes)
    for i, rows, lost_count, count in zip(directions, lost, lost_counts, active_counts, strict=True):
        if lost_count:
            if count < least_active(weights[i]):
                raise ValueError(
                    f"{count} weights of {weights[i].name!r} would stay, fewer than its {weights[i].rows} rows. Each "
                    f"row needs one, because weight norm divides by its norm: choose a lower sparsity, or leave this "
                    f"weight out with exclude="
                )
            result[i] = _corrected(weights[i], layers[i], before[i], active[i], rows, lost_count, processes)
    return result


def keep_rows_of_masks(
    weights: Sequence[Prunable], masks: Sequence[Tensor], processes: Processes = ALONE
) -> list[Tensor]:
    """`keep_rows` for masks of a dense model, bool tensors of the shapes of this process's parts."""
    if all(w.norm_dim is None for w in weights):
        return list(masks)
    layers = flatten(weights, owned=processes.owned or None)
    active = [layer.layout.flat(m) for layer, m in zip(layers, masks, strict=True)]
    kept = keep_rows(weights, layers, [torch.ones_like(a) for a in active], active, processes)
    return [layer.layout.shaped(m) for layer, m in zip(layers, kept, strict=True)]


def rows_without_weight(
    weights: Sequence[Prunable], masks: Sequence[Tensor], processes: Processes = ALONE
) -> dict[str, int]:
    """How many rows of each direction a mask leaves without a weight, by name, where there are any.

    Args:
        weights: the weights.
        masks: bool tensors of the shapes of this process's parts.
        processes: those that hold the weights; all of them call this together.
    """
    layers = flatten(weights, owned=processes.owned or None)
    directions = [(w, layer, m) for w, layer, m in zip(weights, layers, masks, strict=True) if w.norm_dim is not None]
    empty = [~_by_row(w, m).any(1) for w, _, m in directions]
    counts = count_marked_each([layer.owned for _, layer, _ in directions], empty, processes)
    return {w.name: n for (w, _, _), n in zip(directions, counts, strict=True) if n}


def _by_row(weight: Prunable, tensor: Tensor) -> Tensor:
    """A tensor of the shape of this process's part, as [rows, weights in a row]; positions ascend in each row."""
    assert weight.norm_dim is not None
    if not tensor.numel():  # a process may hold nothing of a weight
        return tensor.reshape(0, 1)
    if weight.norm_dim == -1:
        return tensor.reshape(1, -1)
    return tensor.movedim(weight.norm_dim, 0).reshape(tensor.shape[weight.norm_dim], -1)


def _lost_rows(weight: Prunable, layer: Layer, before: Tensor, active: Tensor) -> Tensor:
    """The rows that a selection leaves without a weight other than zero, though they had one: bool [rows]."""
    nonzero = layer.weight != 0
    had, has = (_by_row(weight, layer.layout.shaped(marks & nonzero)).any(1) for marks in (before, active))
    return had & ~has


def _corrected(
    weight: Prunable,
    layer: Layer,
    before: Tensor,
    active: Tensor,
    lost: Tensor,
    lost_count: int,
    processes: Processes,
) -> Tensor:
    """The active weights of a layer with one in each of the lost rows, and as many others pruned."""

    def by_row(flat: Tensor) -> Tensor:
        return _by_row(weight, layer.layout.shaped(flat))

    def in_memory_order(rows: Tensor) -> Tensor:
        shape = layer.layout.shape
        if weight.norm_dim == -1:
            return layer.layout.flat(rows.reshape(shape))
        assert weight.norm_dim is not None
        moved = [shape[weight.norm_dim], *(n for d, n in enumerate(shape) if d != weight.norm_dim)]
        return layer.layout.flat(rows.reshape(moved).movedim(0, weight.norm_dim))

    size = by_row(_SIZE.of(layer.block(0, len(layer))))
    active_rows = by_row(active)
    put_back = _largest_of_each(size, by_row(before & ~active)) & lost[:, None]
    active_rows = active_rows | put_back
    spare = in_memory_order(active_rows & ~_largest_of_each(size, active_rows)).contiguous()
    count = count_marked([layer], [spare], processes)
    select_smallest([layer], [spare], count, _SIZE, lost_count, processes)
    return in_memory_order(active_rows) & ~spare


def _largest_of_each(size: Tensor, marks: Tensor) -> Tensor:
    """Of each row's marked weights the largest, of equal ones the last: bool [rows, weights in a row]."""
    place = torch.arange(size.shape[1], device=size.device)
    value = torch.where(marks, size, -1)
    is_largest = marks & (value == value.amax(1, keepdim=True))
    return is_largest & (place == torch.where(is_largest, place, -1).amax(1, keepdim=True))
