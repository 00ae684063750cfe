"""The k-th smallest score of many layers' weights, found exactly, on one process or on many.

Nothing is sorted as a whole. A sample of the scores brackets the k-th; one pass over the weights counts what lies below
the bracket and gathers the few scores inside it; among these the k-th is found. A bracket that misses costs another
pass and never changes the result. On many processes the counts are summed, and the last search is a distributed radix
select. Each process sends its sample and a few histograms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fggp.scores import Score
from fggp.selection import bracket, passes
from fggp.selection.bracket import Counts, Search, Threshold
from fggp.selection.keys import ordered_keys, value_of_key
from fggp.weights.layers import Layer
from fggp.weights.processes import Processes

DISTRIBUTED_SAMPLE_SIZE = 1 << 14
"""Scores in a sample that is sent to other processes."""

DISTRIBUTED_LAYER_SAMPLE_SIZE = 1 << 7
"""Scores in a sample that is sent to other processes for a single layer: there are many layers."""

DIRECT_SEARCH_MAX = 1 << 14
"""Above this number of gathered scores, another sample brackets the k-th of them first."""

REFINING_SAMPLE_SIZE = 1 << 12
"""Scores in the sample that brackets the k-th of the gathered scores."""


def find_threshold(
    layers: Sequence[Layer],
    marks: Sequence[Tensor],
    eligible_mark: int,
    count: int,
    score: Score,
    k: int,
    processes: Processes,
) -> Threshold:
    """Find the k-th smallest score of the weights with a certain mark.

    Args:
        layers: this process's part of the weights and gradients.
        marks: uint8 [n] for each layer.
        eligible_mark: the mark of the weights that are ranked.
        count: how many have that mark, on all processes.
        score: what they are ranked by.
        k: in [1, count].
        processes: those that hold the weights.

    Raises:
        ValueError: fewer than k of the weights have a score that is not NaN.
    """
    dtype = _comparable_dtype(passes.score_dtype(layers, score))
    owned = [layer for layer in layers if layer.owned]
    owned_marks = [m for layer, m in zip(layers, marks, strict=True) if layer.owned]
    total = sum(layer.total_size for layer in layers)
    if not processes.sharded:
        sample_size = bracket.SAMPLE_SIZE
    elif len(layers) > 1:
        sample_size = DISTRIBUTED_SAMPLE_SIZE
    else:
        sample_size = DISTRIBUTED_LAYER_SAMPLE_SIZE
    digit_bits = 11 if len(layers) > 1 else 3  # each message has 2,048 counts, or 8
    search = Search(score.name, k, count)
    while True:
        a, b = search.low, search.high
        if total > sample_size:
            drawn = passes.sample_scores(owned, owned_marks, score, eligible_mark, sample_size / total).to(dtype)
            a, b = _bracket(processes.gather(drawn), search.low, search.high, search.quantile)
        own_counts, inside = passes.count_and_gather(owned, owned_marks, score, eligible_mark, a, b)
        counts = Counts(*processes.sum(own_counts))
        rank = k - counts.at_most_a
        if 0 < rank <= counts.inside:
            kth = _kth_of_all(inside.to(dtype), rank, digit_bits, processes)
            return kth._replace(below=counts.at_most_a + kth.below)
        threshold = search.narrow_after_miss(a, b, counts)
        if threshold is not None:
            return threshold


def _bracket(sample: Tensor, low: float, high: float, quantile: float) -> tuple[float, float]:
    """Two values, low ≤ a ≤ b ≤ high, likely to hold this quantile of the scores in (low, high) strictly inside."""
    sample = _where_sorted(sample[(sample > low) & (sample < high)])
    lower, upper = bracket.bracket_ranks(float(len(sample)), quantile)
    first, last = math.floor(lower), math.ceil(upper)
    return (
        sample.kthvalue(first).values.item() if first > 0 else low,
        sample.kthvalue(last).values.item() if last <= len(sample) else high,
    )


def _kth_of_all(values: Tensor, k: int, digit_bits: int, processes: Processes) -> Threshold:
    """The k-th smallest of all processes' values.

    Args:
        values: this process's, [n]; no NaN.
        k: counted from 1.
        digit_bits: the width of a digit of the keys; for each digit the processes send 2^digit_bits counts.
        processes: those that hold values.
    """
    if not processes.sharded:
        return _kth_of_own(values, k)
    # Radix select, from the highest digit to the lowest: histogram the next digit among the keys that share the k-th
    # key's prefix.
    keys, width = ordered_keys(values), values.element_size() * 8
    prefix = less = equal = 0
    for shift in range((width - 1) // digit_bits * digit_bits, -1, -digit_bits):
        digits = (keys >> shift) & ((1 << digit_bits) - 1)
        counts = processes.sum(digits.bincount(minlength=1 << digit_bits).tolist())
        digit = 0
        while less + counts[digit] < k:
            less += counts[digit]
            digit += 1
        equal = counts[digit]
        prefix |= digit << shift
        keys = keys[digits == digit]
    return Threshold(value_of_key(prefix, values.dtype), less, equal)


def _kth_of_own(values: Tensor, k: int) -> Threshold:
    """The k-th smallest of this process's values, [n] without NaN; k counts from 1."""
    values, less = _where_sorted(values), 0
    while len(values) > DIRECT_SEARCH_MAX:
        sample = values[:: len(values) // REFINING_SAMPLE_SIZE]
        a, b = _bracket(sample, -math.inf, math.inf, (k - less) / len(values))
        at_most_a = int((values <= a).count_nonzero())
        inside = values[(values > a).logical_and_(values < b)]
        if not at_most_a < k - less <= at_most_a + len(inside) or len(inside) == len(values):
            break
        less += at_most_a
        values = inside
    kth = values.kthvalue(k - less).values
    return Threshold(kth.item(), less + int((values < kth).count_nonzero()), int((values == kth).count_nonzero()))


def _where_sorted(values: Tensor) -> Tensor:
    """Values where the k-th of them is found exactly: they stay on a CPU or a CUDA GPU, others go to the CPU.

    Apple's GPUs have sorted int64 silently wrong (https://github.com/pytorch/pytorch/issues/155560).
    """
    return values if values.is_cuda else values.cpu()


def _comparable_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of 32 or 64 bits that holds all of a score's values."""
    if not dtype.is_floating_point:
        return torch.int64
    return torch.float64 if dtype == torch.float64 else torch.float32
