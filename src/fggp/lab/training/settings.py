"""What can be chosen: the options of the command line, which are also what a run folder's settings.json holds."""

import math
import re
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from fggp.lab.base.errors import UsageError
from fggp.lab.training.distributed import launched
from fggp.lab.training.methods import METHODS, acts_once, kind_of, name_of, own_rate, starts_sparse, without_folder

# The share of training after which masks are final, where it is not the literature's half.
PHASE = {"rigl": 0.75, "set": 1.0}
MACHINE_FIELDS = ("data_dir", "fsdp", "out", "resume")


def _by_rule(rule: str, metavar: str) -> Any:
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {rule})")


@dataclass(frozen=True)
class TrainSettings:
    """Train a network and prune it meanwhile; leave the model, its record and pictures in a run folder.

    $ fggp train                                             digits, in seconds, offline
    $ fggp train --data folder:PATH --sparsity 0.9           your pictures: PATH/train and PATH/test, a folder per class
    $ fggp train --data cifar10 --model vgg19                the literature's protocol: 160 epochs, to 95 %
    $ fggp train --data cifar10 --method dense --epochs 20   no pruning, to compare with
    $ torchrun --nproc-per-node 2 -m fggp train              in two processes, with a GPU each where there are any

    Was it interrupted? The same command with --resume goes on from the last finished epoch. Defaults are the protocol
    that pruning methods are compared by. Test accuracy is reported, of the last epoch: choose by validation accuracy.
    """

    data: str = "digits"
    """digits, cifar10, cifar100, fashion-mnist, or folder:PATH (train/ and test/, each with a folder per class)."""
    data_name: Annotated[str | None, _by_rule("its own name", "TEXT")] = None
    """What records and pictures call the data."""
    data_dir: Path = Path("data")
    """Where the named data sets are downloaded to."""
    image_size: Annotated[int | None, _by_rule("as the first image", "PIXELS")] = None
    """For folders: height and width all images are scaled and centre-cropped to."""
    model: Annotated[str | None, _by_rule("digits-cnn for digits, else resnet20", "NAME")] = None
    """vgg19, resnet50, resnet20 (CIFAR forms), digits-cnn, or any of torchvision or timm (timm:NAME); untrained."""

    method: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(METHODS)},FILE.py:CLASS}}")] = "fggp"
    """How weights to prune are chosen. granet, rigl and set also regrow some; snip, grasp, synflow and erk-static
    choose once, before training; dense prunes nothing. FILE.py:CLASS is a method of your own, see docs/methods.md."""
    sparsity: Annotated[float | None, _by_rule("0.95", "SHARE")] = None
    """Share of the prunable weights that is zero in the end, in [0, 1)."""
    init_sparsity: Annotated[float | None, _by_rule("0; for rigl and set the sparsity itself", "SHARE")] = None
    """Share that is zero from the start, at random, with Erdős–Rényi-Kernel densities; 0 starts dense."""
    rate: Annotated[float | None, _by_rule("the method's own", "SHARE")] = None
    """For fggp and magnitude-first: fixed share of active weights that the first step leaves to the second."""
    scope: Literal["global", "layer"] = "global"
    """Rank weights over all layers together, or prune every layer to the same sparsity."""
    exclude: Annotated[str | None, tyro.conf.arg(metavar="NAME,…", help_behavior_hint="(default: none)")] = None
    """Weights that stay dense and count for nothing in the sparsity: names, * for any characters, with commas
    between. "classifier.weight,features.0.*" are the last and the first layer of vgg19 and resnet20."""
    prune_begin: float = 0.0
    """Epoch at which pruning begins."""
    prune_end: Annotated[float | None, _by_rule("half of the epochs; rigl: 3/4, set: all", "EPOCH")] = None
    """Epoch at which the final sparsity is met, or from which rigl and set move weights no more."""
    every: Annotated[int | None, _by_rule("a 31st of the steps from begin to half of the epochs or end", "STEPS")] = (
        None
    )
    """Optimizer steps between two mask updates."""

    epochs: Annotated[int | None, _by_rule("30 for digits, else 160", "INT")] = None
    """Times the training images are gone through."""
    batch_size: int = 128
    """Images per optimizer step, of all ranks together."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd is with Nesterov momentum."""
    lr: Annotated[float | None, _by_rule("0.1 for sgd, 0.001 for adamw", "RATE")] = None
    """Learning rate; divided by 10 after half and again after three quarters of the steps."""
    momentum: Annotated[float | None, _by_rule("0.9", "SHARE")] = None
    """Of sgd."""
    weight_decay: float = 5e-4
    """Of all parameters."""
    seed: int = 0
    """Of weights, order, augmentation and masks; not of the held-out split, which all runs share."""
    holdout: float = 0.1
    """Share of the training images held out for validation; 0 trains on all of them."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 is autocast; auto takes it where the hardware is fast at it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto takes a GPU where there is one, under torchrun one for each rank."""
    fsdp: bool = False
    """Under torchrun: shard weights, gradients and optimizer state over the ranks (FSDP2), not a copy on each (DDP)."""
    out: Annotated[Path | None, _by_rule("fggp-runs/ and a name made of the settings", "FOLDER")] = None
    """The run folder."""
    resume: bool = False
    """Go on with the run in the folder, from the last finished epoch."""

    def resolve(self) -> "ResolvedSettings":
        """Return these settings with every default that depends on another one made concrete.

        Raises:
            UsageError: a value is out of its range, or does not go with another one; the message names it.
        """
        epochs = self.epochs if self.epochs is not None else (30 if self.data == "digits" else 160)
        sgd = self.optimizer == "sgd"
        chosen: dict[str, Any] = {
            "model": self.model or ("digits-cnn" if self.data == "digits" else "resnet20"),
            "sparsity": self.sparsity if self.sparsity is not None else (0.0 if self.method == "dense" else 0.95),
            "rate": self.rate if self.rate is not None else own_rate(self.method),
            "prune_end": self.prune_end if self.prune_end is not None else epochs * PHASE.get(self.method, 0.5),
            "epochs": epochs,
            "lr": self.lr if self.lr is not None else (0.1 if sgd else 0.001),
            "momentum": self.momentum if self.momentum is not None else (0.9 if sgd else None),
            "device": _device(self.device),
        }
        if self.init_sparsity is None:
            chosen["init_sparsity"] = chosen["sparsity"] if starts_sparse(self.method) else 0.0
        chosen["precision"] = _precision(self.precision, chosen["device"])
        chosen["out"] = self.out or Path("fggp-runs") / _run_name(replace(self, **chosen))
        return ResolvedSettings(**{**vars(self), **chosen})


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(TrainSettings):
    """Settings without open questions, checked. `rate` and `momentum` are None where there is none to have."""

    model: str
    sparsity: float
    init_sparsity: float
    prune_end: float
    epochs: int
    lr: float
    precision: Literal["bf16", "fp32"]
    out: Path

    def __post_init__(self) -> None:
        kind_of(self.method)  # or it says why there is none
        if self.method == "dense":
            _check("sparsity", self.sparsity, self.sparsity == 0, "left out for method 'dense'")
        _check("sparsity", self.sparsity, 0 <= self.sparsity < 1, "in [0, 1)")
        _check("init_sparsity", self.init_sparsity, 0 <= self.init_sparsity <= self.sparsity, "in [0, sparsity]")
        if own_rate(self.method) is None:
            _check("rate", self.rate, self.rate is None, f"left out: method {self.method!r} has none")
        else:
            _check("rate", self.rate, self.rate is not None and 0 <= self.rate <= 1, "in [0, 1]")
        if self.optimizer == "sgd":
            _check("momentum", self.momentum, self.momentum is not None and 0 <= self.momentum < 1, "in [0, 1)")
        else:
            _check("momentum", self.momentum, self.momentum is None, f"left out for {self.optimizer}")
        for name in ("epochs", "batch_size", "every", "image_size"):
            value = getattr(self, name)
            _check(name, value, value is None or value >= 1, "at least 1")
        _check("lr", self.lr, 0 < self.lr < math.inf, "above 0")
        _check("weight_decay", self.weight_decay, 0 <= self.weight_decay < math.inf, "at least 0")
        _check("seed", self.seed, self.seed >= 0, "at least 0")
        under_torchrun = "left out, or the command started as torchrun --nproc-per-node N -m fggp train …"
        _check("fsdp", self.fsdp, launched() or not self.fsdp, under_torchrun)
        once = self.fsdp and acts_once(self.method)
        _check("fsdp", self.fsdp, not once, f"left out for method {self.method!r}, which reads whole weights")
        _check("holdout", self.holdout, 0 <= self.holdout < 1, "in [0, 1)")
        _check("prune_end", self.prune_end, 0 < self.prune_end <= self.epochs, f"in (0, epochs = {self.epochs}]")
        _check("prune_begin", self.prune_begin, 0 <= self.prune_begin < self.prune_end, "in [0, prune_end)")

    def as_json(self) -> dict[str, str | int | float | bool | None]:
        """Return all that decides the result: no folders of this machine."""
        values = {name: value for name, value in asdict(self).items() if name not in MACHINE_FIELDS}
        # The path of a folder is this machine's business too; its name is enough to tell runs apart.
        kind, _, path = self.data.partition(":")
        data = f"{kind}:{Path(path).resolve().name}" if path else kind
        if self.exclude is None:
            del values["exclude"]  # as in folders of runs made before it could be given
        return {**values, "data": data, "method": without_folder(self.method)}


