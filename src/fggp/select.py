"""Exact selection of the k lowest-ranked weights, over many tensors at once; chains of such steps; regrowth.

Nothing is concatenated or sorted as a whole. A sample of the scores brackets the k-th value; one pass over the
weights marks and counts what lies below the bracket and gathers the few scores inside it, among which the k-th is
found exactly (Floyd & Rivest 1975). A bracket that misses costs another pass, never the result.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from fggp.joined import keep_smallest_joined
from fggp.layers import Layer
from fggp.scores import Score, largest

BLOCK = 1 << 18
"""Weights read at a time on a CPU: temporaries of this size stay in cache."""

SAMPLE = 1 << 16
"""Scores drawn to bracket the k-th smallest: with more, fewer lie inside the bracket, but drawing them costs."""


@dataclass(frozen=True)
class TopK:
    """One step of a chain: of the weights the step before left, those with the ``quota`` smallest scores go on."""

    score: Score
    quota: int


@dataclass(frozen=True)
class Exchange:
    """Regrowth: in each layer drop ⌈share·active⌉ weights and let as many inactive ones, the dropped included, grow.

    Args:
        share: of the layer's active weights, in [0, 1].
        drop: those with the smallest scores go.
        grow: those with the largest scores come.
    """

    share: float
    drop: Score
    grow: Score


Marks = list[Tensor]
"""A set of weights: for each layer a bool tensor [n] in the layer's memory order."""


def run_chain(layers: Sequence[Layer], active: Sequence[Tensor], chain: Sequence[TopK]) -> Marks:
    """Run a chain of Top-K steps on the active weights and return those that the last step leaves.

    Args:
        layers: the weights and gradients, ranked together.
        active: the weights to choose among, a bool tensor [n] for each layer; not modified.
        chain: the steps; no quota may exceed the one before it or the number of active weights.

    Returns:
        Exactly ``chain[-1].quota`` marked weights.
    """
    if _on_one_gpu(active):
        marks = list(torch.split(torch.cat(list(active)), [len(m) for m in active]))
    else:
        marks = [m.clone() for m in active]
    count = count_marked(marks)
    for step in chain:
        keep_smallest(layers, marks, count, step.score, step.quota)
        count = step.quota
    return marks


def run_exchange(layers: Sequence[Layer], active: Sequence[Tensor], exchange: Exchange) -> Marks:
    """Exchange weights within each layer and return those that are active then, as many as before.

    Args:
        layers: the weights and gradients.
        active: the active weights, a bool tensor [n] for each layer; not modified.
        exchange: how many, and which.
    """
    result = []
    for layer, before in zip(layers, active, strict=True):
        count = count_marked([before])
        moved = math.ceil(exchange.share * count)
        [dropped] = run_chain([layer], [before], [TopK(exchange.drop, moved)])
        kept = dropped.logical_xor_(before)
        [grown] = run_chain([layer], [~kept], [TopK(largest(exchange.grow), moved)])
        result.append(kept.logical_or_(grown))
    return result


def count_marked(marks: Sequence[Tensor]) -> int:
    """How many weights are marked."""
    if _on_one_gpu(marks):
        return int(torch.cat([m.reshape(-1) for m in marks]).count_nonzero())
    return sum(counts_marked(marks))


def counts_marked(marks: Sequence[Tensor]) -> list[int]:
    """How many weights of each tensor are marked; on a GPU the host waits once, not once a tensor."""
    counts = [m.count_nonzero() for m in marks]
    if any(c.device != counts[0].device for c in counts):
        counts = [c.cpu() for c in counts]
    numbers: list[int] = torch.stack(counts).tolist() if counts else []
    return numbers


