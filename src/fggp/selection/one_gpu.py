"""The selection of `select.py` on a GPU: all layers as one, a few large passes, a fixed number of waits.

There a kernel's launch and every number that the host reads cost more than a pass over a layer. So the scores of all
layers are computed once and laid end to end, for the time of a step (4 or 8 bytes a weight), and a sample brackets the
k-th of them as on a CPU. What the host must know it reads three times a step, however many layers there are, and three
more times where weights tie for the last place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from fggp.scores import Score
from fggp.weights.layers import Layer

SAMPLE_SIZE = 1 << 16
"""Scores drawn to bracket the k-th smallest."""

TIE_SORT_MAX = 1 << 20
"""So many weights that tie are ranked by sorting their tie-breakers; more are selected from by the first of these."""


def keep_smallest_joined(layers: Sequence[Layer], marks: Sequence[Tensor], count: int, score: Score, k: int) -> None:
    """Narrow ``marks``, in place, to the same weights as `fggp.selection.chains.keep_smallest`; 0 < k < count.

    Args:
        layers: all on one device.
        marks: the weights to choose among, a bool tensor [n] for each layer.
        count: how many they are.
        score: what they are ranked by.
        k: how many to keep.
    """
    joined = torch.cat(list(marks))
    _keep(layers, joined, count, score, k)
    torch._foreach_copy_(list(marks), list(torch.split(joined, [len(layer) for layer in layers])))


def _keep(layers: Sequence[Layer], marks: Tensor, count: int, score: Score, k: int) -> None:
    """Narrow ``marks``, [N], in place."""
    scores = torch.cat([score.of(layer.block(0, len(layer))) for layer in layers])
    cut = _kth(scores, marks, count, score, k)
    spare = k - cut.below
    if spare == cut.equal:
        marks.logical_and_(scores <= cut.value)
        return
    tied = (scores == cut.value).logical_and_(marks)
    marks.logical_and_(scores < cut.value)
    del scores
    if score.ties is not None and cut.equal > TIE_SORT_MAX:
        _keep(layers, tied, cut.equal, score.ties, spare)
        marks.logical_or_(tied)
    else:
        places = tied.nonzero().squeeze(1)
        marks.index_fill_(0, places[_rank(layers, places, score.ties)[:spare]], True)


class _Cut(NamedTuple):
    """The k-th smallest score, how many weights score less, and how many just that."""

    value: float
    below: int
    equal: int


def _kth(scores: Tensor, marks: Tensor, count: int, score: Score, k: int) -> _Cut:
    """Find the k-th smallest of the marked scores."""
    # Invariant: the k-th lies strictly between low and high (None: no such end); `at_most_low` scores are ≤ low.
    low: float | None = None
    high: float | None = None
    at_most_low, below_high = 0, count
    while True:
        a, b = _bracket(scores, marks, low, high, (k - at_most_low) / (below_high - at_most_low))
        within = marks.logical_and(scores == scores if b is None else scores < b)  # NaN is in no bracket
        if a is not None:
            within.logical_and_(scores > a)
        inside = scores[within].sort().values  # the host waits for their number
        del within
        none = marks.new_zeros((), dtype=torch.int64)
        below_a, at_a = (none, none) if a is None else _around(scores, marks, a)
        at_b = none if b is None else (scores == b).logical_and_(marks).count_nonzero()
        settled = scores.new_zeros(()) if len(inside) == 0 else _pick(inside, k - below_a - at_a - 1)
        # One reading for all. Counts are exact as doubles, and so are scores.
        facts = [below_a, at_a, (inside < settled).count_nonzero(), (inside == settled).count_nonzero(), at_b, settled]
        exact = torch.float64 if scores.is_floating_point() else torch.int64
        *counts, value = torch.stack([fact.to(exact) for fact in facts]).tolist()
        n_below_a, n_at_a, n_less, n_equal, n_at_b = map(int, counts)
        n_at_most_a = n_below_a + n_at_a
        n_below_b = n_at_most_a + len(inside)
        if n_at_most_a < k <= n_below_b:
            return _Cut(value, n_at_most_a + n_less, n_equal)
        if a is not None and n_below_a < k <= n_at_most_a:
            return _Cut(a, n_below_a, n_at_a)
        if b is not None and n_below_b < k <= n_below_b + n_at_b:
            return _Cut(b, n_below_b, n_at_b)
        # The sample misled, as one in some 400 does.
        if k <= n_below_a:
            high, below_high = a, n_below_a
        elif b is None:
            raise ValueError(f"score {score.name!r} is NaN for {count - n_below_b} of the {count} weights to be ranked")
        else:
            low, at_most_low = b, n_below_b + n_at_b


def _around(scores: Tensor, marks: Tensor, at: float) -> tuple[Tensor, Tensor]:
    """How many marked weights score less than ``at``, and how many just that, on the device."""
    return (scores < at).logical_and_(marks).count_nonzero(), (scores == at).logical_and_(marks).count_nonzero()


def _bracket(
    scores: Tensor, marks: Tensor, low: float | None, high: float | None, share: float
) -> tuple[float | None, float | None]:
    """Two scores, low ≤ a ≤ b ≤ high, likely to hold strictly between them the quantile ``share`` of (low, high)."""
    if len(scores) <= SAMPLE_SIZE:
        return low, high
    # Multiples of the golden ratio, modulo 1, spread evenly and follow no stride of the tensors.
    points = torch.arange(SAMPLE_SIZE, dtype=torch.float64, device=scores.device)
    index = (points * 0.6180339887498949 % 1 * len(scores)).long()
    sample, taken = scores[index], marks[index]
    taken &= sample == sample if high is None else sample < high
    if low is not None:
        taken &= sample > low
    # The others are sorted behind: what is taken is not cut out, or the host would have to wait for how much it is.
    last = math.inf if sample.is_floating_point() else torch.iinfo(sample.dtype).max
    s = taken.count_nonzero()
    sample = sample.masked_fill_(taken.logical_not_(), last).sort().values
    # Three standard deviations of the sample's own quantile.
    middle, slack = share * s.double(), (s.double() * (share * (1 - share))).sqrt() * 3 + 1
    below, above = (middle - slack).floor().long(), (middle + slack).ceil().long()
    ends = [_pick(sample, below - 1), _pick(sample, above - 1), (below > 0).to(sample), (above <= s).to(sample)]
    a, b, a_is_there, b_is_there = torch.stack(ends).tolist()
    return (a if a_is_there else low), (b if b_is_there else high)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """The value at an index on the device, [], clamped into range; ``values[index]`` would wait for the index."""
    return values.index_select(0, index.clamp(0, len(values) - 1).view(1)).squeeze(0)


def _rank(layers: Sequence[Layer], places: Tensor, ties: Score | None) -> Tensor:
    """The order of some weights by (tie-breakers, layer, position).

    Args:
        layers: all layers.
        places: the weights' indices in the joined layers, [n], ascending.
        ties: the first tie-breaker.
    """
    starts = list(accumulate(map(len, layers), initial=0))
    upto = torch.searchsorted(places, torch.tensor(starts, device=places.device)).tolist()
    blocks, positions = [], []
    for layer, start, first, end in zip(layers, starts, upto, upto[1:], strict=False):
        if first < end:
            blocks.append(layer.at(places[first:end] - start))
            positions.append(blocks[-1].position + start)
    # Stable sorts, from the last key to the first.
    keys = [torch.cat(positions)]
    while ties is not None:
        keys.insert(-1, torch.cat([ties.of(block) for block in blocks]))
        ties = ties.ties
    order = keys[-1].argsort()
    for key in reversed(keys[:-1]):
        order = order[key[order].argsort(stable=True)]
    return order
