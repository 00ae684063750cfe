"""The selection of `chains.py` on one GPU: all layers as one, in few large passes and few synchronizations.

On a GPU, launching a kernel and reading a number on the host both cost more than a pass over a layer. So a Top-K step
computes the scores of all layers once and concatenates them (4 or 8 bytes a weight, freed after the step). A sample
brackets the k-th score as on a CPU. The number of host-device synchronizations does not depend on the number of layers:
three a Top-K step, three more for each bracket that misses, and three or more for ties.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor

from fggp.scores import Score
from fggp.selection import bracket
from fggp.selection.bracket import Counts, Search, Threshold
from fggp.selection.groups import by_value
from fggp.selection.keys import INT_OF_SIZE
from fggp.weights.layers import Layer

TIE_SORT_MAX = 1 << 20
"""Above this number of tied weights, a Top-K step by the first tie-breaker narrows them before they are sorted."""


def select_smallest_joined(layers: Sequence[Layer], marks: Sequence[Tensor], count: int, score: Score, k: int) -> None:
    """Narrow ``marks``, in place, to the same weights as `fggp.selection.chains.select_smallest`; 0 < k < count.

    Args:
        layers: all on one device.
        marks: the weights to select from, a bool tensor [n] for each layer.
        count: how many these are.
        score: what they are ranked by.
        k: how many to select.
    """
    joined = torch.cat(list(marks))
    _select_joined(layers, joined, count, score, k)
    torch._foreach_copy_(list(marks), list(torch.split(joined, [len(layer) for layer in layers])))


def _select_joined(layers: Sequence[Layer], marks: Tensor, count: int, score: Score, k: int) -> None:
    """Narrow ``marks``, [N] over all layers, in place to the k weights that rank lowest."""
    valued, value = by_value(layers, score)
    scores = torch.cat([value.of(layer.block(0, len(layer))) for layer in valued])
    threshold = _find_threshold(scores, marks, Search(score.name, k, count))
    tied_to_select = k - threshold.below
    if tied_to_select == threshold.equal:
        marks.logical_and_(scores <= threshold.value)
        return
    tied = (scores == threshold.value).logical_and_(marks)
    marks.logical_and_(scores < threshold.value)
    del scores
    if score.ties is not None and threshold.equal > TIE_SORT_MAX:
        _select_joined(layers, tied, threshold.equal, score.ties, tied_to_select)
        marks.logical_or_(tied)
    else:
        index = tied.nonzero().squeeze(1)
        marks.index_fill_(0, index[_tie_order(layers, index, score.ties)[:tied_to_select]], True)


def _find_threshold(scores: Tensor, marks: Tensor, search: Search) -> Threshold:
    """Find the k-th smallest of the marked scores; both tensors are [N]."""
    while True:
        a, b = _bracket(scores, marks, search)
        within = (scores > a).logical_and_(scores < b).logical_and_(marks)
        inside = scores[within].sort().values  # synchronizes: their number must be known
        del within
        below_a, at_a = (part.logical_and_(marks).count_nonzero() for part in (scores < a, scores == a))
        at_b = (scores == b).logical_and_(marks).count_nonzero() if a != b else torch.zeros_like(at_a)
        # Compute the k-th even if it may not be inside: then one synchronization brings all numbers.
        kth = _value_at(inside, search.k - below_a - at_a - 1) if len(inside) else scores.new_zeros(())
        # As int64, which holds counts and the bits of any score. Not every GPU has float64.
        numbers = [below_a, at_a, at_b, (inside < kth).count_nonzero(), (inside == kth).count_nonzero(), _bits_of(kth)]
        n_below_a, n_at_a, n_at_b, n_less, n_equal, bits = torch.stack(numbers).tolist()
        counts = Counts(n_below_a, n_at_a, len(inside), n_at_b)
        if 0 < search.k - counts.at_most_a <= counts.inside:
            return Threshold(_number_of(bits, scores.dtype), counts.at_most_a + n_less, n_equal)
        threshold = search.narrow_after_miss(a, b, counts)
        if threshold is not None:
            return threshold


def _bracket(scores: Tensor, marks: Tensor, search: Search) -> tuple[float, float]:
    """Two scores, low ≤ a ≤ b ≤ high, likely to hold the k-th smallest strictly between them."""
    if len(scores) <= bracket.SAMPLE_SIZE:
        return search.low, search.high
    index = bracket.spread_indices(bracket.SAMPLE_SIZE, len(scores), scores.device)
    sample = scores[index]
    candidate = marks[index].logical_and_(sample > search.low).logical_and_(sample < search.high)
    # Sort the other scores behind the candidates: removing them would need a synchronization for their number.
    greatest = math.inf if sample.is_floating_point() else torch.iinfo(sample.dtype).max
    size = candidate.count_nonzero()
    sample = sample.masked_fill_(candidate.logical_not_(), greatest).sort().values
    lower, upper = bracket.bracket_ranks(size.float(), search.quantile)
    first, last = lower.floor().long(), upper.ceil().long()
    ends = [
        _value_at(sample, first - 1),
        _value_at(sample, last - 1),
        (first > 0).to(sample),
        (last <= size).to(sample),
    ]
    a, b, has_a, has_b = torch.stack(ends).tolist()
    return (a if has_a else search.low), (b if has_b else search.high)


def _bits_of(value: Tensor) -> Tensor:
    """The bits of a number on the device, [], as an int64."""
    return (value.view(INT_OF_SIZE[value.element_size()]) if value.is_floating_point() else value).long()


def _number_of(bits: int, dtype: torch.dtype) -> float:
    """The inverse of `_bits_of`, on the host."""
    if not dtype.is_floating_point:
        return bits
    return float(torch.tensor(bits, dtype=INT_OF_SIZE[dtype.itemsize]).view(dtype))


def _value_at(values: Tensor, index: Tensor) -> Tensor:
    """The value at an index on the device, [], clamped into range, without the synchronization of ``values[index]``."""
    return values.index_select(0, index.clamp(0, len(values) - 1).view(1)).squeeze(0)


def _tie_order(layers: Sequence[Layer], index: Tensor, ties: Score | None) -> Tensor:
    """The order of some weights by (tie-breakers, layer, position), as indices into ``index``.

    Args:
        layers: all layers.
        index: the weights' indices in the concatenated layers, int64 [n], ascending.
        ties: the first tie-breaker.
    """
    starts = list(accumulate(map(len, layers), initial=0))
    bounds = torch.searchsorted(index, torch.tensor(starts, device=index.device)).tolist()
    found, indices, positions = [], [], []
    for layer, start, first, end in zip(layers, starts, bounds, bounds[1:], strict=False):
        if first < end:
            found.append(layer)
            indices.append(index[first:end] - start)
            positions.append(layer.block_at(indices[-1]).position + start)
    # Stable sorts, from the last key to the first.
    keys = [torch.cat(positions)]
    while ties is not None:
        valued, value = by_value(found, ties)
        pairs = zip(valued, indices, strict=True)
        keys.insert(-1, torch.cat([value.of(layer.block_at(where)) for layer, where in pairs]))
        ties = ties.ties
    order = keys[-1].argsort()
    for key in reversed(keys[:-1]):
        order = order[key[order].argsort(stable=True)]
    return order
