"""The options of `fggp train`, which are also the content of a run folder's settings.json."""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from fggp.lab.base import Json
from fggp.lab.base.launch import launched
from fggp.lab.base.options import default_shown_as, require
from fggp.lab.training.methods import (
    METHODS,
    acts_once,
    granularity_of,
    kind_of,
    name_of,
    own_rate,
    regrows,
    starts_sparse,
    without_folder,
)

PRUNE_END_SHARE = {"rigl": 0.75, "set": 1.0}
"""The share of training after which masks are final, for methods where it is not the literature's half."""
MACHINE_FIELDS = ("data_dir", "fsdp", "out", "resume")
"""Settings that do not change the result."""
PRETRAINED = "pretrained"
LATER_FIELDS: dict[str, Any] = {
    "granularity": None,
    "exclude": None,
    "weights": None,
    "schedule": "step",
    "warmup": 0.0,
    "label_smoothing": 0.0,
    "distill": False,
    "accelerate": False,
}
"""Options that older versions did not have, and their values there: folders of older runs have no such keys."""
NOT_LATER = object()
FINE_TUNING_RATE = 0.5
"""Of the learning rate from scratch; docs/from-trained-weights.md says where this and the other shares are from."""
WARM_UP_SHARE = 0.05


@dataclass(frozen=True)
class TrainSettings:
    """Train a network and prune it while it trains. The run folder gets the model, its record and pictures.

    $ fggp train                                             digits, in seconds, offline
    $ fggp train --data folder:PATH --sparsity 0.9           your pictures: PATH/train and PATH/test, a folder per class
    $ fggp train --data cifar10 --model vgg19                the literature's protocol: 160 epochs, to 95 %
    $ fggp train --data cifar10 --method dense --epochs 20   no pruning, for comparison
    $ fggp train --data folder:PATH --model resnet18 --weights pretrained
                                                             from trained weights, with a protocol for fine-tuning
    $ torchrun --nproc-per-node 2 -m fggp train              in two processes, each with a GPU if there are any

    If training was interrupted, the same command with --resume continues from the last finished epoch. Defaults follow
    the protocol of the literature on pruning. The reported test accuracy is that of the last epoch; to choose between
    settings, use the validation accuracy.
    """

    data: str = "digits"
    """digits, cifar10, cifar100, fashion-mnist, or folder:PATH (train/ and test/, each with a folder per class)."""
    data_name: Annotated[str | None, default_shown_as("its own name", "TEXT")] = None
    """Name of the data in records and pictures."""
    data_dir: Path = Path("data")
    """Where the named data sets are downloaded to."""
    image_size: Annotated[int | None, default_shown_as("as the first image", "PIXELS")] = None
    """For folders: height and width to which all images are scaled and centre-cropped."""
    model: Annotated[str | None, default_shown_as("digits-cnn for digits, else resnet20", "NAME")] = None
    """vgg19, resnet50, resnet20 (CIFAR forms), digits-cnn, or any of torchvision or timm (timm:NAME).
    vgg19@0.25 has a quarter of the channels in every layer; resnet20 and digits-cnn can be narrowed likewise."""
    weights: Annotated[str | None, default_shown_as("untrained", "FILE|RUN_FOLDER|pretrained")] = None
    """Trained weights to start from: a state dict of torch.save or safetensors, a small file of fggp, a finished run,
    or those that torchvision or timm offers for its network (pretrained). A classifier for another number of classes
    starts anew."""

    method: Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(METHODS)},FILE.py:CLASS}}")] = "fggp"
    """How weights to prune are chosen. granet, rigl and set also regrow weights; snip, grasp, synflow and erk-static
    choose once, before training; dense prunes nothing. FILE.py:CLASS is a method of your own: see docs/methods.md."""
    sparsity: Annotated[float | None, default_shown_as("0.95", "SHARE")] = None
    """Share of the prunable weights that is zero in the end, in [0, 1)."""
    init_sparsity: Annotated[float | None, default_shown_as("0; for rigl and set the sparsity itself", "SHARE")] = None
    """Share that is zero from the start, at random, with Erdős–Rényi-Kernel densities; 0 starts dense."""
    rate: Annotated[float | None, default_shown_as("the method's own", "SHARE")] = None
    """For fggp and magnitude-first: the fixed share of active weights that the first step passes to the second."""
    scope: Literal["global", "layer"] = "global"
    """Rank weights over all layers together, or prune every layer to the same sparsity."""
    granularity: Annotated[str | None, default_shown_as("single weights", "blocks:N|rows|N:M")] = None
    """What is pruned as one: blocks:4 is blocks of 4 input channels, rows is whole filters. 2:4 prunes single weights,
    until at most 2 of each 4 are left."""
    exclude: Annotated[str | None, tyro.conf.arg(metavar="NAME,…", help_behavior_hint="(default: none)")] = None
    """Weights that stay dense and do not count in the sparsity: names separated by commas, with * for any characters.
    "classifier.weight,features.0.*" are the last and the first layer of vgg19 and resnet20."""
    prune_begin: float = 0.0
    """Epoch at which pruning begins."""
    prune_end: Annotated[float | None, default_shown_as("half of the epochs; rigl: 3/4, set: all", "EPOCH")] = None
    """Epoch at which the final sparsity is reached, or after which rigl and set move no more weights."""
    every: Annotated[
        int | None, default_shown_as("a 31st of the steps from begin to half of the epochs or end", "STEPS")
    ] = None
    """Optimizer steps between two mask updates. As many as pruning lasts, or more, make it one-shot: a single update at
    its end."""

    epochs: Annotated[
        int | None, default_shown_as("30 for digits, else 160; from trained weights 10, else 40", "INT")
    ] = None
    """Passes over the training images."""
    batch_size: int = 128
    """Images per optimizer step, over all ranks."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """sgd uses Nesterov momentum."""
    lr: Annotated[float | None, default_shown_as("0.1 for sgd, 0.001 for adamw; from trained weights half", "RATE")] = (
        None
    )
    """The highest learning rate."""
    schedule: Annotated[
        Literal["step", "cosine"] | None, default_shown_as("step; from trained weights cosine", "step|cosine")
    ] = None
    """How the learning rate falls: step divides it by 10 after half of the steps and again after three quarters, cosine
    lets it fall to zero."""
    warmup: Annotated[float | None, default_shown_as("0; from trained weights a 20th of the epochs", "EPOCHS")] = None
    """Epochs at the start in which the learning rate rises from zero."""
    label_smoothing: float = 0.0
    """Share of each label that is spread evenly over all classes."""
    distill: bool = False
    """With --weights: train towards the outputs of the network as it was before pruning, too."""
    momentum: Annotated[float | None, default_shown_as("0.9", "SHARE")] = None
    """Momentum of sgd."""
    weight_decay: float = 5e-4
    """Weight decay of all parameters."""
    seed: int = 0
    """Seed of weights, order, augmentation and masks. The held-out split is the same for all seeds."""
    holdout: float = 0.1
    """Share of the training images held out for validation; 0 trains on all of them."""

    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """bf16 is autocast; auto uses it on hardware that is fast at it."""
    device: str = "auto"
    """cpu, cuda, cuda:1, …; auto uses a GPU if there is one, under torchrun one for each rank."""
    accelerate: bool = False
    """On a CPU: let each layer skip its pruned weights in training, forward and backward, once that measures as faster.
    Numbers differ from those of other runs by rounding."""
    fsdp: bool = False
    """Under torchrun: shard weights, gradients and optimizer state over the ranks (FSDP2). Without it, each rank has a
    copy (DDP)."""
    out: Annotated[Path | None, default_shown_as("fggp-runs/ and a name made of the settings", "FOLDER")] = None
    """The run folder."""
    resume: bool = False
    """Continue the run in the folder, from the last finished epoch."""

    def resolve(self) -> "ResolvedSettings":
        """Return these settings with every default that depends on another setting filled in.

        Raises:
            UsageError: a value is out of its range, or contradicts another one; the message names it.
        """
        on_digits, sgd, trained = self.data == "digits", self.optimizer == "sgd", self.weights is not None
        epochs = _first_given(self.epochs, _epochs(on_digits, trained))
        lr = (0.1 if sgd else 0.001) * (FINE_TUNING_RATE if trained else 1)
        sparsity = _first_given(self.sparsity, 0.0 if self.method == "dense" else 0.95)
        device = _device(self.device)
        chosen: dict[str, Any] = {
            "model": self.model or ("digits-cnn" if on_digits else "resnet20"),
            "sparsity": sparsity,
            "init_sparsity": _first_given(self.init_sparsity, sparsity if starts_sparse(self.method) else 0.0),
            "rate": _first_given(self.rate, own_rate(self.method)),
            "prune_end": _first_given(self.prune_end, epochs * PRUNE_END_SHARE.get(self.method, 0.5)),
            "epochs": epochs,
            "lr": _first_given(self.lr, lr),
            "schedule": self.schedule or ("cosine" if trained else "step"),
            "warmup": _first_given(self.warmup, epochs * WARM_UP_SHARE if trained else 0.0),
            "momentum": _first_given(self.momentum, 0.9 if sgd else None),
            "device": device,
            "precision": _precision(self.precision, device),
        }
        chosen["out"] = self.out or Path("fggp-runs") / _run_name(replace(self, **chosen))
        return ResolvedSettings(**{**vars(self), **chosen})


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(TrainSettings):
    """Checked settings with all defaults filled in. `rate` and `momentum` are None if they do not apply."""

    model: str
    sparsity: float
    init_sparsity: float
    prune_end: float
    epochs: int
    lr: float
    schedule: Literal["step", "cosine"]
    warmup: float
    precision: Literal["bf16", "fp32"]
    out: Path

    def __post_init__(self) -> None:
        def check(name: str, valid: bool, expected: str) -> None:
            require(name, getattr(self, name), valid, expected)

        kind_of(self.method)  # raises an error if there is no such method
        granularity_of(self.granularity)  # likewise
        if self.method == "dense":
            check("sparsity", self.sparsity == 0, "left out for method 'dense'")
        check("sparsity", 0 <= self.sparsity < 1, "in [0, 1)")
        check("init_sparsity", 0 <= self.init_sparsity <= self.sparsity, "in [0, sparsity]")
        if own_rate(self.method) is None:
            check("rate", self.rate is None, f"left out: method {self.method!r} has none")
        else:
            check("rate", self.rate is not None and 0 <= self.rate <= 1, "in [0, 1]")
        if self.optimizer == "sgd":
            check("momentum", self.momentum is not None and 0 <= self.momentum < 1, "in [0, 1)")
        else:
            check("momentum", self.momentum is None, f"left out for {self.optimizer}")
        for name in ("epochs", "batch_size", "every", "image_size"):
            check(name, getattr(self, name) is None or getattr(self, name) >= 1, "at least 1")
        check("lr", 0 < self.lr < math.inf, "above 0")
        exists = self.weights in (None, PRETRAINED) or Path(self.weights or "").exists()
        check("weights", exists, "pretrained, or an existing file or run folder")
        check("warmup", 0 <= self.warmup < self.epochs, f"in [0, epochs = {self.epochs})")
        check("label_smoothing", 0 <= self.label_smoothing < 1, "in [0, 1)")
        check("distill", not self.distill or self.weights is not None, "left out without weights: they are the teacher")
        check("distill", not (self.distill and self.fsdp), "left out with fsdp, which would not shard the teacher")
        check("weight_decay", 0 <= self.weight_decay < math.inf, "at least 0")
        check("seed", self.seed >= 0, "at least 0")
        if self.accelerate:
            self._check_acceleration()
        under_torchrun = "left out, or the command started as torchrun --nproc-per-node N -m fggp train …"
        check("fsdp", launched() or not self.fsdp, under_torchrun)
        once = self.fsdp and acts_once(self.method)
        check("fsdp", not once, f"left out for method {self.method!r}, which reads whole weights")
        check("holdout", 0 <= self.holdout < 1, "in [0, 1)")
        check("prune_end", 0 < self.prune_end <= self.epochs, f"in (0, epochs = {self.epochs}]")
        check("prune_begin", 0 <= self.prune_begin < self.prune_end, "in [0, prune_end)")

    def _check_acceleration(self) -> None:
        def check(possible: bool, expected: str) -> None:
            require("accelerate", self.accelerate, possible, expected)

        check(self.method != "dense", "left out for method 'dense', which prunes no weights that could be skipped")
        needs_gradients = regrows(self.method) and not acts_once(self.method)
        why = "which regrows weights: it needs the gradients of pruned ones"
        check(not needs_gradients, f"left out for method {self.method!r}, {why}")
        check(
            self.device == "cpu",
            f"left out on device {self.device!r}: it is for a CPU; add --device cpu to train there",
        )
        check(not launched(), "left out under torchrun: each process would decide by its own times what it skips")

    def as_json(self) -> Json:
        """Return all settings that determine the result, without folders of this machine.

        Weights have a digest beside their name, so that a run is not continued with others of the same name.

        Raises:
            UsageError: weights cannot be read.
        """
        values = {name: value for name, value in asdict(self).items() if name not in MACHINE_FIELDS}
        values |= {"data": name_of_data(self.data), "method": without_folder(self.method)}
        if self.weights is not None:
            from fggp.lab.training.weights_name import name_with_digest  # only now, as it imports PyTorch

            values["weights"] = name_with_digest(self.weights, self.model)
        return {name: value for name, value in values.items() if LATER_FIELDS.get(name, NOT_LATER) != value}


def name_of_data(data: str) -> str:
    """Return data as the settings in a record name them: without a folder's path, which differs between machines."""
    kind, _, path = data.partition(":")
    return f"{kind}:{Path(path).resolve().name}" if path else kind


