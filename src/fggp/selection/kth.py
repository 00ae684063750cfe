"""Where the k weights that rank lowest end: the k-th smallest score, found exactly, on one process or on many.

Nothing is sorted as a whole. A sample of the scores brackets the k-th; one pass over the weights counts what lies
below the bracket and gathers the few scores inside it, among which the k-th is found (Floyd & Rivest 1975). A bracket
that misses costs another pass, never the result. On many processes the counts are sums, and the last search counts
digits: what they send is the sample and some histograms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fggp.scores import Score
from fggp.selection import passes
from fggp.weights.layers import Layer
from fggp.weights.processes import Processes

SAMPLE_SIZE = 1 << 16
"""Scores drawn to bracket the k-th smallest: with more, fewer lie inside the bracket, but drawing them costs."""

DISTRIBUTED_SAMPLE_SIZE = 1 << 14
"""The same where they are sent to other processes."""

DISTRIBUTED_LAYER_SAMPLE_SIZE = 1 << 7
"""The same for the weights of a single layer, of which there are many."""


DIRECT_SEARCH_MAX = 1 << 14
"""So many values are searched at once."""

REFINING_SAMPLE_SIZE = 1 << 12
"""Of more than these, so many are drawn to bracket the k-th."""


class Cut(NamedTuple):
    """The k-th smallest score, how many weights score less, and how many just that."""

    value: float
    below: int
    equal: int


def find_cut(
    layers: Sequence[Layer],
    marks: Sequence[Tensor],
    among: int,
    count: int,
    score: Score,
    k: int,
    processes: Processes,
) -> Cut:
    """Find the k-th smallest score of the weights with a certain mark.

    Args:
        layers: this process's part of the weights and gradients.
        marks: of each layer.
        among: the mark of those that take part.
        count: how many they are, on all processes.
        score: what they are ranked by.
        k: in [1, count].
        processes: those that hold the weights.

    Raises:
        ValueError: fewer than k of the weights have a score that is not NaN.
    """
    dtype = _comparable(passes.score_dtype(layers, score))
    mine = [(layer, m) for layer, m in zip(layers, marks, strict=True) if layer.owned]
    owned, owned_marks = [layer for layer, _ in mine], [m for _, m in mine]
    total = sum(layer.whole for layer in layers)
    sample = (
        SAMPLE_SIZE
        if not processes.sharded
        else DISTRIBUTED_SAMPLE_SIZE
        if len(layers) > 1
        else DISTRIBUTED_LAYER_SAMPLE_SIZE
    )
    digit = 11 if len(layers) > 1 else 3  # 2,048 counts at a time, or 8

    # Invariant: the k-th smallest score lies strictly between low and high, and `at_most_low` scores are ≤ low.
    low, high, at_most_low, below_high = -math.inf, math.inf, 0, count
    while True:
        a, b = low, high
        if total > sample:
            drawn = processes.gather(passes.draw(owned, owned_marks, score, among, sample / total).to(dtype))
            a, b = _bracket(drawn, low, high, (k - at_most_low) / (below_high - at_most_low))
        counts, inside = passes.survey(owned, owned_marks, score, among, a, b)
        below_a, at_a, n_inside, at_b = processes.sum(counts)
        at_most_a = below_a + at_a
        below_b = at_most_a + n_inside
        if at_most_a < k <= below_b:
            value, less, equal = _kth(inside.to(dtype), k - at_most_a, digit, processes)
            return Cut(value, at_most_a + less, equal)
        if below_a < k <= at_most_a:
            return Cut(a, below_a, at_a)
        if below_b < k <= below_b + at_b:
            return Cut(b, below_b, at_b)
        # The sample misled, as one in some 400 does.
        if k <= below_a:
            high, below_high = a, below_a
        elif b == math.inf:
            raise ValueError(
                f"score {score.name!r} is NaN for {count - below_b - at_b} of the {count} weights to be ranked"
            )
        else:
            low, at_most_low = b, below_b + at_b


def _bracket(sample: Tensor, low: float, high: float, share: float) -> tuple[float, float]:
    """Two values, low ≤ a ≤ b ≤ high, likely to hold strictly between them the quantile ``share`` of (low, high)."""
    sample = sample[(sample > low) & (sample < high)]
    s = len(sample)
    # Three standard deviations of the sample's own quantile: one bracket in some 400 misses.
    middle, slack = share * s, 3 * math.sqrt(s * share * (1 - share)) + 1
    a, b = math.floor(middle - slack), math.ceil(middle + slack)
    return (sample.kthvalue(a).values.item() if a > 0 else low, sample.kthvalue(b).values.item() if b <= s else high)


def _kth(values: Tensor, k: int, digit: int, processes: Processes) -> tuple[float, int, int]:
    """The k-th smallest of all processes' values, how many are less, and how many just that.

    Args:
        values: this process's, [n]; no NaN.
        k: counted from 1.
        digit: bits that are looked at at a time where processes must agree: each time they send 2^digit counts.
        processes: those that hold values.
    """
    if not processes.sharded:
        return _kth_alone(values, k)
    # From the highest digit to the lowest: how many keys begin as the k-th does, and go on with each digit?
    keys, width = ordered_keys(values), values.element_size() * 8
    prefix = less = equal = 0
    for shift in range((width - 1) // digit * digit, -1, -digit):
        digits = (keys >> shift) & ((1 << digit) - 1)
        counts = processes.sum(digits.bincount(minlength=1 << digit).tolist())
        here = 0
        while less + counts[here] < k:
            less += counts[here]
            here += 1
        equal = counts[here]
        prefix |= here << shift
        keys = keys[digits == here]
    return value_of_key(prefix, values.dtype), less, equal


def _kth_alone(values: Tensor, k: int) -> tuple[float, int, int]:
    """`_kth` where this process has all values."""
    less = 0
    while len(values) > DIRECT_SEARCH_MAX:
        # As with the weights: a sample tells where to look, so that few are searched.
        a, b = _bracket(values[:: len(values) // REFINING_SAMPLE_SIZE], -math.inf, math.inf, (k - less) / len(values))
        at_most_a = int((values <= a).count_nonzero())
        between = values[(values > a).logical_and_(values < b)]
        if not at_most_a < k - less <= at_most_a + len(between) or len(between) == len(values):
            break
        less += at_most_a
        values = between
    kth = values.kthvalue(k - less).values
    return kth.item(), less + int((values < kth).count_nonzero()), int((values == kth).count_nonzero())


def _comparable(dtype: torch.dtype) -> torch.dtype:
    """The type of 32 or 64 bits that holds all of a score's values."""
    if not dtype.is_floating_point:
        return torch.int64
    return torch.float64 if dtype == torch.float64 else torch.float32


