"""One run of a grid, as a worker does it on whichever machine: exclusively, from where it stands, within the time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from rich.console import Console

from fggp.lab.training.data import ImageData, load_data
from fggp.lab.training.run_folder import Json, RunFolder
from fggp.lab.training.settings import ResolvedSettings, TrainSettings
from fggp.lab.training.train import run_to_end

# A worker whose grid command or node was killed lets go within a second; only on network disks it may take longer.
LOCK_SECONDS = 120
DATA_SETS = 2


@dataclass(frozen=True)
class Task:
    """A run to be done.

    Args:
        run: its name.
        settings: what to do; `out` is the run folder.
        deadline: when it must have stopped, in seconds as `time.time` counts them; None for never.
    """

    run: str
    settings: ResolvedSettings
    deadline: float | None


@dataclass(frozen=True)
class Event:
    """What became of a run.

    Args:
        run: its name.
        kind: "epoch" (content: its metrics line), "finished" (the record), "stopped" by the deadline, "failed" by an
            error of its own (``reason``), or "died" with its worker.
        content: see there; empty for the other kinds.
        reason: a line or more for the user.
    """

    run: str
    kind: Literal["epoch", "finished", "stopped", "failed", "died"]
    content: Json
    reason: str = ""


class OutOfTimeError(Exception):
    """The next epoch would not end before the deadline."""


def work(task: Task, on_epoch: Callable[[Json], None], clock: Callable[[], float] = time.time) -> Json | None:
    """Do a run, or what is left of it.

    Args:
        task: the run.
        on_epoch: called with the metrics line of every finished epoch.
        clock: tells the time that the deadline is given in.

    Returns:
        The record; None if time ran out, which leaves a checkpoint.

    Raises:
        UsageError: as `fggp.lab.training.train.train` does, or the run is being done elsewhere.
    """
    settings, folder = task.settings, RunFolder(task.settings.out)
    stop_in_time = _Watch(task, clock)

    def after_epoch(line: Json) -> None:
        on_epoch(line)
        stop_in_time(line["epoch"])

    # One of a command that was killed may not be dead yet.
    with folder.locked(LOCK_SECONDS):
        record = folder.record()
        if record is None:
            if folder.holds_run():
                folder.check_settings(settings.as_json())
            quiet = Console(quiet=True, force_terminal=False)
            try:
                record = run_to_end(folder, settings, lambda: data_of(settings), quiet, after_epoch=after_epoch)
            except OutOfTimeError:
                return None
        folder.checkpoint_file.unlink(missing_ok=True)  # several times the model's size, and of no more use
        return record


class _Watch:
    """Ends a run after an epoch if another one as long as the longest so far would pass the deadline."""

    def __init__(self, task: Task, clock: Callable[[], float]) -> None:
        self.task, self.clock = task, clock
        self.latest = clock()
        self.longest = 0.0

    def __call__(self, epoch: int) -> None:
        now = self.clock()
        self.longest = max(self.longest, now - self.latest)
        self.latest = now
        deadline = self.task.deadline
        if deadline is not None and epoch < self.task.settings.epochs and now + self.longest > deadline:
            raise OutOfTimeError


def data_of(settings: ResolvedSettings) -> ImageData:
    """Load a run's data, or return them as an earlier run of this worker loaded them."""
    names = ("data", "data_name", "data_dir", "image_size", "holdout")
    return _data(TrainSettings(**{name: getattr(settings, name) for name in names}, device="cpu").resolve())


@lru_cache(DATA_SETS)
def _data(settings: ResolvedSettings) -> ImageData:
    return load_data(settings, Console(quiet=True, force_terminal=False))
