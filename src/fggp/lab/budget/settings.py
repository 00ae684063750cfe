"""The options of `fggp budget`."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fggp.lab.base.errors import UsageError
from fggp.lab.base.options import default_shown_as, require
from fggp.lab.budget.wishes import Wishes
from fggp.lab.training.methods import METHODS
from fggp.lab.training.settings import PRETRAINED, ResolvedSettings, TrainSettings, name_of_data

MILLISECONDS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20}
PASSED_ON = ("data", "data_dir", "image_size", "model", "weights", "distill", "epochs", "optimizer", "lr")
"""Options that every run gets as they are."""
HOLDOUT = 0.2


@dataclass(frozen=True)
class BudgetSettings:
    """Find the sparsity that meets a limit, by complete runs, and leave the pruned model ready to ship.

    $ fggp budget --drop 1.0                           digits: at most one point of validation accuracy below dense
    $ fggp budget --data folder:PATH --size 500kB      the small file has at most 500,000 bytes
    $ fggp budget --data folder:PATH --model resnet18 --weights pretrained --drop 0.5 --latency 2ms

    With --drop it finds the highest sparsity that meets all limits. Without, it takes the lowest that does, from the
    predicted one on: accuracy falls with sparsity. Time and size are predicted before anything is trained, with random
    masks on this machine, so that a limit that nothing meets is refused at once. Sparsities are chosen by validation
    accuracy; test accuracy is shown once per answer, and never chosen by. After an interruption the same command
    continues.
    """

    drop: Annotated[float | None, default_shown_as("any", "POINTS")] = None
    """How far the validation accuracy may be below that of dense networks, in percent points."""
    latency: Annotated[str | None, default_shown_as("any", "TIME")] = None
    """How long the compiled network may take for a batch on this machine, such as 2ms or 400us."""
    size: Annotated[str | None, default_shown_as("any", "SIZE")] = None
    """How large the small file may be, such as 500kB, 2MB or 64KiB."""
    batch: int = 1
    """Images at once, for the time."""
    threads: Annotated[int | None, default_shown_as("PyTorch's number of threads", "INT")] = None
    """Threads of the compiled network."""

    data: str = "digits"
    """As for fggp train: digits, cifar10, cifar100, fashion-mnist, or folder:PATH."""
    data_dir: Path = Path("data")
    """Where the named data sets are downloaded to."""
    image_size: Annotated[int | None, default_shown_as("as the first image", "PIXELS")] = None
    """For folders: height and width to which all images are scaled and centre-cropped."""
    model: Annotated[str | None, default_shown_as("digits-cnn for digits, else resnet20", "NAME")] = None
    """As for fggp train."""
    weights: Annotated[str | None, default_shown_as("untrained", "FILE|RUN_FOLDER|pretrained")] = None
    """Trained weights that all runs start from, as for fggp train."""
    distill: bool = False
    """With --weights: train towards their outputs, too."""
    method: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(METHODS[1:])},FILE.py:CLASS}}")] = "fggp"
    """How weights to prune are chosen."""
    epochs: Annotated[int | None, default_shown_as("as fggp train", "INT")] = None
    """Of each run."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Of each run."""
    lr: Annotated[float | None, default_shown_as("as fggp train", "RATE")] = None
    """Of each run."""
    holdout: Annotated[float | None, default_shown_as("0.2; with the weights of a run, as it held out", "SHARE")] = None
    """Share of the training images to choose by; fggp train holds out less, as it chooses nothing."""
    seeds: int = 3
    """Runs of the dense network, and of a sparsity that is close to the limit. With 1, ± does not cover other seeds."""
    jobs: Annotated[int | None, default_shown_as("one for each core, at most --seeds; on a GPU 1", "INT")] = None
    """Number of runs at once."""
    device: str = "auto"
    """cpu or cuda, for training."""
    out: Annotated[Path | None, default_shown_as("fggp-budgets/ and a name made of the settings", "FOLDER")] = None
    """Folder of the runs, the chosen network, the table and the picture."""

    def __post_init__(self) -> None:
        require("method", self.method, self.method != "dense", "a method that prunes")
        require("drop", self.drop, self.drop is None or 0 <= self.drop < 100, "in [0, 100)")
        require("batch", self.batch, self.batch >= 1, "at least 1")
        require("threads", self.threads, self.threads is None or self.threads >= 1, "at least 1")
        require("seeds", self.seeds, self.seeds >= 1, "at least 1")
        require("jobs", self.jobs, self.jobs is None or self.jobs >= 1, "at least 1")
        held = self.holdout is None or 0 < self.holdout < 1
        require("holdout", self.holdout, held, "in (0, 1): sparsities are chosen by these images")

    def wishes(self) -> Wishes:
        """Return the limits.

        Raises:
            UsageError: there is none, or it cannot be read.
        """
        if self.drop is None and self.latency is None and self.size is None:
            raise UsageError("name a limit: --drop 1.0 (points), --latency 2ms, --size 500kB, or several")
        ms = None if self.latency is None else _quantity("latency", self.latency, MILLISECONDS, "2ms or 400us")
        size = None if self.size is None else int(_quantity("size", self.size, BYTES, "500kB, 2MB or 64KiB"))
        return Wishes(self.drop, ms, size)

    def run(self, sparsity: float, seed: int) -> ResolvedSettings:
        """Return the settings of a run; sparsity 0 is the dense network."""
        chosen: dict[str, Any] = {name: getattr(self, name) for name in PASSED_ON}
        if sparsity:
            chosen |= {"method": self.method, "sparsity": sparsity}
        else:
            chosen |= {"method": "dense"}
        chosen |= {"seed": seed, "holdout": self.held_out(), "device": self.device, "precision": "fp32"}
        return TrainSettings(**chosen).resolve()

    def held_out(self) -> float:
        """Return the share of the training images to choose by.

        Raises:
            UsageError: the run that the weights are of was trained on some of these images.
        """
        known = self.held_out_of_weights()
        if known is None:
            return HOLDOUT if self.holdout is None else self.holdout
        if known == 0:
            raise UsageError(
                f"weights is {self.weights!r}, a run that was trained on all images (holdout 0), so that none are left "
                f"to choose by; train it with --holdout {HOLDOUT}"
            )
        if self.holdout not in (None, known):
            raise UsageError(
                f"holdout is {self.holdout:g}, but the run in weights held out {known:g} and was trained on others of "
                f"these images; leave --holdout out"
            )
        return known

    def held_out_of_weights(self) -> float | None:
        """Return what the run in ``weights`` held out; None if they are of no run on these data."""
        if self.weights in (None, PRETRAINED) or not Path(self.weights or "").is_dir():
            return None
        from fggp.lab.training.run_folder import RunFolder  # only now, as it imports PyTorch

        record = RunFolder(Path(self.weights)).record()
        if record is None or record["settings"]["data"] != name_of_data(self.data):
            return None
        return float(record["settings"]["holdout"])

    def folder(self) -> Path:
        """Return the folder of the command."""
        run = self.run(0.0, 0)
        name = run.out.name.removesuffix("-seed0").replace("-dense", "")
        return self.out or Path("fggp-budgets") / name

    def runs_at_once(self) -> int:
        """Return the number of jobs."""
        on_cpu = self.run(0.0, 0).device == "cpu"
        return self.jobs or (min(self.seeds, os.cpu_count() or 1) if on_cpu else 1)


def _quantity(name: str, text: str, units: dict[str, float] | dict[str, int], examples: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(\S+)\s*", text)
    by_name = {unit.lower(): factor for unit, factor in units.items()}
    if match is None or match[2].lower() not in by_name or float(match[1]) <= 0:
        raise UsageError(f"{name} is {text!r}; it must be a number above 0 and a unit, such as {examples}")
    return float(match[1]) * by_name[match[2].lower()]
