"""What is written down of a run: a line per epoch and mask update, and one record of what was reached, with what."""

import math
import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import fggp
from fggp.lab.base.errors import UsageError
from fggp.lab.training.methods import name_of
from fggp.lab.training.trainer import Tally, Trainer

Json = dict[str, Any]

LABELS = {
    **{name: name.upper() for name in ("erk", "fggp", "gmp", "set", "snip")},
    **{name.lower(): name for name in ("GraNet", "GraSP", "RigL", "SynFlow")},
}


def epoch_line(trainer: Trainer, epoch: int, tally: Tally) -> Json:
    """Evaluate after an epoch (counted from 0) and return its metrics line; accuracies are percent.

    Test accuracy is None but after the last epoch, where images were held out to follow the training by: nobody is
    tempted to choose by it, and it would take its time, a third of the training where test images are many.

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
    """Return the metrics line of a mask update that was just made."""
    return {
        "kind": "update",
        "step": trainer.step,
        "sparsity": trainer.sparsity,
        "target": trainer.target,
        "densities": trainer.densities(),
    }


def make_record(run: str, trainer: Trainer, epochs: Sequence[Json], wall_seconds: float) -> Json:
    """Describe a finished run.

    Args:
        run: its name.
        trainer: as it stands after the last epoch.
        epochs: the metrics line of every epoch, as `epoch_line` makes them; the last one is what is reported.
        wall_seconds: from loading the data to the end, interruptions left out.

    Returns:
        Accuracies are percent, sparsities shares. ``sparsity`` is measured: pruned weights over prunable ones;
        ``network_sparsity`` is the same over all parameters. ``densities`` are the shares of the weights kept in the
        end, by layer; empty for a dense run. ``input`` is what the network takes: the shape of an image, and the mean
        and standard deviation of each channel, in 0…255, by which images were normalised. ``execution`` is how steps
        were made, "captured" or "eager"; ``parallel`` is how the network lay over ``ranks`` processes in the end,
        "single", "ddp" or "fsdp"; the curve has the ranks of every epoch. All ranks make it together.
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
        "input": {
            "shape": list(trainer.data.train.images.shape[1:]),
            "mean": trainer.mean.flatten().tolist(),
            "std": trainer.std.flatten().tolist(),
            "classes": list(trainer.data.classes),
        },
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
        "execution": trainer.compute.name,
        "ranks": trainer.world.size,
        "parallel": trainer.layout.name,
        "versions": {"fggp": fggp.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": source_commit(),
        "settings": settings.as_json(),
        "curve": {name: [epoch.get(name) for epoch in epochs] for name in epochs[-1] if name != "kind"},
    }


def grouped(records: Sequence[Json]) -> dict[tuple[str, float], list[Json]]:
    """Gather records that differ in seed only, by (method, target sparsity), in order of first appearance."""
    groups: dict[tuple[str, float], list[Json]] = {}
    for record in records:
        groups.setdefault((record["method"], record["settings"]["sparsity"]), []).append(record)
    return groups


def label(method: str) -> str:
    """Return a method's name as papers write it."""
    return LABELS.get(method, method)


def device_name(device: torch.device) -> str:
    """Return the maker's name of the processor that a device is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Python itself names the processor on other systems only
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def source_commit() -> str | None:
    """Return the commit that this code was checked out at, "-dirty" where it was changed; None outside of git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # A package installed below someone else's repository must not be given that one's commit.
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        described = subprocess.run(
            [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            check=True,
            capture_output=True,
            text=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()
