"""Worker processes that train a grid's runs on this machine, several at once."""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Literal

import torch
from rich.console import Console

from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.training.data import ImageData, load_data
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import ResolvedSettings, TrainSettings
from fggp.lab.training.train import run_to_end

# Fresh interpreters, not forks: torch has threads already, and CUDA does not survive a fork.
CONTEXT = multiprocessing.get_context("spawn")
LOCK_SECONDS = 120
"""How long a run waits for its folder. A killed worker releases it within a second; network disks may take longer."""
CACHED_DATA_SETS = 2


@dataclass(frozen=True)
class Task:
    """A run to be done.

    Args:
        run: its name.
        settings: what to train; `out` is the run folder.
        deadline: when it must have stopped, in seconds as `time.time` counts them; None for never.
    """

    run: str
    settings: ResolvedSettings
    deadline: float | None


@dataclass(frozen=True)
class Event:
    """News of a run.

    Args:
        run: its name.
        kind: "epoch" (content: its metrics line), "finished" (content: the record), "stopped" by the deadline,
            "failed" by an error of its own, or "died" with its worker.
        content: see ``kind``; empty otherwise.
        reason: of a failure or a death, a line or more for the user.
    """

    run: str
    kind: Literal["epoch", "finished", "stopped", "failed", "died"]
    content: Json
    reason: str = ""


class OutOfTimeError(Exception):
    """The next epoch would not end before the deadline."""


def do_run(task: Task, on_epoch: Callable[[Json], None], clock: Callable[[], float] = time.time) -> Json | None:
    """Train a run to its end, from its last checkpoint if there is one.

    Args:
        task: the run.
        on_epoch: called with the metrics line of every finished epoch.
        clock: returns the time in the deadline's unit.

    Returns:
        The record; None if time ran out, which leaves a checkpoint.

    Raises:
        UsageError: as `fggp.lab.training.train.train` does, or another process trains the run.
    """
    settings, folder = task.settings, RunFolder(task.settings.out)
    latest, longest = clock(), 0.0

    def after_epoch(line: Json) -> None:
        nonlocal latest, longest
        on_epoch(line)
        now = clock()
        latest, longest = now, max(longest, now - latest)
        if task.deadline is not None and line["epoch"] < settings.epochs and now + longest > task.deadline:
            raise OutOfTimeError

    with folder.locked(LOCK_SECONDS):
        record = folder.record()
        if record is None:
            if folder.holds_run():
                folder.check_settings(settings.as_json())
            quiet = Console(quiet=True, force_terminal=False)
            try:
                record = run_to_end(folder, settings, lambda: _data_of(settings), quiet, after_epoch=after_epoch)
            except OutOfTimeError:
                return None
        folder.checkpoint_file.unlink(missing_ok=True)  # several times the model's size, and not needed any more
        return record


def _data_of(settings: ResolvedSettings) -> ImageData:
    """Load a run's data, or return them as an earlier run of this process loaded them."""
    names = ("data", "data_name", "data_dir", "image_size", "holdout")
    return _load(TrainSettings(**{name: getattr(settings, name) for name in names}, device="cpu").resolve())


@lru_cache(CACHED_DATA_SETS)
def _load(settings: ResolvedSettings) -> ImageData:
    return load_data(settings, Console(quiet=True, force_terminal=False))


@dataclass
class Worker:
    """A worker process, the pipe to it, and the name of its run ("" for none)."""

    process: SpawnProcess
    connection: "Connection[Task, Event]"
    run: str = ""


class LocalJobs:
    """Worker processes that live as long as the grid; each trains one run at a time.

    A `concurrent.futures.ProcessPoolExecutor` ends all its workers when one of them dies, and its workers outlive a
    parent that is killed. Here each worker has its own pipe to the parent, dies with it, and fails alone.

    Args:
        jobs: number of runs at once; torch's threads and the GPUs are divided among them.
    """

    def __init__(self, jobs: int) -> None:
        self.threads = max(1, torch.get_num_threads() // jobs)
        self.workers: list[Worker | None] = [None] * jobs

    def free_slots(self) -> int:
        """Return how many more runs can be started now."""
        return sum(worker is None or not worker.run for worker in self.workers)

    def start(self, task: Task) -> None:
        """Give a run to a free worker."""
        slot = next(slot for slot, worker in enumerate(self.workers) if worker is None or not worker.run)
        worker = self.workers[slot]
        if worker is None or not worker.process.is_alive():
            own, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=serve, args=(theirs, slot, self.threads), daemon=True)
            process.start()
            theirs.close()  # otherwise the end of a dead worker's pipe is never seen
            worker = self.workers[slot] = Worker(process, own)
        worker.run = task.run
        worker.connection.send(task)

    def events(self, seconds: float) -> list[Event]:
        """Wait for news, at most this many seconds, and return it."""
        busy = [worker for worker in self.workers if worker is not None and worker.run]
        ready = wait([worker.connection for worker in busy], seconds)
        return [self._receive(worker) for worker in busy if worker.connection in ready]

    def _receive(self, worker: Worker) -> Event:
        try:
            event = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            event = Event(worker.run, "died", {}, _cause_of_death(worker.process.exitcode))
            self.workers[self.workers.index(worker)] = None
        if event.kind != "epoch":
            worker.run = ""
        return event

    def close(self) -> None:
        """End all workers at once; their runs can be continued from their last checkpoints."""
        workers = [worker for worker in self.workers if worker is not None]
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()


def _cause_of_death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its worker process exited with {code}"
    name = signal.Signals(-code).name
    hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
    return f"its worker process was ended by {name}{hint}"


def serve(connection: "Connection[Event, Task]", slot: int, threads: int) -> None:
    """Train runs until the parent closes the pipe or dies, or a run fails in a way that may harm this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        run = task.run
        if task.settings.device == "cuda":
            torch.cuda.set_device(slot % torch.cuda.device_count())

        def on_epoch(line: Json, run: str = run) -> None:
            connection.send(Event(run, "epoch", line))

        try:
            record = do_run(task, on_epoch)
        except UsageError as error:
            connection.send(Event(run, "failed", {}, str(error)))
        except Exception:
            # After a CUDA error, for example, nothing in this process works.
            connection.send(Event(run, "failed", {}, traceback.format_exc()))
            return
        else:
            connection.send(Event(run, "stopped", {}) if record is None else Event(run, "finished", record))


def die_with_parent() -> None:
    """Wait for the parent's end, then end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
