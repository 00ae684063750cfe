"""What the accuracies of a few runs on a few images tell of a difference, and how surely."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from scipy.special import ndtri, stdtrit  # type: ignore[import-untyped]

from fggp.lab.base import Json

UPPER = 0.975
"""The quantile at the upper end of a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """How far pruned networks are below dense ones, in percent points.

    Attributes:
        drop: on the validation images, the mean over the runs.
        noise: half of the width of a 95 % interval around it, from the number of images and the spread of the runs.
            With one run of each, it is from the number of images alone.
        runs: number of runs.
        accuracy: mean validation accuracy of the pruned networks, percent.
    """

    drop: float
    noise: float
    runs: int
    accuracy: float

    def meets(self, drop: float) -> bool:
        """Whether the drop is at most this."""
        return self.drop <= drop + 1e-9  # sums of percentages are rounded

    def close_to(self, drop: float) -> bool:
        """Whether the interval holds this drop, so that more runs could change the answer."""
        return abs(self.drop - drop) < self.noise


@dataclass(frozen=True)
class _Spread:
    """A variance that was estimated, in square points, and its degrees of freedom."""

    variance: float
    freedom: int


def estimate(dense: Sequence[float], pruned: Sequence[float], images: int, start: float | None = None) -> Estimate:
    """Compare validation accuracies.

    Args:
        dense, pruned: of their runs, in percent.
        images: number of validation images.
        start: accuracy of the trained weights that the runs start from; if it is above the dense runs' mean, the
            comparison is with it.
    """
    reference = max(fmean(dense), -math.inf if start is None else start)
    of_images = _of_images(reference, images) + _of_images(fmean(pruned), images)
    of_runs = _of_runs((dense, 1 / len(dense)), (pruned, 1 / len(pruned)))
    return Estimate(reference - fmean(pruned), _half_width(of_images, of_runs), len(pruned), fmean(pruned))


def noise_of_one_run(dense: Sequence[float], pruned: Sequence[float], images: tuple[int, int]) -> float:
    """Return how far, within 95 %, one network's drop on test images may be from the mean on validation images.

    Args:
        dense, pruned: validation accuracies of the runs, in percent.
        images: numbers of validation and of test images.
    """
    of_images = sum(_of_images(fmean(runs), count) for runs in (dense, pruned) for count in images)
    return _half_width(of_images, _of_runs((dense, 1 / len(dense)), (pruned, 1 + 1 / len(pruned))))


def _half_width(of_images: float, of_runs: Sequence[_Spread]) -> float:
    """Return half of the width of a 95 % interval around a difference.

    The variance between runs is itself estimated, from few of them, so this is Student's t, with the degrees of freedom
    of a sum of such estimates by Satterthwaite (1946) and Welch (1947).

    Args:
        of_images: variance from the number of images, which is known.
        of_runs: variances between runs.
    """
    total = of_images + sum(spread.variance for spread in of_runs)
    estimated = sum(spread.variance**2 / spread.freedom for spread in of_runs)
    # With a million degrees of freedom Student's t is the normal distribution to six digits.
    known = estimated <= total**2 / 1e6
    quantile = ndtri(UPPER) if known else stdtrit(total**2 / estimated, UPPER)
    return float(quantile) * math.sqrt(total)


def _of_images(accuracy: float, images: int) -> float:
    """The variance of an accuracy on a sample of images, in square points.

    Two successes and two failures are added (Agresti & Coull 1998): networks that are right on all images are not
    known to be always right.
    """
    share = (accuracy / 100 * images + 2) / (images + 4)
    return 100**2 * share * (1 - share) / (images + 4)


def _of_runs(*groups: tuple[Sequence[float], float]) -> list[_Spread]:
    """Return what the spread between runs adds to the variance of a difference; nothing where it is unknown.

    Args:
        groups: accuracies of runs, and the factor of their variance in that of the difference. A run that is alone is
            taken to be spread like those of the other group.
    """
    known = [runs for runs, _ in groups if len(runs) > 1]
    if len(known) == 1:
        factor = sum(factor for _, factor in groups)
        return [_Spread(factor * variance(known[0]), len(known[0]) - 1)]
    return [_Spread(factor * variance(runs), len(runs) - 1) for runs, factor in groups if len(runs) > 1]


def validation_accuracies(records: Sequence[Json]) -> list[float]:
    """Return those of finished runs, in percent."""
    return [record["val_accuracy"] for record in records]