@dataclass(frozen=True)
class GridSettings:
    """Train every combination of methods, models, data, sparsities, … and seeds; leave a folder with all their records.

    $ fggp grid experiments/digits.toml                      what the file says
    $ fggp grid --method dense gmp fggp --sparsity 0.95 0.98 --seed 0 1 2 --epochs 20
    $ fggp grid FILE.toml --jobs 4 --time-limit 2h30m        four at once; stop in time, go on another day
    $ fggp grid FILE.toml --ray auto                         on all machines of a Ray cluster

    The file's keys are the options of fggp train, with _ for -, each with a value or a list of values:
        sparsity = [0.9, 0.95]
        epochs = 20
        [[grid]]                    # as many such tables as there are products; each takes what stands above as well
        method = ["dense", "gmp"]
        [[grid]]
        method = "fggp"
        rate = [0.3, 0.5]

    An option given here takes the place of the file's. What a method has no use for, it is not multiplied by: dense
    runs once a seed.

    Was it interrupted, or killed? The same command goes on, runs that were under way from their last finished epoch.
    Add seeds, methods or sparsities, and the same folder runs what is missing. Exits with 0 when every run is finished.
    """

    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[FILE.toml]")] = None
    """What to run; options may do without."""
    data: Annotated[tuple[str, ...] | None, _by_rule("digits", "TEXT …")] = None
    """As fggp train takes them: digits, cifar10, cifar100, fashion-mnist, folder:PATH."""
    model: Annotated[tuple[str, ...] | None, _by_rule("as fggp train", "NAME …")] = None
    """Models by name."""
    method: Annotated[tuple[str, ...] | None, _by_rule("fggp", "NAME …")] = None
    """Methods by name; see fggp train --help."""
    sparsity: Annotated[tuple[float, ...] | None, _by_rule("0.95", "SHARE …")] = None
    """Shares of the prunable weights that are zero in the end."""
    init_sparsity: Annotated[tuple[float, ...] | None, _by_rule("as fggp train", "SHARE …")] = None
    """Shares that are zero from the start, for methods that may start dense."""
    rate: Annotated[tuple[float, ...] | None, _by_rule("the method's own", "SHARE …")] = None
    """Rates, for methods that have one."""
    seed: Annotated[tuple[int, ...] | None, _by_rule("0", "INT …")] = None
    """Seeds; runs of the first one come first."""
    epochs: Annotated[tuple[int, ...] | None, _by_rule("as fggp train", "INT …")] = None
    """Times the training images are gone through."""
    device: Annotated[str | None, _by_rule("auto", "TEXT")] = None
    """cpu or cuda; auto takes a GPU where there is one. Jobs spread over all GPUs."""
    data_dir: Annotated[Path | None, _by_rule("data", "FOLDER")] = None
    """Where the named data sets are downloaded to."""

    out: Annotated[Path | None, _by_rule("fggp-grids/ and the file's name", "FOLDER")] = None
    """Folder of the grid: grid.json, records.jsonl, and a run folder of each run in runs/."""
    jobs: Annotated[int | None, _by_rule("1; on Ray as many as the cluster has room for", "INT")] = None
    """Runs at once."""
    time_limit: Annotated[str | None, _by_rule("none", "TIME")] = None
    """Stop within this time, such as 2h30m or 90m: at an epoch's end, and beginning no run that cannot end in it."""
    ray: Annotated[str | None, _by_rule("this machine alone", "ADDRESS")] = None
    """Run on a Ray cluster: auto (the one this machine belongs to) or its HOST:PORT."""
    ray_cpus: float = 1.0
    """On Ray: CPUs a run takes, which are also its threads."""
    ray_gpus: float = 1.0
    """On Ray, with device cuda: GPUs a run takes; 0.25 lets four share one."""
    dry_run: bool = False
    """List the runs and what is finished; train nothing."""

    def __post_init__(self) -> None:
        _check("jobs", self.jobs, self.jobs is None or self.jobs >= 1, "at least 1")
        _check("ray_cpus", self.ray_cpus, 0 < self.ray_cpus < math.inf, "above 0")
        _check("ray_gpus", self.ray_gpus, 0 < self.ray_gpus < math.inf, "above 0")

    @property
    def seconds(self) -> float | None:
        """The time limit in seconds, None without one.

        Raises:
            UsageError: it cannot be read.
        """
        if self.time_limit is None:
            return None
        parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", self.time_limit.replace(" ", ""))
        hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
        total = 3600 * hours + 60 * minutes + seconds
        _check("time_limit", self.time_limit, total > 0, "such as 2h30m, 90m or 45s")
        return float(total)


