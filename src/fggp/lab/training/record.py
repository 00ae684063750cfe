"""What is written about a run: a metrics line for each epoch and mask update, and one record of the result."""

import math
import platform
from collections.abc import Sequence
from datetime import datetime, timezone

import torch

import fggp
from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.base.machine import device_name, source_commit
from fggp.lab.training.methods import name_of
from fggp.lab.training.trainer import Tally, Trainer


def epoch_line(trainer: Trainer, epoch: int, tally: Tally) -> Json:
    """Evaluate after an epoch (counted from 0) and return its metrics line; accuracies are percent.

    If images are held out for validation, test accuracy is None before the last epoch: nobody is tempted to choose by
    it, and evaluating many test images would take a third of the training time.

    Raises:
        UsageError: training diverged.
    """
    if not math.isfinite(tally.loss):
        raise UsageError(f"the loss is {tally.loss} in epoch {epoch + 1}; try a lower --lr than {trainer.settings.lr}")
    data = trainer.data
    last = epoch + 1 == trainer.settings.epochs
    return {
        "kind": "epoch",
        "epoch": epoch + 1,
        "step": trainer.step,
        "train_loss": tally.loss,
        "train_accuracy": tally.accuracy,
        "val_accuracy": None if data.val is None else trainer.accuracy(data.val),
        "test_accuracy": trainer.accuracy(data.test) if last or data.val is None else None,
        "sparsity": trainer.sparsity,
        "target": trainer.target,
        "lr": trainer.lr,
        "ranks": trainer.world.size,
        "images_per_second": round(tally.images / tally.seconds, 1),
    }


def update_line(trainer: Trainer) -> Json:
    """Return the metrics line of the mask update in the latest step."""
    return {
        "kind": "update",
        "step": trainer.step,
        "sparsity": trainer.sparsity,
        "target": trainer.target,
        "densities": trainer.densities(),
    }


def input_of(trainer: Trainer) -> Json:
    """Describe a run's images: shape, normalisation of each channel (in 0…255), and names of the classes."""
    return {
        "shape": list(trainer.data.train.images.shape[1:]),
        "mean": trainer.mean.flatten().tolist(),
        "std": trainer.std.flatten().tolist(),
        "classes": list(trainer.data.classes),
    }


def make_record(run: str, trainer: Trainer, epochs: Sequence[Json], wall_seconds: float) -> Json:
    """Return the record of a finished run; all ranks call it.

    Args:
        run: its name.
        trainer: after the last epoch.
        epochs: the metrics line of every epoch (`epoch_line`); the accuracies of the last one are reported.
        wall_seconds: from loading the data to the end, without interruptions.

    Returns:
        Accuracies are percent, sparsities are shares. ``sparsity`` is measured: pruned weights over prunable weights;
        ``network_sparsity`` is pruned weights over all parameters. ``densities`` are the final shares of kept weights
        by layer; empty for a dense run. ``input`` describes an image (`input_of`). ``start`` says what trained weights
        the run began with (`Start`). ``execution`` says how steps were made (`Trainer.execution`); ``parallel`` says
        how the network was spread over ``ranks`` processes in the end, "single", "ddp" or "fsdp". The curve has the
        ranks of every epoch.
    """
    settings = trainer.settings
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    densities = trainer.densities()
    sizes = {} if trainer.pruner is None else {name: mask.numel() for name, mask in trainer.pruner.masks.items()}
    prunable = sum(sizes.values())
    pruned = prunable - sum(round(densities[name] * size) for name, size in sizes.items())
    return {
        "run": run,
        "method": name_of(settings.method),
        "model": settings.model,
        "data": trainer.data.name,
        "sparsity": pruned / prunable if prunable else 0.0,
        "init_sparsity": settings.init_sparsity,
        "seed": settings.seed,
        "test_accuracy": epochs[-1]["test_accuracy"],
        "val_accuracy": epochs[-1]["val_accuracy"],
        "network_sparsity": pruned / parameters,
        "parameters": parameters,
        "parameters_left": parameters - pruned,
        "densities": densities,
        **({} if trainer.start is None else {"start": trainer.start.as_json()}),
        **({"norms": "estimated anew"} if trainer.norms_are_late else {}),
        "input": input_of(trainer),
        "images": {
            "train": len(trainer.data.train),
            "val": 0 if trainer.data.val is None else len(trainer.data.val),
            "test": len(trainer.data.test),
        },
        "steps": trainer.step,
        "prune_begin_step": trainer.begin,
        "prune_end_step": trainer.end,
        "every": trainer.every,
        "images_per_second": round(sum(epoch["images_per_second"] for epoch in epochs) / len(epochs), 1),
        "wall_seconds": round(wall_seconds, 1),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(trainer.device),
        "threads": torch.get_num_threads(),
        "execution": trainer.execution,
        "ranks": trainer.world.size,
        "parallel": trainer.parallel,
        "versions": {"fggp": fggp.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": source_commit(),
        "settings": settings.as_json(),
        "curve": {name: [epoch.get(name) for epoch in epochs] for name in epochs[-1] if name != "kind"},
    }
