"""`fggp grid`: every run of a grid, once, whatever happens in between."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import fields, replace
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from fggp.lab.base.errors import UsageError
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.local_jobs import LocalJobs
from fggp.lab.grid.plan import FIELDS, plan_runs, read_tables
from fggp.lab.grid.ray_jobs import RayJobs
from fggp.lab.grid.session import GridResult, run_missing
from fggp.lab.training.data import load_data
from fggp.lab.training.settings import GridSettings, ResolvedSettings
from fggp.lab.training.trainer import Trainer

STOP_SECONDS = 2.0
"""How much of a time limit is kept for stopping."""


def grid(settings: GridSettings, console: Console, clock: Callable[[], float] = time.time) -> GridResult:
    """Do what is missing of a grid.

    Args:
        settings: what the grid is, where it goes, and how it is run.
        console: shows its progress.
        clock: tells the time for the time limit.

    Raises:
        UsageError: an entry or the folder is not as it should be; nothing was run.
    """
    start, limit = clock(), settings.seconds
    tables = read_tables(settings.file, _flags(settings))
    folder = GridFolder(settings.out or Path("fggp-grids") / (settings.file.stem if settings.file else "grid"))
    with ExitStack() as stack:
        cluster = stack.enter_context(closing(_cluster(settings))) if settings.ray else None
        runs = plan_runs(tables) if cluster is None else cluster.plan(tables)
        if settings.dry_run:
            return _list(folder, runs, console)
        stack.enter_context(_termination_is_interruption())
        stack.enter_context(folder.locked())
        named = folder.name_runs(runs)
        folder.read_records(console)
        missing = {name: run for name, run in named.items() if not folder.finished(name)}
        _try(missing.values(), console)
        folder.adopt(named)
        result = GridResult(len(named), len(named) - len(missing))
        console.print(f"{result} in {folder.path}", highlight=False, soft_wrap=True)
        if missing:
            deadline = None if limit is None else start + limit - STOP_SECONDS
            jobs = cluster or stack.enter_context(closing(LocalJobs(min(settings.jobs or 1, len(missing)))))
            run_missing(folder, missing, result, jobs, console, clock, deadline)
    _summarise(folder, result, console)
    return result


def _cluster(settings: GridSettings) -> RayJobs:
    return RayJobs(settings.ray or "auto", settings.ray_cpus, settings.ray_gpus, settings.jobs)


def _list(folder: GridFolder, runs: Sequence[ResolvedSettings], console: Console) -> GridResult:
    named = folder.name_runs(runs)
    folder.read_records(console, mend=False)
    result = GridResult(len(named))
    for name in named:
        finished = name in folder.records or folder.run_folder(name).record() is not None
        result.finished += finished
        console.print(f"{'finished' if finished else 'missing ':8}  {name}", highlight=False, soft_wrap=True)
    console.print(f"{result} in {folder.path}", highlight=False, soft_wrap=True)
    return result


def _try(runs: Iterable[ResolvedSettings], console: Console) -> None:
    """Find out what would fail hours later: load each data set, which also downloads it, and try each model on it."""
    pairs: dict[tuple[object, ...], dict[str, ResolvedSettings]] = {}
    for run in runs:
        pairs.setdefault((run.data, run.data_name, run.image_size, run.holdout), {})[run.model] = run
    for by_model in pairs.values():
        data = None
        for run in by_model.values():
            data = load_data(run, console) if data is None else data
            Trainer(replace(run, device="cpu", precision="fp32"), data)


def _flags(settings: GridSettings) -> dict[str, list[Any]]:
    values = {f.name: getattr(settings, f.name) for f in fields(settings) if f.name in FIELDS}
    flags = {
        name: list(value) if isinstance(value, tuple) else [value]
        for name, value in values.items()
        if value is not None
    }
    if settings.file is None and not flags:
        raise UsageError("name a grid file, or say what to run, such as --method dense gmp fggp --seed 0 1 2")
    return flags


@contextmanager
def _termination_is_interruption() -> Iterator[None]:
    """Treat SIGTERM, which batch systems send, as Ctrl-C."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals are the main thread's business
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _summarise(folder: GridFolder, result: GridResult, console: Console) -> None:
    for name, reason in result.failed.items():
        console.print(f"{name} failed: {reason.strip().splitlines()[-1]}", style="red", highlight=False, markup=False)
    again = "" if result.complete else "; the same command goes on"
    console.print(f"{result}{again}", highlight=False, soft_wrap=True)
    console.print(f"records   {folder.records_file}", highlight=False, soft_wrap=True)
