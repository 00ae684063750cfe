"""One session of a grid: the loop that keeps workers busy with the missing runs and records what they finish."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import fmean
from typing import Literal

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fggp.lab.base import Json
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.worker import Event, LocalJobs, Task
from fggp.lab.training.settings import ResolvedSettings

ATTEMPTS = 2
"""How often a run is started whose worker dies."""
POLL_SECONDS = 0.5
SAME_PACE = ("data", "model", "image_size", "holdout", "batch_size", "precision", "device")
"""Runs that agree in these settings take about the same time an epoch."""


class RunQueue:
    """The runs that wait to be started, and how long a run takes.

    Args:
        waiting: by name, in the order in which to do them.
        begun: names of those that continue from a checkpoint.
        records: of finished runs, from which times are estimated.
        limit: seconds that the session has in all; None for no limit.
    """

    def __init__(
        self, waiting: dict[str, ResolvedSettings], begun: set[str], records: Iterable[Json], limit: float | None
    ) -> None:
        self.waiting, self.begun, self.limit = waiting, begun, limit
        self.epoch_seconds: dict[tuple[object, ...], list[float]] = {}
        for record in records:
            self.add_record(record)

    def add_record(self, record: Json) -> None:
        """Take a finished run into account."""
        settings = record["settings"]
        for key in _pace_keys(settings):
            self.epoch_seconds.setdefault(key, []).append(record["wall_seconds"] / settings["epochs"])

    def estimate(self, settings: ResolvedSettings) -> float | None:
        """Return how many seconds a run takes, by runs of its method or else of any; None where there are none."""
        for key in _pace_keys(settings.as_json()):
            if key in self.epoch_seconds:
                return settings.epochs * fmean(self.epoch_seconds[key])
        return None

    def next(self, seconds_left: float | None) -> str | None:
        """Remove and return the next run: those begun first, then the first that can end in the time left.

        A run longer than the whole limit is started too: otherwise no number of sessions would ever finish it.
        """
        for name in sorted(self.waiting, key=lambda name: name not in self.begun):
            estimate = self.estimate(self.waiting[name])
            fits = seconds_left is None or estimate is None or estimate <= seconds_left
            never_fits = estimate is not None and self.limit is not None and estimate > self.limit
            if fits or never_fits or name in self.begun:
                del self.waiting[name]
                return name
        return None


def _pace_keys(settings: Json) -> list[tuple[object, ...]]:
    shared = tuple(settings.get(name) for name in SAME_PACE)
    return [(*shared, settings["method"]), shared]


@dataclass
class GridResult:
    """The state of a grid.

    Args:
        total: number of its runs.
        finished: number of those that are finished.
        failed: runs that could not be finished, and why.
    """

    total: int
    finished: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether every run is finished."""
        return self.finished == self.total

    def __str__(self) -> str:
        return f"{self.finished} of {self.total} runs finished"


