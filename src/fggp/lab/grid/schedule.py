"""Which run of a grid comes next, and which no longer fits into the time."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from fggp.lab.training.run_folder import Json
from fggp.lab.training.settings import ResolvedSettings

SIMILAR = ("data", "model", "image_size", "holdout", "batch_size", "precision", "device")
"""Runs that agree in these take about the same time an epoch."""


class Pace:
    """How long an epoch takes, as finished runs show.

    Args:
        records: of runs that are finished.
    """

    def __init__(self, records: Iterable[Json]) -> None:
        self.seconds: dict[tuple[object, ...], list[float]] = {}
        for record in records:
            self.add(record)

    def add(self, record: Json) -> None:
        """Take a finished run into account."""
        settings = record["settings"]
        for key in _keys(settings):
            self.seconds.setdefault(key, []).append(record["wall_seconds"] / settings["epochs"])

    def estimate(self, settings: ResolvedSettings) -> float | None:
        """Return how many seconds a whole run takes: as those of its method did, or else any; None where unknown."""
        for key in _keys(settings.as_json()):
            if key in self.seconds:
                return settings.epochs * fmean(self.seconds[key])
        return None


def _keys(settings: Json) -> list[tuple[object, ...]]:
    likeness = tuple(settings.get(name) for name in SIMILAR)
    return [(*likeness, settings["method"]), likeness]


@dataclass
class Schedule:
    """The runs that are waiting.

    Args:
        waiting: by name, in the order in which they are to be done.
        begun: names of those that go on from a checkpoint.
        pace: how long runs take.
        limit: seconds that the grid has in all, from now; None for no limit.
    """

    waiting: dict[str, ResolvedSettings]
    begun: set[str]
    pace: Pace
    limit: float | None

    def next(self, seconds_left: float | None) -> str | None:
        """Take out the next run: those under way come first, and none that cannot end in the time that is left.

        A run longer than the whole limit is begun all the same, or no number of sessions would ever finish it.
        """
        for name in sorted(self.waiting, key=lambda name: name not in self.begun):
            estimate = self.pace.estimate(self.waiting[name])
            fits = seconds_left is None or estimate is None or estimate <= seconds_left
            endless = estimate is not None and self.limit is not None and estimate > self.limit
            if fits or endless or name in self.begun:
                del self.waiting[name]
                return name
        return None
