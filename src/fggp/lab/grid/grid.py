"""`fggp grid`: every run of a grid, once, however often the command is interrupted."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal

from rich.console import Console

from fggp.lab.base.errors import UsageError
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.plan import FIELDS, plan_runs, read_tables
from fggp.lab.grid.session import GridResult, Session
from fggp.lab.grid.settings import GridSettings
from fggp.lab.grid.worker import LocalJobs
from fggp.lab.training.data import load_data
from fggp.lab.training.settings import ResolvedSettings
from fggp.lab.training.trainer import Trainer

STOP_SECONDS = 2.0
"""How much of a time limit is kept for stopping."""


def grid(settings: GridSettings, console: Console, clock: Callable[[], float] = time.time) -> GridResult:
    """Train the runs of a grid that are missing.

    Args:
        settings: the grid, its folder, and how to run it.
        console: shows its progress.
        clock: returns the time for the time limit.

    Raises:
        UsageError: a setting or the folder is wrong; nothing was run.
    """
    deadline = None if settings.seconds is None else clock() + settings.seconds - STOP_SECONDS
    runs = plan_runs(read_tables(settings.file, _options(settings)))
    folder = GridFolder(settings.out or Path("fggp-grids") / (settings.file.stem if settings.file else "grid"))
    if settings.dry_run:
        return _list(folder, runs, console)
    result = run_grid(folder, runs, settings.jobs or 1, console, clock, deadline)
    for name, reason in result.failed.items():
        console.print(f"{name} failed: {reason.strip().splitlines()[-1]}", style="red", highlight=False, markup=False)
    again = "" if result.complete else "; the same command continues"
    console.print(f"{result}{again}", highlight=False, soft_wrap=True)
    console.print(f"records   {folder.records_file}", highlight=False, soft_wrap=True)
    return result


def run_grid(
    folder: GridFolder,
    runs: Sequence[ResolvedSettings],
    jobs: int,
    console: Console,
    clock: Callable[[], float] = time.time,
    deadline: float | None = None,
) -> GridResult:
    """Train those of the runs that a folder has no record of; the arguments are those of `OpenGrid`.

    Raises:
        UsageError: a run or the folder is wrong; nothing was run.
    """
    with OpenGrid(folder, jobs, console, clock, deadline) as grid:
        return grid.run(runs)


class OpenGrid:
    """A grid that runs can be added to, for as long as the context lasts; the workers stay.

    Args:
        folder: of the grid; its ``records`` are those of all finished runs.
        jobs: number of runs at once.
        console: shows the progress.
        clock: returns the time.
        deadline: when to have stopped, by that clock; None for never.
    """

    def __init__(
        self,
        folder: GridFolder,
        jobs: int,
        console: Console,
        clock: Callable[[], float] = time.time,
        deadline: float | None = None,
    ) -> None:
        self.folder, self.jobs, self.console, self.clock, self.deadline = folder, jobs, console, clock, deadline
        self._workers: LocalJobs | None = None
        self._checked: set[tuple[object, ...]] = set()
        self._told = False
        self._until_closed = ExitStack()

    def __enter__(self) -> "OpenGrid":
        with ExitStack() as entered:
            entered.enter_context(_termination_as_interrupt())
            entered.enter_context(self.folder.locked())
            self._until_closed = entered.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._until_closed.close()

    def run(self, runs: Sequence[ResolvedSettings], shown: Literal["val", "test"] = "test") -> GridResult:
        """Train those of the runs that the folder has no record of.

        Args:
            runs: in order.
            shown: which accuracy to show of a finished run.

        Raises:
            UsageError: a run or the folder is wrong; nothing was run.
        """
        folder = self.folder
        named = folder.name_runs(runs)
        folder.read_records(self.console)
        missing = {name: run for name, run in named.items() if not folder.finished(name)}
        self._check_data_and_models(missing.values())
        folder.adopt(named)
        result = GridResult(len(named), len(named) - len(missing))
        if not self._told:
            self.console.print(f"{result} in {folder.path}", highlight=False, soft_wrap=True)
            self._told = True
        if missing:
            if self._workers is None:
                self._workers = self._until_closed.enter_context(closing(LocalJobs(min(self.jobs, len(missing)))))
            Session(folder, missing, result, self._workers, self.console, self.clock, self.deadline, shown=shown).run()
        return result

    def _check_data_and_models(self, runs: Iterable[ResolvedSettings]) -> None:
        """Find what would fail hours later: load (or download) each data set, and try each model and weights on it."""
        by_data: dict[tuple[object, ...], dict[tuple[object, ...], ResolvedSettings]] = {}
        for run in runs:
            data_key: tuple[object, ...] = (run.data, run.data_name, run.image_size, run.holdout)
            by_data.setdefault(data_key, {})[run.model, run.weights, run.distill] = run
        for data_key, by_start in by_data.items():
            new = {key: run for key, run in by_start.items() if (*data_key, *key) not in self._checked}
            if new:
                data = load_data(next(iter(new.values())), self.console)
            for key, run in new.items():
                Trainer(replace(run, device="cpu", precision="fp32"), data)
                self._checked.add((*data_key, *key))


def _list(folder: GridFolder, runs: Sequence[ResolvedSettings], console: Console) -> GridResult:
    named = folder.name_runs(runs)
    folder.read_records(console, repair=False)
    result = GridResult(len(named))
    for name in named:
        finished = name in folder.records or folder.run_folder(name).record() is not None
        result.finished += finished
        console.print(f"{'finished' if finished else 'missing ':8}  {name}", highlight=False, soft_wrap=True)
    console.print(f"{result} in {folder.path}", highlight=False, soft_wrap=True)
    return result


def _options(settings: GridSettings) -> dict[str, list[Any]]:
    """Return the settings of runs that the command line gives, as lists of values."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in FIELDS}
    given = {
        name: list(value) if isinstance(value, tuple) else [value]
        for name, value in values.items()
        if value is not None
    }
    if settings.file is None and not given:
        raise UsageError("name a grid file, or say what to run, such as --method dense gmp fggp --seed 0 1 2")
    return given


@contextmanager
def _termination_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM, which batch systems send, as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread can set handlers
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
