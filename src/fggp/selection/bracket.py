"""How a bracket leads to the k-th smallest score: the arithmetic that a CPU, a GPU and many processes share.

A sample of the scores gives a bracket: two values that likely hold the k-th smallest score strictly between them. A
pass over the weights counts the scores around the bracket. If the k-th is not inside, `Search` narrows its range, and
the next sample gives another bracket. So the sample decides the time and never the result (Floyd & Rivest 1975).
"""

from __future__ import annotations

import math
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

SAMPLE_SIZE = 1 << 16
"""Scores in a sample. A larger sample leaves fewer scores inside the bracket, but takes longer to draw."""

Real = TypeVar("Real", float, Tensor)


class Counts(NamedTuple):
    """How many scores are less than a, equal to a, strictly between a and b, and equal to b (0 if a = b)."""

    below_a: int
    at_a: int
    inside: int
    at_b: int

    @property
    def at_most_a(self) -> int:
        """How many scores are less than or equal to a."""
        return self.below_a + self.at_a


class Threshold(NamedTuple):
    """The k-th smallest score, how many weights score less, and how many score equal."""

    value: float
    below: int
    equal: int


class Search:
    """The range in which the k-th smallest score lies, narrowed whenever a bracket misses it.

    Args:
        score_name: names the score in errors.
        k: in [1, count].
        count: how many weights are ranked.

    Attributes:
        low: exclusive lower bound of the k-th smallest score (inclusive while −inf).
        high: exclusive upper bound of the k-th smallest score (inclusive while inf).
    """

    def __init__(self, score_name: str, k: int, count: int) -> None:
        self.k = k
        self.low, self.high = -math.inf, math.inf
        self._score_name, self._count = score_name, count
        self._at_most_low, self._below_high = 0, count

    @property
    def quantile(self) -> float:
        """The rank of the k-th smallest score among those between ``low`` and ``high``, as a share of their number."""
        return (self.k - self._at_most_low) / (self._below_high - self._at_most_low)

    def narrow_after_miss(self, a: float, b: float, counts: Counts) -> Threshold | None:
        """Narrow the range after a pass whose bracket does not hold the k-th smallest score strictly inside.

        Args:
            a: the bracket's lower end, at least ``low``.
            b: the bracket's upper end, at least a, at most ``high``.
            counts: the scores around the bracket.

        Returns:
            The threshold if it is a or b. Otherwise None, and ``low`` or ``high`` has moved past the bracket.

        Raises:
            ValueError: fewer than k weights have a score that is not NaN.
        """
        below_b = counts.at_most_a + counts.inside
        at_most_b = below_b + counts.at_b
        if counts.below_a < self.k <= counts.at_most_a:
            return Threshold(a, counts.below_a, counts.at_a)
        if below_b < self.k <= at_most_b:
            return Threshold(b, below_b, counts.at_b)
        if self.k <= counts.below_a:
            self.high, self._below_high = a, counts.below_a
        elif b == math.inf:
            raise ValueError(
                f"score {self._score_name!r} is NaN for {self._count - at_most_b} of the {self._count} weights to be "
                f"ranked; to select {self.k}, at most {self._count - self.k} may be NaN"
            )
        else:
            self.low, self._at_most_low = b, at_most_b
        return None


def bracket_ranks(sample_size: Real, quantile: float) -> tuple[Real, Real]:
    """The ranks in a sample, real numbers, between which a quantile of the sampled scores lies.

    Three standard deviations to each side of the sample's own quantile: one bracket in some 400 misses.
    """
    middle = sample_size * quantile
    margin = 3 * (sample_size * (quantile * (1 - quantile))) ** 0.5 + 1
    return middle - margin, middle + margin


def spread_indices(count: int, length: int, device: torch.device) -> Tensor:
    """Return ``count`` indices less than ``length``, spread evenly: int64 [count].

    Multiples of the golden ratio, modulo 1, follow no stride of a tensor. They are computed in fixed point, because
    not every device has float64 (Apple's GPUs have none).
    """
    turns = torch.arange(count, device=device) * 0x9E37_79B9 & 0xFFFF_FFFF  # the fraction's first 32 bits
    bits = min(32, 63 - length.bit_length())  # as many as leave the product with the length in an int64
    return (turns >> (32 - bits)) * length >> bits
