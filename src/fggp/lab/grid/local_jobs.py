"""Several runs at once on one machine, each in a worker process of its own."""

import multiprocessing
import os
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

import torch

from fggp.lab.base.errors import UsageError
from fggp.lab.grid.work import Event, Task, work
from fggp.lab.training.run_folder import Json

# Fresh interpreters, not forks: torch has threads already, and CUDA does not survive a fork.
CONTEXT = multiprocessing.get_context("spawn")


@dataclass
class _Worker:
    process: SpawnProcess
    connection: "Connection[Task, Event]"
    run: str = ""


class LocalJobs:
    """Worker processes that live as long as the grid and do a run at a time.

    A `concurrent.futures.ProcessPoolExecutor` ends all its workers when one of them dies, and they outlive a parent
    that is killed. Here each worker has a pipe of its own to the parent, dies with it, and takes only its run along.

    Args:
        jobs: how many runs at once; torch's threads and the GPUs are divided among them.
    """

    def __init__(self, jobs: int) -> None:
        self.threads = max(1, torch.get_num_threads() // jobs)
        self.workers: list[_Worker | None] = [None] * jobs

    def room(self) -> int:
        """Return how many more runs may be started now."""
        return sum(worker is None or not worker.run for worker in self.workers)

    def start(self, task: Task) -> None:
        """Give a run to a worker that has none."""
        slot = next(slot for slot, worker in enumerate(self.workers) if worker is None or not worker.run)
        worker = self.workers[slot]
        if worker is None or not worker.process.is_alive():
            worker = self.workers[slot] = self._new_worker(slot)
        worker.run = task.run
        worker.connection.send(task)

    def _new_worker(self, slot: int) -> _Worker:
        own, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_serve, args=(theirs, slot, self.threads), daemon=True)
        process.start()
        theirs.close()  # or the end of a dead worker's pipe would never be seen
        return _Worker(process, own)

    def events(self, seconds: float) -> list[Event]:
        """Wait for something to happen, at most so many seconds, and return what did."""
        busy = [worker for worker in self.workers if worker is not None and worker.run]
        ready = wait([worker.connection for worker in busy], seconds)
        return [self._event(worker) for worker in busy if worker.connection in ready]

    def _event(self, worker: _Worker) -> Event:
        try:
            event = worker.connection.recv()
        except (EOFError, OSError):
            worker.process.join()
            event = Event(worker.run, "died", {}, _cause(worker.process.exitcode))
            self.workers[self.workers.index(worker)] = None
        if event.kind != "epoch":
            worker.run = ""
        return event

    def close(self) -> None:
        """End all workers at once; runs under way can be gone on with from their last checkpoint."""
        for worker in self.workers:
            if worker is not None:
                worker.process.kill()
        for worker in self.workers:
            if worker is not None:
                worker.process.join()


def _cause(code: int | None) -> str:
    if code is None or code >= 0:
        return f"its worker process exited with {code}"
    name = signal.Signals(-code).name
    hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
    return f"its worker process was ended by {name}{hint}"


def _serve(connection: "Connection[Event, Task]", slot: int, threads: int) -> None:
    """Do runs until the parent closes the pipe, dies, or a run fails in a way that may have harmed this process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends its workers
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        run = task.run
        if task.settings.device == "cuda":
            torch.cuda.set_device(slot % torch.cuda.device_count())

        def tell(line: Json, run: str = run) -> None:
            connection.send(Event(run, "epoch", line))

        try:
            record = work(task, tell)
        except UsageError as error:
            connection.send(Event(run, "failed", {}, str(error)))
        except Exception:
            # A CUDA error, say, spoils all that this process would do after it.
            connection.send(Event(run, "failed", {}, traceback.format_exc()))
            return
        else:
            connection.send(Event(run, "stopped", {}) if record is None else Event(run, "finished", record))


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
