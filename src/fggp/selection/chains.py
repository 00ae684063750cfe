"""Chains of Top-K steps: exact selection of the lowest-ranked weights over many tensors at once; regrowth.

A Top-K step finds the k-th smallest score (`kth`) and selects the weights that score less (`passes`). Weights that tie
for the last place are ranked by the score's tie-breakers, then by position. The rank is a total order, so the result is
unique. It depends on the values alone, not on memory layout, block size, the sample, or the number of processes.

Layers may consist of groups of weights (`fggp.selection.groups`): then groups are counted, ranked and selected. Or
their weights keep to a pattern (`fggp.selection.patterns`), which says in what order they may be selected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fggp.scores import Score, largest, position
from fggp.selection import passes, patterns
from fggp.selection.groups import Marks, by_value, in_groups, of_weights
from fggp.selection.kth import find_threshold
from fggp.selection.one_gpu import select_smallest_joined
from fggp.selection.passes import EXCLUDED, SELECTED, TIED
from fggp.weights.layers import Layer
from fggp.weights.processes import ALONE, Processes


@dataclass(frozen=True)
class TopK:
    """One step of a chain: select the ``quota`` lowest-scoring weights among those that the step before selected.

    The first step selects among the active weights. The weights that the last step selects are pruned.
    """

    score: Score
    quota: int


@dataclass(frozen=True)
class Exchange:
    """Regrowth: in each layer drop ⌈share·active⌉ weights, then grow the same number of inactive ones.

    A dropped weight is inactive, so it may grow again at once. If weights are pruned in groups, groups are dropped and
    grown.

    Args:
        share: the part of the layer's active weights to exchange, in [0, 1].
        drop: the active weights with the smallest of these scores are dropped.
        grow: the inactive weights with the largest of these scores are grown.
    """

    share: float
    drop: Score
    grow: Score


def prune(
    layers: Sequence[Layer],
    active: Sequence[Tensor],
    count: int,
    target: int,
    chain: Callable[[int, int], Sequence[TopK]],
    processes: Processes = ALONE,
) -> Marks:
    """Prune active weights, or groups, to a target and return those that are pruned.

    If layers keep to a pattern, the weights that exceed it are pruned before all others. Which those are is ranked in
    each group by the score of the chain's last step; among them, the chain chooses.

    Args:
        layers: the weights and gradients, ranked together.
        active: the weights to select from, a bool tensor [n] for each layer; not modified.
        count: how many these are, on all processes.
        target: how many of them stay.
        chain: the chain that leaves a number (its second argument) of a number of active weights (its first).
        processes: those that hold the weights; all of them call this together.
    """
    steps = chain(count, target)
    if not patterns.has_pattern(layers):
        return run_chain(layers, active, steps, processes)
    surplus = patterns.surplus(layers, active, steps[-1].score, processes)
    exceeding, excess = count_marked(layers, surplus, processes), count - target
    if exceeding >= excess:
        return run_chain(layers, surplus, chain(exceeding, exceeding - excess), processes)
    rest = [a & ~s for a, s in zip(active, surplus, strict=True)]
    pruned = run_chain(layers, rest, chain(count - exceeding, target), processes)
    return [p.logical_or_(s) for p, s in zip(pruned, surplus, strict=True)]


def run_chain(
    layers: Sequence[Layer], active: Sequence[Tensor], chain: Sequence[TopK], processes: Processes = ALONE
) -> Marks:
    """Run a chain of Top-K steps on the active weights and return those that the last step selects.

    Args:
        layers: the weights and gradients, ranked together.
        active: the weights to select from, a bool tensor [n] for each layer; not modified.
        chain: the steps; no quota may exceed the one before it or the number of active weights.
        processes: those that hold the weights; all of them call this together.

    Returns:
        The selection: exactly ``chain[-1].quota`` weights.
    """
    if _on_one_gpu(active):
        marks = list(torch.split(torch.cat(list(active)), [len(m) for m in active]))
    else:
        marks = [m.clone() for m in active]
    count = count_marked(layers, marks, processes)
    for step in chain:
        select_smallest(layers, marks, count, step.score, step.quota, processes)
        count = step.quota
    return marks


def run_exchange(
    layers: Sequence[Layer], active: Sequence[Tensor], exchange: Exchange, processes: Processes = ALONE
) -> Marks:
    """Exchange weights within each layer and return the active weights after it; their number does not change.

    Args:
        layers: the weights and gradients.
        active: the active weights, a bool tensor [n] for each layer; not modified.
        exchange: how many weights to exchange, and by which scores.
        processes: those that hold the weights; all of them call this together.
    """
    result = []
    for layer, before in zip(layers, active, strict=True):
        count = count_marked([layer], [before], processes)
        exchanged = math.ceil(exchange.share * count)
        [dropped] = run_chain([layer], [before], [TopK(exchange.drop, exchanged)], processes)
        kept = dropped.logical_xor_(before)
        inactive = (
            patterns.growable(layer, before, kept, exchange.grow, processes) if patterns.has_pattern([layer]) else ~kept
        )
        [grown] = run_chain([layer], [inactive], [TopK(largest(exchange.grow), exchanged)], processes)
        result.append(kept.logical_or_(grown))
    return result


def keep_smallest(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, k: int, processes: Processes = ALONE
) -> Marks:
    """The lowest-ranked weights, in whole groups, and so that patterns are kept to as far as k allows.

    Args:
        layers: the weights and gradients.
        marks: the weights to select from, a bool tensor [n] for each layer; not modified.
        score: what they are ranked by.
        k: how many weights, or groups, to select.
        processes: those that hold the weights; all of them call this together.
    """
    units, marked = in_groups(layers, marks, processes)
    found = [m.clone() for m in marked]
    count = count_marked(units, found, processes)
    if k < count and patterns.has_pattern(units):
        first = patterns.leaders(units, found, score, processes)
        leading = count_marked(units, first, processes)
        if k < leading:
            found, count = first, leading
        else:
            rest = [m & ~f for m, f in zip(found, first, strict=True)]
            select_smallest(units, rest, count - leading, score, k - leading, processes)
            return [f.logical_or_(r) for f, r in zip(first, rest, strict=True)]
    select_smallest(units, found, count, score, k, processes)
    return of_weights(units, found)


def count_marked(layers: Sequence[Layer], marks: Sequence[Tensor], processes: Processes = ALONE) -> int:
    """How many weights are marked, on all processes."""
    if not processes.sharded and _on_one_gpu(marks):
        return int(torch.cat([m.reshape(-1) for m in marks]).count_nonzero())
    return sum(count_marked_each([layer.owned for layer in layers], marks, processes))


def count_marked_each(owned: Sequence[bool], marks: Sequence[Tensor], processes: Processes = ALONE) -> list[int]:
    """How many weights of each tensor are marked, on all processes.

    On a GPU this takes one synchronization, not one for each tensor.

    Args:
        owned: for each tensor whether this process counts it.
        marks: bool tensors of any shape.
        processes: those that hold the weights; all of them call this together.
    """
    counts = [m.count_nonzero() for m in marks]
    if any(c.device != counts[0].device for c in counts):
        counts = [c.cpu() for c in counts]
    numbers: list[int] = torch.stack(counts).tolist() if counts else []
    return processes.sum([n if is_owned else 0 for n, is_owned in zip(numbers, owned, strict=True)])


def select_smallest(
    layers: Sequence[Layer], marks: Marks, count: int, score: Score, k: int, processes: Processes = ALONE
) -> None:
    """Narrow ``marks``, in place, from ``count`` weights to the ``k`` that rank lowest.

    Args:
        layers: the weights and gradients.
        marks: the weights to select from, a bool tensor [n] for each layer.
        count: how many these are, on all processes.
        score: what they are ranked by.
        k: how many to select.
        processes: those that hold the weights; all of them call this together.

    Raises:
        ValueError: k is not in [0, count], or fewer than k weights have a score that is not NaN.
    """
    if not 0 <= k <= count:
        raise ValueError(f"k={k} must lie in [0, {count}], the number of weights to select from")
    if k == count:
        return
    if k == 0:
        for m in marks:
            m.zero_()
    elif _on_one_gpu(marks) and not processes.sharded:
        select_smallest_joined(layers, marks, count, score, k)
    else:
        # During a step each byte is one of three marks. Afterwards it is SELECTED or EXCLUDED again: a bool.
        _select_marked(layers, [m.view(torch.uint8) for m in marks], SELECTED, count, score, k, processes)


def _select_marked(
    layers: Sequence[Layer],
    marks: Sequence[Tensor],
    eligible_mark: int,
    count: int,
    score: Score,
    k: int,
    processes: Processes,
) -> None:
    """Of the weights that carry ``eligible_mark``, set the ``k`` lowest-ranked to SELECTED and the rest to EXCLUDED.

    ``count`` weights have that mark; 0 < k < count.
    """
    valued, value = by_value(layers, score, processes)
    threshold = find_threshold(valued, marks, eligible_mark, count, value, k, processes)
    tied_to_select = k - threshold.below
    all_tied_selected = tied_to_select == threshold.equal
    passes.apply_threshold(
        valued, marks, value, eligible_mark, threshold.value, SELECTED if all_tied_selected else TIED
    )
    if all_tied_selected:
        return
    if score.ties is not None:
        _select_marked(layers, marks, TIED, threshold.equal, score.ties, tied_to_select, processes)
        return
    # Without a tie-breaker: by parameter order, then by flat index.
    tied = processes.sum(
        [passes.count_mark(m, TIED) if layer.owned else 0 for layer, m in zip(layers, marks, strict=True)]
    )
    for layer, m, n in zip(layers, marks, tied, strict=True):
        if 0 < tied_to_select < n:
            _select_marked([layer], [m], TIED, n, position, tied_to_select, processes)
        elif n:
            passes.replace_mark(m, TIED, SELECTED if tied_to_select else EXCLUDED)
        tied_to_select -= min(tied_to_select, n)


def _on_one_gpu(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors are on one GPU, where few large passes beat many small ones."""
    return len({t.device for t in tensors}) == 1 and tensors[0].is_cuda