def keep_smallest(layers: Sequence[Layer], marks: Marks, count: int, score: Score, k: int) -> None:
    """Narrow ``marks``, in place, from ``count`` weights to the ``k`` that rank lowest.

    The rank is (score, the score's tie-breakers, position): a total order, so the result is unique. It depends on
    the values alone, not on memory layout, block size or the sample.
    """
    if not 0 <= k <= count:
        raise ValueError(f"k={k} must lie in [0, {count}], the number of weights to choose among")
    if k == count:
        return
    if k == 0:
        for m in marks:
            m.zero_()
        return
    if _on_one_gpu(marks):
        keep_smallest_joined(layers, marks, count, score, k)
        return

    # Invariant: the k-th smallest score lies strictly between low and high, and `at_most_low` scores are ≤ low.
    low, high, at_most_low, below_high = -math.inf, math.inf, 0, count
    while True:
        a, b = _bracket(layers, marks, score, low, high, (k - at_most_low) / (below_high - at_most_low))
        survey = _survey(layers, marks, score, a, b)
        if 0 < k - survey.at_most_a <= len(survey.inside):
            _unmark_all_but(layers, survey, score.ties, k - survey.at_most_a)
            for m, narrowed in zip(marks, survey.below_b, strict=True):
                m.copy_(narrowed)
            return
        # Not strictly inside: mostly because it equals a or b, as many scores do; else the bracket missed.
        end = a if k <= survey.at_most_a else b
        del survey
        below, at_most = _count_around(layers, marks, score, end)
        if below < k <= at_most:
            _cut_at(layers, marks, score, end, k - below, at_most - below)
            return
        if k <= below:
            high, below_high = end, below
        elif end == math.inf:
            raise ValueError(f"score {score.name!r} is NaN for {count - at_most} of the {count} weights to be ranked")
        else:
            low, at_most_low = end, at_most


def _on_one_gpu(tensors: Sequence[Tensor]) -> bool:
    """Whether few large passes over all tensors at once beat many small ones."""
    return len({t.device for t in tensors}) == 1 and tensors[0].is_cuda


@dataclass(frozen=True)
class _Survey:
    """What one pass over the marked weights finds out about a bracket (a, b).

    Args:
        at_most_a: how many weights score ≤ a.
        below_b: the marked weights that score < b, as marks of their own.
        inside: the scores strictly between a and b, [n], layer after layer.
        places: for each layer where those are, memory-order indices.
    """

    at_most_a: int
    below_b: Marks
    inside: Tensor
    places: list[Tensor]


def _survey(layers: Sequence[Layer], marks: Marks, score: Score, a: float, b: float) -> _Survey:
    """Count and gather, in one pass."""
    at_most, below_b = 0, [torch.zeros_like(m) for m in marks]
    inside: list[Tensor] = []
    places: list[list[Tensor]] = [[] for _ in layers]
    for i, start, block, mark, below in _blocks(layers, marks, below_b):
        value = score.of(block)
        torch.logical_and(value < b, mark, out=below)
        at_most_a = (value <= a).logical_and_(mark)
        at_most += int(at_most_a.count_nonzero())
        index = below.logical_and(at_most_a.logical_not_()).nonzero().squeeze(1)
        inside.append(value[index].to(layers[0].weight.device))
        places[i].append(index + start)
    empty = torch.empty(0, dtype=torch.int64)
    return _Survey(at_most, below_b, torch.cat(inside), [torch.cat(p) if p else empty for p in places])


def _unmark_all_but(layers: Sequence[Layer], survey: _Survey, ties: Score | None, k: int) -> None:
    """Of the weights inside the bracket, keep marked in ``survey.below_b`` only the ``k`` that rank lowest."""
    value = survey.inside.kthvalue(k).values
    stays = survey.inside < value
    tied = (survey.inside == value).nonzero().squeeze(1)
    spare = k - int(stays.count_nonzero())
    if spare < len(tied):
        tied = tied[_rank(layers, survey.places, tied, ties)[:spare]]
    stays[tied] = True
    goes = torch.split(stays.logical_not_(), [len(p) for p in survey.places])
    for narrowed, place, go in zip(survey.below_b, survey.places, goes, strict=True):
        narrowed[place[go.to(place.device)]] = False


def _rank(layers: Sequence[Layer], places: list[Tensor], which: Tensor, ties: Score | None) -> Tensor:
    """The order of some gathered weights by (tie-breakers, layer, position).

    Args:
        layers: all layers.
        places: where the gathered weights are in each, layer after layer.
        which: of the gathered weights, those to be ranked, ascending.
        ties: the first tie-breaker.
    """
    device = which.device
    ends = torch.tensor([len(p) for p in places], device=device).cumsum(0)
    counts = torch.bucketize(which, ends, right=True).bincount(minlength=len(layers))
    parts = torch.split(which, counts.tolist())
    blocks = [
        layer.at(place[part.to(place.device) - (end - len(place))])
        for layer, place, part, end in zip(layers, places, parts, ends.tolist(), strict=True)
    ]
    # Stable sorts, from the last key to the first. The weights come layer by layer already.
    keys = []
    while ties is not None:
        keys.append(torch.cat([ties.of(block).to(device) for block in blocks]))
        ties = ties.ties
    starts = accumulate(map(len, parts), initial=0)
    order = torch.cat(
        [block.position.argsort().to(device) + start for block, start in zip(blocks, starts, strict=False)]
    )
    for key in reversed(keys):
        order = order[key[order].argsort(stable=True)]
    return order


