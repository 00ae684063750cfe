"""The runs of a grid on all machines of a Ray cluster.

Every machine needs fggp as it is here, and the data at the same path, or the network to download them. Where the grid's
folder is at the same path on a shared disk, a run whose machine is lost goes on from its last checkpoint elsewhere;
where it is not, it starts over, and finished runs are sent here.
"""

import importlib
import logging
import os
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from filelock import FileLock

from fggp.atomic import atomic_write
from fggp.lab.base.errors import UsageError
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.plan import Table, plan_runs
from fggp.lab.grid.work import Event, Task, data_of, work
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import ResolvedSettings

RETRIES = 3
"""How often Ray begins a run again whose worker or machine is lost."""
LOOK_SECONDS = 2.0
"""How often shared run folders are read for progress."""

Files = dict[str, bytes]


class RayJobs:
    """One Ray task a run; Ray finds the machine, and another one if that is lost.

    Args:
        address: of the cluster, as `ray.init` takes it.
        cpus: that a run takes, which are also its threads.
        gpus: that a run takes if its device is cuda.
        jobs: runs at once; None for as many as there is room for.

    Raises:
        UsageError: Ray is not installed, or there is no such cluster.
    """

    def __init__(self, address: str, cpus: float, gpus: float, jobs: int | None) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ModuleNotFoundError as error:
            raise UsageError("Ray is not installed: pip install 'fggp[ray]'") from error
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError, AssertionError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise UsageError(f"ray is {address!r}, where no Ray cluster can be reached: {reason}") from error
        self.ray = ray
        self.cpus, self.gpus, self.jobs = cpus, gpus, jobs
        self.on_gpus = False
        self.tasks: dict[Any, Task] = {}
        self.epochs: dict[str, int] = {}
        self.looked = 0.0

    def plan(self, tables: Sequence[Table]) -> list[ResolvedSettings]:
        """Multiply a grid out, where its runs will be: device and precision are those of the cluster's machines.

        Raises:
            UsageError: as `plan_runs` does.
        """
        gpus = self.gpus if any("GPU" in resources for resources in self._machines()) else 0.0
        remote = self.ray.remote(num_cpus=self.cpus, num_gpus=gpus)(_plan)
        runs: list[ResolvedSettings] | str = self.ray.get(remote.remote(tables))
        if isinstance(runs, str):
            raise UsageError(runs)
        self.on_gpus = any(run.device != "cpu" for run in runs)
        return runs

    def _machines(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]

    def room(self) -> int:
        """Return how many more runs may be started now; machines may come and go."""
        if self.jobs is not None:
            return self.jobs - len(self.tasks)
        needs = {"CPU": self.cpus} | ({"GPU": self.gpus} if self.on_gpus else {})
        room = sum(
            min(int(machine.get(name, 0) / need) for name, need in needs.items()) for machine in self._machines()
        )
        # One at least: what is asked for is what makes a cluster grow that can.
        return max(1, room) - len(self.tasks)

    def start(self, task: Task) -> None:
        """Hand a run to Ray."""
        folder = task.settings.out.resolve()
        grid = GridFolder(folder.parent.parent)
        kind, _, path = task.settings.data.partition(":")
        settings = replace(
            task.settings,
            out=folder,
            data_dir=task.settings.data_dir.resolve(),
            data=f"{kind}:{Path(path).resolve()}" if path else kind,
        )
        remote = self.ray.remote(
            num_cpus=self.cpus,
            num_gpus=0.0 if settings.device == "cpu" else self.gpus,
            max_retries=RETRIES,
        )(_work_on_node)
        reference = remote.remote(replace(task, settings=settings), grid.read_id(), max(1, int(self.cpus)))
        self.tasks[reference] = task

    def events(self, seconds: float) -> list[Event]:
        """Wait for something to happen, at most so many seconds, and return what did."""
        ready, _ = self.ray.wait(list(self.tasks), timeout=seconds)
        return self._looked_up() + [self._event(reference) for reference in ready]

    def _event(self, reference: Any) -> Event:
        task = self.tasks.pop(reference)
        try:
            event, files = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            # Ray has tried again already, so this is the end of it.
            return Event(task.run, "failed", {}, f"Ray gave it up: {error}")
        if files:
            _write(RunFolder(task.settings.out), files)
        return Event(task.run, event.kind, event.content, event.reason)

    def _looked_up(self) -> list[Event]:
        """Read from the run folders which epochs were finished since the last time."""
        events: list[Event] = []
        if time.monotonic() - self.looked < LOOK_SECONDS:
            return events
        self.looked = time.monotonic()
        for task in self.tasks.values():
            line = RunFolder(task.settings.out).last_epoch()
            if line is not None and line["epoch"] != self.epochs.get(task.run):
                self.epochs[task.run] = line["epoch"]
                events.append(Event(task.run, "epoch", line))
        return events

    def close(self) -> None:
        """End all runs at once; those on a shared disk can be gone on with from their last checkpoint."""
        for reference in self.tasks:
            self.ray.cancel(reference, force=True)
        self.ray.shutdown()


def _plan(tables: Sequence[Table]) -> list[ResolvedSettings] | str:
    """Return the runs, or what is wrong with the grid: Ray would wrap an exception up in its own."""
    try:
        return plan_runs(tables)
    except UsageError as error:
        return str(error)


def _work_on_node(task: Task, grid: str | None, threads: int) -> tuple[Event, Files]:
    """Do a run in its folder if this machine has it, else in a folder of its own, whose files are returned."""
    torch.set_num_threads(threads)
    out = task.settings.out
    shared = GridFolder(out.parent.parent).read_id() == grid
    if not shared:
        out = Path(tempfile.gettempdir()) / f"fggp-grid-{grid}" / "runs" / task.run
    here = replace(task, settings=replace(task.settings, out=out))
    try:
        _download(here.settings)
        record = work(here, lambda line: None)
    except UsageError as error:
        return Event(task.run, "failed", {}, str(error)), {}
    except Exception:
        return Event(task.run, "failed", {}, traceback.format_exc()), {}
    if record is None:
        return Event(task.run, "stopped", {}), {}
    return Event(task.run, "finished", record), {} if shared else _taken(RunFolder(out))


def _download(settings: ResolvedSettings) -> None:
    """Load data that this machine may have to download, one worker at a time: two would spoil each other's files."""
    root = settings.data_dir
    if settings.data == "digits" or settings.data.startswith("folder:"):
        return
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".lock") if os.access(root, os.W_OK) else nullcontext():
        data_of(settings)


def _taken(folder: RunFolder) -> Files:
    """Read the files of a finished run and remove them; the record comes last, as it does on the disk."""
    files = (folder.settings_file, folder.metrics_file, folder.model_file, folder.record_file)
    contents = {file.name: file.read_bytes() for file in files}
    rmtree(folder.path)
    return contents


def _write(folder: RunFolder, files: Files) -> None:
    folder.path.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        with atomic_write(folder.path / name) as file:
            file.write(content)