def ordered_keys(values: Tensor) -> Tensor:
    """The bits of unsigned integers that are in the order of the values; both zeros have the same.

    Args:
        values: float32, float64 or int64, without NaN.

    Returns:
        int64 of the same shape; of keys of 64 bits the sign is the highest one.
    """
    if values.dtype == torch.int64:
        return values ^ _HIGHEST[64]
    positive_zero = values + 0.0
    if values.dtype == torch.float64:
        return _swap(positive_zero.view(torch.int64)) ^ _HIGHEST[64]
    return _swap(positive_zero.view(torch.int32)).long() - _HIGHEST[32]


def value_of_key(key: int, dtype: torch.dtype) -> float:
    """The inverse of `ordered_keys` for one key, given as the unsigned integer it stands for."""
    width = 32 if dtype == torch.float32 else 64
    signed = (key & ((1 << width) - 1)) + _HIGHEST[width]
    if dtype == torch.int64:
        return signed
    bits = torch.tensor([signed], dtype=torch.int32 if width == 32 else torch.int64)
    return float(_swap(bits).view(dtype))


_HIGHEST = {32: -(1 << 31), 64: -(1 << 63)}


def _swap(bits: Tensor) -> Tensor:
    """Between a float's bits and the signed integer of its rank: negative floats' bits run the other way."""
    width = bits.element_size() * 8
    return bits ^ (bits >> (width - 1)) & ~_HIGHEST[width]
