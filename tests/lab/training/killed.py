"""Runs that kill themselves as `kill -9` would: `python killed.py FOLDER MOMENT…` leaves each in FOLDER/MOMENT.

A moment is `step=N` (in the N-th optimizer step), `first=FILE` or `later=FILE` (FILE of the run folder is written but
does not have its name yet, for the first time or the second). All are forked from one process: importing PyTorch is
what takes the time. tests/faults has more moments, at random.
"""

import os
import signal
import sys
from pathlib import Path

import sklearn.datasets  # noqa: F401 (here, as all that a run imports: forked processes need not import it again)
import torch
from rich.console import Console

from fggp.lab.training import pictures, train  # noqa: F401
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.trainer import Trainer


def settings(out: Path) -> TrainSettings:
    return TrainSettings(epochs=4, sparsity=0.9, device="cpu", out=out)


def arm(moment: str) -> None:
    kind, when = moment.split("=")
    if kind == "step":
        masks_changed = Trainer.masks_changed.fget
        Trainer.masks_changed = property(lambda run: die() if run.step == int(when) else masks_changed(run))
        return
    replace = os.replace
    left = 1 if kind == "first" else 2

    def die_or_replace(source: Path, target: Path) -> None:
        nonlocal left
        left -= target.name == when
        if left == 0:
            die()
        replace(source, target)

    os.replace = die_or_replace


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, moments: list[str]) -> None:
    torch.set_num_threads(1)
    for moment in moments:
        child = os.fork()
        if child == 0:
            arm(moment)
            train.train(settings(folder / moment), Console(quiet=True))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), f"{moment} never came"
        assert os.WTERMSIG(status) == signal.SIGKILL


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
