"""Measure what a weight of each layer costs in the sparse runtime, once, before training.

    python experiments/per_nanosecond/costs.py digits-cnn
    python experiments/per_nanosecond/costs.py resnet20 --input 3 32 32

The network is masked at random, every layer alike, to several densities, and the runtime is timed step by step. A
layer's cost is the slope of its time over its number of weights: what each further weight adds. Beside it stands the
number of output positions at which a weight is used. Both are written to costs.json in the current folder.
"""

import argparse
import copy
import json
from collections import defaultdict
from datetime import datetime, timezone
from statistics import median

import numpy as np
import torch
from per_cost import MEASURED
from torch import Tensor, nn

import fggp
from fggp.lab.base.machine import device_name, source_commit
from fggp.lab.training.models import create
from fggp.masks.starts import starting_masks
from fggp.model.find import find_prunable
from fggp.ship.graph.simplify import simplify
from fggp.ship.network.describe import captured
from fggp.ship.runtime import library
from fggp.ship.runtime.engine import Engine

DENSITIES = (0.02, 0.05, 0.1, 0.2)
ROUNDS = 200
"""In turns over the densities. The median time of a layer counts."""


def slope(weights: list[int], seconds: list[float]) -> float:
    """Return what each further weight adds, by least squares."""
    return float(np.polyfit(weights, seconds, 1)[0])


@torch.no_grad()
def masked(model: nn.Module, density: float) -> nn.Module:
    """Return a copy in which each layer keeps this share of its weights, drawn at random."""
    model = copy.deepcopy(model).eval()
    prunable = find_prunable(model)
    for weight, mask in zip(prunable, starting_masks(prunable, "uniform", 1 - density, seed=0), strict=True):
        weight.parameter.masked_fill_(~mask, 0)
    return model


def nanoseconds(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Return what each weight of a layer adds to the time of a batch, by the name of its parameter.

    Raises:
        RuntimeError: a layer was not faster with fewer weights; the machine was not quiet.
    """
    networks = [masked(model, density) for density in DENSITIES]
    engines = [Engine(simplify(captured(network, (images,), {})), library.load()) for network in networks]
    times: dict[tuple[str, int], list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for index, engine in enumerate(engines):
            for step in engine.profile([images]):
                for place in engine.products.keys() & {*step.names}:
                    times[place, index].append(1e6 * step.milliseconds)
    weights = [dict(network.named_parameters()) for network in networks]
    costs = {}
    for found in find_prunable(model):
        place = found.name.removesuffix(".weight")
        counts = [int(own[found.name].count_nonzero()) for own in weights]
        costs[found.name] = slope(counts, [median(times[place, index]) for index in range(len(engines))])
        if costs[found.name] <= 0:
            raise RuntimeError(f"{place} was not faster with fewer weights; measure again on a quiet machine")
    return costs


def positions(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Return at how many output positions of an image each weight of a layer is used."""
    names = {id(found.parameter): found.name for found in find_prunable(model)}
    found: dict[str, int] = {}

    def count(module: nn.Module, inputs: object, output: Tensor) -> None:
        name = names.get(id(getattr(module, "weight", None)))
        if name is not None:
            found[name] = output[0].numel() // output.shape[1]

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    with torch.no_grad():
        model.eval()(image)
    for hook in hooks:
        hook.remove()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="as in fggp train")
    parser.add_argument("--input", type=int, nargs=3, default=(1, 8, 8), help="channels, height and width of an image")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = create(options.model, options.classes, options.input[0])
    images = torch.randn(options.batch, *options.input)
    record = {
        "model": options.model,
        "input": options.input,
        "batch": options.batch,
        "threads": options.threads,
        "device": device_name(torch.device("cpu")),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"fggp": fggp.__version__, "torch": torch.__version__},
        "commit": source_commit(),
        "densities": DENSITIES,
        "nanoseconds": nanoseconds(model, images),
        "positions": positions(model, images[:1]),
    }
    MEASURED.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for name, cost in record["nanoseconds"].items():
        print(f"{name:30} {cost:8.2f} ns {record['positions'][name]:6} positions")


if __name__ == "__main__":
    main()