def unused_fields(settings: TrainSettings) -> frozenset[str]:
    """Return the settings that make no difference to a run of this method, optimizer and data."""
    unused = set()
    if settings.method == "dense":
        unused |= {"sparsity", "init_sparsity", "scope", "granularity", "exclude", "prune_begin", "prune_end", "every"}
        unused |= {"accelerate"}
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


def _first_given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _epochs(on_digits: bool, trained: bool) -> int:
    if trained:
        return 10 if on_digits else 40
    return 30 if on_digits else 160


def _device(name: str) -> str:
    import torch  # only now: help and mistakes do not wait for it

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    require("device", name, name == "cpu" or (kind == "cuda" and f"{index}0".isdecimal()), "auto, cpu, cuda or cuda:N")
    if kind == "cuda":
        count = torch.cuda.device_count()
        require("device", name, int(index or 0) < count, f"one of the {count} GPUs that PyTorch sees")
    return name


def _precision(name: str, device: str) -> str:
    if name != "auto":
        return name
    import torch

    if device == "cpu":
        fast = torch.cpu._is_avx512_bf16_supported()
    else:
        fast = torch.cuda.get_device_capability(device) >= (8, 0)
    return "bf16" if fast else "fp32"


def _run_name(settings: TrainSettings) -> str:
    kind, _, path = settings.data.partition(":")
    data = Path(path).resolve().name if path else kind
    pruning = "" if settings.method == "dense" else f"-{settings.sparsity:g}"
    start = "" if settings.weights is None else "-finetuned"
    name = f"{data}-{settings.model}-{name_of(settings.method)}{pruning}{start}-seed{settings.seed}"
    return name.replace(":", "-").replace("/", "-")
