"""The few statistics that a report needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TypeVar

from scipy.special import stdtrit  # type: ignore[import-untyped]
from scipy.stats import rankdata  # type: ignore[import-untyped]

Key = TypeVar("Key")

CONFIDENCE = 0.95
ROUNDING_ERROR = 1e-9
"""Percent points below which a spread is only the rounding of floating-point numbers."""


@dataclass(frozen=True)
class Summary:
    """Mean, and standard deviation (n − 1) where there is more than one value."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences, in percent points.

    Args:
        pairs: number of pairs, at least one.
        mean: of the differences.
        low, high: confidence interval of the mean. None with one pair, and where all differences are equal: that is
            luck, not certainty.
    """

    pairs: int
    mean: float
    low: float | None
    high: float | None

    @property
    def verdict(self) -> str:
        """Whether the sign of the difference is more than noise: higher, lower, not distinguishable or unknown."""
        if self.low is None or self.high is None:
            return "not distinguishable" if self.pairs > 1 and abs(self.mean) < ROUNDING_ERROR else "unknown"
        if self.low > 0:
            return "higher"
        return "lower" if self.high < 0 else "not distinguishable"


def summarise(values: Sequence[float]) -> Summary:
    """Return the mean and spread of at least one value."""
    return Summary(fmean(values), stdev(values) if len(values) > 1 else None, len(values))


def paired(ours: Mapping[Key, float], theirs: Mapping[Key, float]) -> Difference | None:
    """Compare two methods on the seeds that both were run with.

    Args:
        ours: accuracy by seed.
        theirs: accuracy by seed, to be subtracted.

    Returns:
        The difference with the confidence interval of Student's t on the paired differences; None without a pair.
    """
    differences = [value - theirs[key] for key, value in ours.items() if key in theirs]
    if not differences:
        return None
    mean, pairs = fmean(differences), len(differences)
    spread = stdev(differences) if pairs > 1 else 0.0
    if spread < ROUNDING_ERROR:
        return Difference(pairs, mean, None, None)
    half = float(stdtrit(pairs - 1, (1 + CONFIDENCE) / 2)) * spread / math.sqrt(pairs)
    return Difference(pairs, mean, mean - half, mean + half)


def ranks(scores: Mapping[str, float]) -> dict[str, float]:
    """Rank by score from 1, the highest first; ties share the average of their ranks."""
    # Means of the same values in another order may differ in their last bits.
    descending = [-round(score, 9) for score in scores.values()]
    return dict(zip(scores, rankdata(descending).tolist(), strict=True))
