"""What int8 costs in accuracy: a finished run as it is, quantised, and trained for one epoch more with its rounding.

$ python experiments/int8_accuracy.py RUN --data folder:data/cifar10-10k --out results/int8-accuracy/accuracy.jsonl

Appends a line. The epoch more, at the run's last learning rate, is trained without the rounding too, for comparison.
"""

import argparse
import copy
import json
from datetime import date
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

import fggp
from fggp.lab.base.machine import device_name, source_commit
from fggp.lab.training.batches import training_batches
from fggp.lab.training.data import ImageData, Split, load_data
from fggp.lab.training.methods import granularity_of
from fggp.lab.training.models import create
from fggp.lab.training.settings import TrainSettings

BATCHES, BATCH = 4, 128
"""Of training images, for the ranges."""
RATE = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, help="as in fggp train: the run's data, where they are now")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    run = json.loads((options.run / "record.json").read_text())
    kept = {
        name: run["settings"][name] for name in ("data", "data_name", "holdout", "model", "granularity", "sparsity")
    }
    kept["data"] = options.data
    data = load_data(TrainSettings(**kept).resolve(), Console(quiet=True))
    mean, std = data.moments()

    def prepared(images: Tensor) -> Tensor:
        return (images.float() - mean) / std

    model = create(kept["model"], len(data.classes))
    model.load_state_dict(safetensors.torch.load_file(options.run / "model.safetensors"))
    ranges = [prepared(x) for x in data.train.images[: BATCHES * BATCH].split(BATCH)]

    def accuracies(network: nn.Module) -> dict[str, float]:
        fast = fggp.compile(network.eval(), ranges[0])
        return {name: accuracy(fast, split) for name, split in (("val", data.val), ("test", data.test)) if split}

    def accuracy(network: fggp.Compiled, split: Split) -> float:
        right = [
            network(prepared(x)).argmax(1) == y
            for x, y in zip(split.images.split(BATCH), split.labels.split(BATCH), strict=True)
        ]
        return round(100 * float(torch.cat(right).float().mean()), 2)

    found = {"fp32": accuracies(model), "int8": accuracies(fggp.quantize(model.eval(), ranges))}
    tuned, rounding = copy.deepcopy(model), copy.deepcopy(model)
    train(tuned, data, prepared, run)
    found["fp32, tuned"] = accuracies(tuned)
    found["int8, tuned without rounding"] = accuracies(fggp.quantize(tuned.eval(), ranges))
    aware = fggp.quantization_aware(rounding.eval(), ranges)
    train(rounding, data, prepared, run)
    found["int8, tuned with rounding"] = accuracies(aware.quantize())
    record = {
        **{name: run[name] for name in ("model", "data", "method", "sparsity", "seed")},
        "granularity": kept["granularity"],
        "run_commit": run["commit"],
        "accuracies": found,
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device("cpu")),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "commit": source_commit(),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    with options.out.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(json.dumps(found, indent=2))


def train(model: nn.Module, data: ImageData, prepared, run: dict) -> None:
    """Train for an epoch. A pruner keeps the zeros."""
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True, weight_decay=5e-4)
    pruner = fggp.Pruner(
        model,
        optimizer,
        run["sparsity"],
        begin=0,
        end=1,
        every=1,
        method=fggp.GMP(),
        init="keep",
        granularity=granularity_of(run["settings"]["granularity"]),
    )
    model.train()
    for batch in training_batches(data.train, BATCH, data.augmentation, torch.Generator().manual_seed(run["seed"])):
        optimizer.zero_grad()
        F.cross_entropy(model(prepared(batch.images)), batch.labels).backward()
        optimizer.step()
    pruner.remove()


if __name__ == "__main__":
    main()
