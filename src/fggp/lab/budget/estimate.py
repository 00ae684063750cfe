"""What the accuracies of a few runs on a few images tell of a difference, and how surely."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from fggp.lab.base import Json

Z = 1.96
"""Standard errors on each side of a 95 % interval."""


@dataclass(frozen=True)
class Estimate:
    """How far pruned networks are below dense ones, in percent points.

    Attributes:
        drop: on the validation images, the mean over the runs.
        noise: half of the width of a 95 % interval around it, from the number of images and the spread of the runs.
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


def estimate(dense: Sequence[float], pruned: Sequence[float], images: int, start: float | None = None) -> Estimate:
    """Compare validation accuracies.

    Args:
        dense, pruned: of their runs, in percent.
        images: number of validation images.
        start: accuracy of the trained weights that the runs start from; if it is above the dense runs' mean, the
            comparison is with it.
    """
    reference = max(fmean(dense), -math.inf if start is None else start)
    variance = _of_images(reference, images) + _of_images(fmean(pruned), images)
    variance += _of_runs(dense, pruned) / len(dense) + _of_runs(pruned, dense) / len(pruned)
    return Estimate(reference - fmean(pruned), Z * math.sqrt(variance), len(pruned), fmean(pruned))


def noise_of_one_run(dense: Sequence[float], pruned: Sequence[float], images: tuple[int, int]) -> float:
    """Return how far, within 95 %, one network's drop on test images may be from the mean on validation images.

    Args:
        dense, pruned: validation accuracies of the runs, in percent.
        images: numbers of validation and of test images.
    """
    variance = sum(_of_images(fmean(runs), count) for runs in (dense, pruned) for count in images)
    variance += _of_runs(dense, pruned) / len(dense) + _of_runs(pruned, dense) * (1 + 1 / len(pruned))
    return Z * math.sqrt(variance)


def _of_images(accuracy: float, images: int) -> float:
    """The variance of an accuracy on a sample of images, in square points.

    Two successes and two failures are added (Agresti & Coull 1998): networks that are right on all images are not
    known to be always right.
    """
    share = (accuracy / 100 * images + 2) / (images + 4)
    return 100**2 * share * (1 - share) / (images + 4)


def _of_runs(accuracies: Sequence[float], others: Sequence[float]) -> float:
    """The variance between runs, of these or, where there is only one, of the others; 0 where nothing is known."""
    known = accuracies if len(accuracies) > 1 else others
    return stdev(known) ** 2 if len(known) > 1 else 0.0


def validation_accuracies(records: Sequence[Json]) -> list[float]:
    """Return those of finished runs, in percent."""
    return [record["val_accuracy"] for record in records]
