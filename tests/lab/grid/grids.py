"""Help for tests of grids: small grids, workers without processes, records without times."""

from pathlib import Path

from rich.console import Console

from fggp.lab.grid.settings import GridSettings
from fggp.lab.grid.worker import Event, Task, do_run

TIMES = {"images_per_second", "wall_seconds", "date", "commit"}  # someone may commit while a test runs


def digits(out: Path, **settings) -> GridSettings:
    values = {"method": ("gmp", "fggp"), "sparsity": (0.9,), "seed": (0, 1), "epochs": (2,), "device": "cpu"}
    return GridSettings(out=out, **{**values, **settings})


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def logged(tmp_path: Path) -> tuple[Console, Path]:
    log = tmp_path / "log"
    return Console(file=log.open("w"), width=200), log


class InlineJobs:
    """Does each run in this process, as soon as it is given."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.done: list[Event] = []
        self.started: list[str] = []

    def free_slots(self) -> int:
        return 0 if self.done else 1

    def start(self, task: Task) -> None:
        self.started.append(task.run)
        record = do_run(task, lambda line: self.done.append(Event(task.run, "epoch", line)))
        self.done.append(Event(task.run, "stopped", {}) if record is None else Event(task.run, "finished", record))

    def events(self, seconds: float) -> list[Event]:
        events, self.done = self.done, []
        return events

    def close(self) -> None:
        pass
