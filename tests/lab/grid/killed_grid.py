"""A grid that is killed with SIGKILL again and again: `python killed_grid.py FOLDER KILLS SEED`.

Writes FOLDER/unbroken, without a kill, and FOLDER/killed, with KILLS kills at moments drawn with the seed:
a step of a worker's training, a rename or a flush in a worker or in the command itself. All are forked from one
process, workers too: importing PyTorch is what takes the time.
"""

import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (here, and not in every worker)
import torch
from filelock import FileLock
from rich.console import Console

from fggp.lab.grid import worker
from fggp.lab.grid.grid import grid
from fggp.lab.grid.settings import GridSettings
from fggp.lab.training.trainer import Trainer
from grids import digits


def settings(out: Path) -> GridSettings:
    return digits(out, method=("dense", "fggp"), seed=(0, 1, 2), epochs=(3,), jobs=2)


def arm(moments: random.Random) -> None:
    """Kill the command at the N-th of what its workers, or it itself, do from now on."""
    command = os.getpid()
    in_worker = moments.random() < 0.7
    left = moments.randint(1, 25 if in_worker else 4)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any) -> Any:
            nonlocal left
            if (os.getpid() != command) == in_worker:
                left -= 1
                if left == 0:
                    os.kill(command, signal.SIGKILL)
            return function(*args)

        return wrapper

    os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    Trainer.masks_changed = property(counted(Trainer.masks_changed.fget))


def command(out: Path, moments: random.Random | None) -> bool:
    """Give the command once; return whether it was killed."""
    child = os.fork()
    if child == 0:
        if moments is not None:
            arm(moments)
        result = grid(settings(out), Console(quiet=True))
        os._exit(0 if result.complete else 1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    if out.exists():
        # Forked workers share the command's lock and let go of it when they have seen that it is dead.
        with FileLock(out / ".lock", timeout=60):
            pass
    return os.WIFSIGNALED(status)


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    worker.CONTEXT = multiprocessing.get_context("fork")
    moments = random.Random(seed)
    for number in range(kills):
        # A seed of its own each: what a child draws, its parent does not know of.
        killed = command(folder / "killed", random.Random(moments.random()))
        assert killed, f"the grid was finished after {number} kills"
    for name in ("killed", "unbroken"):
        assert not command(folder / name, None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