class Session:
    """Trains a grid's missing runs, or those of them that end in time.

    It shows a live bar for each run in a terminal, and a line for each finished run anywhere.

    Args:
        folder: takes the records.
        missing: the runs by name.
        result: kept up to date.
        jobs: the workers.
        console: shows the progress.
        clock: returns the time.
        deadline: when to have stopped, by that clock; None for never.
        shown: which accuracy to show of a finished run.
    """

    def __init__(
        self,
        folder: GridFolder,
        missing: dict[str, ResolvedSettings],
        result: GridResult,
        jobs: LocalJobs,
        console: Console,
        clock: Callable[[], float] = time.time,
        deadline: float | None = None,
        shown: Literal["val", "test"] = "test",
    ) -> None:
        self.shown = shown
        self.folder, self.missing, self.result, self.jobs = folder, missing, result, jobs
        self.console, self.clock, self.deadline = console, clock, deadline
        lines = {name: folder.run_folder(name).last_epoch() for name in missing}
        self.epochs_done = {name: 0 if line is None else line["epoch"] for name, line in lines.items()}
        self.epochs_before = sum(self.epochs_done.values())
        begun = {name for name, epochs in self.epochs_done.items() if epochs}
        self.queue = RunQueue(dict(missing), begun, folder.records.values(), self._seconds_left())
        self.attempts = dict.fromkeys(missing, 0)
        self.ending = False
        self.began = time.monotonic()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}"),
            console=console,
            refresh_per_second=4,
            expand=True,
            transient=True,
            disable=not console.is_terminal,
        )
        self.overall = self.bars.add_task("", total=sum(run.epochs for run in missing.values()), state="")
        self.running: dict[str, TaskID] = {}

    def run(self) -> None:
        """Train until every run is finished or failed, or the deadline."""
        with self.bars:
            self._refresh()
            while (left := self._seconds_left()) is None or left > 0:
                while not self.ending and self.jobs.free_slots() and (name := self.queue.next(self._seconds_left())):
                    self._start(name)
                if not self.running:
                    break
                for event in self.jobs.events(POLL_SECONDS if left is None else min(POLL_SECONDS, left)):
                    self._handle(event)
            for name in [*self.running]:
                self._stopped(name)

    def _seconds_left(self) -> float | None:
        return None if self.deadline is None else self.deadline - self.clock()

    def _start(self, name: str) -> None:
        done, epochs = self.epochs_done[name], self.missing[name].epochs
        self.attempts[name] += 1
        self.running[name] = self.bars.add_task(name, total=epochs, completed=done, state=f"epoch {done + 1}/{epochs}")
        self.jobs.start(Task(name, self.missing[name], self.deadline))

    def _handle(self, event: Event) -> None:
        name = event.run
        if event.kind == "epoch":
            self._epoch(name, event.content)
        elif event.kind == "finished":
            self._finished(name, event.content)
        elif event.kind == "stopped":
            self.ending = True  # the time left is too short for an epoch
            self._stopped(name)
        elif event.kind == "died" and self.attempts[name] < ATTEMPTS:
            self._end(name, f"{name}  {event.reason}; trying once more", style="yellow")
            self.queue.waiting[name] = self.missing[name]
            self.queue.begun.add(name)
        else:
            self._end(name, f"{name}  failed: {event.reason}", style="red")
            self.result.failed[name] = event.reason

    def _epoch(self, name: str, line: Json) -> None:
        self.epochs_done[name] = line["epoch"]
        which = "test" if line["val_accuracy"] is None else "val"
        state = f"epoch {line['epoch']}/{self.missing[name].epochs}  {which} {line[f'{which}_accuracy']:.1f} %"
        self.bars.update(self.running[name], completed=line["epoch"], state=state)
        self._refresh()

    def _finished(self, name: str, record: Json) -> None:
        self.folder.append(record)
        self.queue.add_record(record)
        self.result.finished += 1
        self.epochs_done[name] = self.missing[name].epochs
        time_left = self._time_left()
        self._end(
            name,
            f"{self.result.finished}/{self.result.total}  {name}  {self.shown} {record[f'{self.shown}_accuracy']:.2f} %"
            f"  {timedelta(seconds=round(record['wall_seconds']))}{f'  ({time_left})' if time_left else ''}",
        )

    def _stopped(self, name: str) -> None:
        self._end(name, f"{name}  stopped after epoch {self.epochs_done[name]} of {self.missing[name].epochs}")

    def _end(self, name: str, text: str, style: str | None = None) -> None:
        """Remove a run's bar and print its line."""
        self.bars.remove_task(self.running.pop(name))
        self._refresh()
        self.console.print(text, style=style, highlight=False, soft_wrap=True, markup=False)

    def _refresh(self) -> None:
        runs = f"{self.result.finished}/{self.result.total} runs"
        done = sum(self.epochs_done.values())
        self.bars.update(self.overall, completed=done, description=runs, state=self._time_left())

    def _time_left(self) -> str:
        """Estimate it from the epochs of this session; empty before the first."""
        done = sum(self.epochs_done.values())
        if done <= self.epochs_before:
            return ""
        epochs = sum(run.epochs for run in self.missing.values())
        seconds = (time.monotonic() - self.began) / (done - self.epochs_before) * (epochs - done)
        return f"{timedelta(seconds=round(seconds))} left"
