"""The loop that keeps workers busy with a grid's missing runs, and writes down what they finish."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from rich.console import Console

from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.progress import GridProgress
from fggp.lab.grid.schedule import Pace, Schedule
from fggp.lab.grid.work import Event, Task
from fggp.lab.training.settings import ResolvedSettings

TRIES = 2
"""How often a run is begun whose worker dies."""
POLL_SECONDS = 0.5


class Jobs(Protocol):
    """Where runs are done, several at once."""

    def room(self) -> int:
        """Return how many more runs may be started now."""
        ...

    def start(self, task: Task) -> None:
        """Start a run."""
        ...

    def events(self, seconds: float) -> list[Event]:
        """Wait for something to happen, at most so many seconds, and return what did."""
        ...

    def close(self) -> None:
        """End whatever is running, at once."""
        ...


@dataclass
class GridResult:
    """How far a grid is.

    Args:
        total: its runs.
        finished: how many of them are.
        failed: those that could not be finished, and why.
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


def run_missing(
    folder: GridFolder,
    missing: dict[str, ResolvedSettings],
    result: GridResult,
    jobs: Jobs,
    console: Console,
    clock: Callable[[], float],
    deadline: float | None,
) -> None:
    """Do all runs that are missing, or as many as can be done in time.

    Args:
        folder: takes the records.
        missing: the runs by name.
        result: is kept up to date.
        jobs: does the runs.
        console: shows the progress.
        clock: tells the time.
        deadline: when to have stopped, by that clock; None for never.
    """

    def left() -> float | None:
        return None if deadline is None else deadline - clock()

    latest = {name: folder.run_folder(name).last_epoch() for name in missing}
    done = {name: 0 if line is None else line["epoch"] for name, line in latest.items()}
    begun = {name for name in missing if done[name]}
    schedule = Schedule(dict(missing), begun, Pace(folder.records.values()), left())
    tries = dict.fromkeys(missing, 0)
    running: set[str] = set()
    ending = False
    epochs = {name: (settings.epochs, done[name]) for name, settings in missing.items()}
    with GridProgress(console, result.total, result.finished, epochs) as progress:

        def take_in(event: Event) -> None:
            nonlocal ending
            name = event.run
            if event.kind == "epoch":
                progress.epoch(name, event.content)
                return
            running.remove(name)
            if event.kind == "finished":
                folder.append(event.content)
                schedule.pace.add(event.content)
                result.finished += 1
                progress.finished(name, event.content)
            elif event.kind == "stopped":
                ending = True  # what is left of the time is too short for an epoch
                progress.stopped(name)
            elif event.kind == "died" and tries[name] < TRIES:
                schedule.waiting[name] = missing[name]
                schedule.begun.add(name)
                progress.again(name, event.reason)
            else:
                result.failed[name] = event.reason
                progress.failed(name, event.reason)

        while (remaining := left()) is None or remaining > 0:
            while not ending and jobs.room() and (name := schedule.next(left())):
                tries[name] += 1
                running.add(name)
                progress.started(name)
                jobs.start(Task(name, missing[name], deadline))
            if not running:
                break
            for event in jobs.events(POLL_SECONDS if remaining is None else min(POLL_SECONDS, remaining)):
                take_in(event)
        for name in running:
            progress.stopped(name)