def _cut_at(layers: Sequence[Layer], marks: Marks, score: Score, value: float, k: int, equal: int) -> None:
    """Keep marked what scores below ``value``, and ``k`` of the ``equal`` weights that score just that."""
    if k == equal:
        for *_, block, mark in _blocks(layers, marks):
            mark &= score.of(block) <= value
        return
    tied = [torch.zeros_like(m) for m in marks]
    for *_, block, mark, tie in _blocks(layers, marks, tied):
        scores = score.of(block)
        torch.logical_and(mark, scores == value, out=tie)
        mark &= scores < value
    if score.ties is None:
        _keep_first(layers, tied, k)
    else:
        keep_smallest(layers, tied, equal, score.ties, k)
    for m, tie in zip(marks, tied, strict=True):
        m |= tie


def _bracket(
    layers: Sequence[Layer], marks: Marks, score: Score, low: float, high: float, share: float
) -> tuple[float, float]:
    """Two values, low ≤ a ≤ b ≤ high, likely to hold strictly between them the quantile ``share`` of (low, high)."""
    total = sum(len(layer) for layer in layers)
    if total <= SAMPLE:
        return low, high
    values = []
    for layer, m in zip(layers, marks, strict=True):
        n = len(layer)
        # Multiples of the golden ratio, modulo 1, spread evenly and follow no stride of the tensor.
        points = torch.arange(math.ceil(SAMPLE * n / total), dtype=torch.float64, device=m.device)
        index = (points * 0.6180339887498949 % 1 * n).long()
        values.append(score.of(layer.at(index[m[index]])).to(layers[0].weight.device))
    sample = torch.cat(values)
    sample = sample[(sample > low) & (sample < high)]
    s = len(sample)
    # Three standard deviations of the sample's own quantile: one bracket in some 400 misses.
    middle, slack = share * s, 3 * math.sqrt(s * share * (1 - share)) + 1
    a, b = math.floor(middle - slack), math.ceil(middle + slack)
    return (sample.kthvalue(a).values.item() if a > 0 else low, sample.kthvalue(b).values.item() if b <= s else high)


def _count_around(layers: Sequence[Layer], marks: Marks, score: Score, at: float) -> tuple[int, int]:
    """How many marked weights score < at, and how many ≤ at."""
    below = at_most = 0
    for *_, block, mark in _blocks(layers, marks):
        value = score.of(block)
        below += int(((value < at) & mark).count_nonzero())
        at_most += int(((value <= at) & mark).count_nonzero())
    return below, at_most


def _blocks(layers: Sequence[Layer], marks: Marks, *more: Marks) -> Iterator[tuple[Any, ...]]:
    """All layers in blocks, as views; blocks without a mark are skipped.

    Yields:
        The layer's number, the block's start in it, the block, its marks, and its part of each of ``more``.
    """
    for i, (layer, *flat) in enumerate(zip(layers, marks, *more, strict=True)):
        size = BLOCK if flat[0].device.type == "cpu" else len(layer)
        for start in range(0, len(layer), size):
            part = slice(start, min(start + size, len(layer)))
            if flat[0][part].count_nonzero():
                yield i, start, layer.block(part.start, part.stop), *(f[part] for f in flat)


def _keep_first(layers: Sequence[Layer], marks: Marks, k: int) -> None:
    """Narrow ``marks``, in place, to the first ``k`` by position: layer order, then logical flat index."""
    for layer, m in zip(layers, marks, strict=True):
        count = int(m.count_nonzero())
        if count > k:
            logical = layer.layout.shaped(m).reshape(-1)
            logical[_end_of_first(logical, k) :] = False
            if logical.data_ptr() != m.data_ptr():  # a copy: memory order is not the logical one
                layer.layout.shaped(m).copy_(logical.view(layer.layout.shape))
        k -= min(k, count)


def _end_of_first(mark: Tensor, k: int) -> int:
    """The length of the shortest start of ``mark`` that holds k marks."""
    for start in range(0, len(mark), BLOCK):
        if k == 0:
            return start
        block = mark[start : start + BLOCK]
        count = int(block.count_nonzero())
        if count >= k:
            return start + int(block.nonzero()[k - 1]) + 1
        k -= count
    return len(mark)
