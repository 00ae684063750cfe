"""Records as `fggp train` would leave them, made up."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MINIMUM = ("run", "method", "model", "data", "sparsity", "init_sparsity", "seed", "test_accuracy", "val_accuracy")
LAYERS = ("features.0.weight", "features.3.weight", "classifier.weight")


def record(
    method: str = "fggp", seed: int = 0, sparsity: float = 0.95, accuracy: float | None = None, **changes: Any
) -> dict[str, Any]:
    """A finished run; ``changes`` go to its settings, but for run, data, model and init_sparsity to the record too."""
    if method == "dense":
        sparsity = 0.0
    settings = {
        "data": "digits",
        "data_name": None,
        "model": "digits-cnn",
        "method": method,
        "sparsity": sparsity,
        "init_sparsity": 0.0,
        "rate": 0.5 if method == "fggp" else None,
        "scope": "global",
        "prune_begin": 0.0,
        "prune_end": 2.0,
        "every": None,
        "epochs": 4,
        "optimizer": "sgd",
        "lr": 0.1,
        "seed": seed,
        "device": "cpu",
        **changes,
    }
    noise = random.Random(f"{method} {seed} {sparsity} {settings['rate']}")
    accuracy = round(96 - 10 * sparsity + noise.gauss(0, 0.5), 2) if accuracy is None else accuracy
    return {
        "run": settings.pop("run", f"digits-{method}-{sparsity:g}-seed{seed}"),
        "method": method,
        "model": settings["model"],
        "data": settings["data"],
        "sparsity": sparsity and min(1.0, sparsity + 0.0000646),
        "init_sparsity": settings["init_sparsity"],
        "seed": seed,
        "test_accuracy": accuracy,
        "val_accuracy": max(0.0, round(accuracy - 0.5, 2)),
        "parameters_left": round(20_000 * (1 - sparsity)),
        "densities": {layer: (1 - sparsity) * share for layer, share in zip(LAYERS, (1, 0.5, 0), strict=True)}
        if sparsity
        else {},
        "date": "2026-11-22T12:00:00+00:00",
        "device": "a processor",
        "versions": {"fggp": "0.1.0"},
        "settings": settings,
        "curve": {"epoch": [1, 2, 3, 4], "test_accuracy": [30.0, 60.0, 80.0, accuracy], "val_accuracy": [None] * 4},
    }


def minimal(*args: Any, **changes: Any) -> dict[str, Any]:
    """A record that holds only what any must."""
    made = record(*args, **changes)
    return {key: made[key] for key in MINIMUM}


def write(file: Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write records as lines, and return the file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(each) + "\n" for each in records))
    return file