@dataclass(frozen=True)
class DemoSettings:
    """See it work: train a small network on scikit-learn's digits, dense and pruned by GMP and FGGP to 95 and 98 %.

    Prints a table (mean ± standard deviation over the seeds) and leaves pictures and a record of each run. Needs no
    download, and about a minute on two cores.
    """

    seeds: int = 5
    """Runs of each setting."""
    out: Path = Path("fggp-demo")
    """Where pictures and records go."""

    def __post_init__(self) -> None:
        _check("seeds", self.seeds, self.seeds >= 1, "at least 1")


def _check(name: str, value: object, fine: bool, right: str) -> None:
    if not fine:
        raise UsageError(f"{name} is {value!r}; it must be {right}")


def unused_fields(settings: TrainSettings) -> frozenset[str]:
    """Name the settings that make no difference to a run of this method, optimizer and data."""
    unused = set()
    if settings.method == "dense":
        unused |= {"sparsity", "init_sparsity", "scope", "exclude", "prune_begin", "prune_end", "every"}
    elif starts_sparse(settings.method):
        unused.add("init_sparsity")
    if acts_once(settings.method):
        unused |= {"scope", "prune_begin", "prune_end", "every"}
    if own_rate(settings.method) is None:
        unused.add("rate")
    if settings.optimizer != "sgd":
        unused.add("momentum")
    if not settings.data.startswith("folder:"):
        unused.add("image_size")
    return frozenset(unused)


def _device(name: str) -> str:
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    _check("device", name, name == "cpu" or (kind == "cuda" and f"{index}0".isdecimal()), "auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count()
        _check("device", name, int(index or 0) < count, f"one of the {count} GPUs that PyTorch sees")
    return name


def _precision(name: str, device: str) -> str:
    if name != "auto":
        return name
    if device == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported()
    else:
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if fast else "fp32"


def _run_name(settings: TrainSettings) -> str:
    kind, _, path = settings.data.partition(":")
    data = Path(path).resolve().name if path else kind
    pruning = "" if settings.method == "dense" else f"-{settings.sparsity:g}"
    name = f"{data}-{settings.model}-{name_of(settings.method)}{pruning}-seed{settings.seed}"
    return name.replace(":", "-").replace("/", "-")
