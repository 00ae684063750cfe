"""What it costs that the Pruner notices what goes wrong: a step's look, a full check, beside a training step.

    python benchmarks/health.py                   prints the table, appends the raw record to results/benchmarks/

At each step the Pruner compares a counter of each weight and looks for missing gradients, and a hook sees the
optimizer. `pruner.check()` reads all weights. The rows time these alone, and a whole training step of the same network
(forward, backward, SGD with momentum, the Pruner's hooks), in turn; figures are medians over rounds. Layers without any
weight left stop gradients; of weights that lack them, a copy of the gradient is kept at each step that has one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import fggp
from common import RESULTS, append, conditions
from fggp import registry
from fggp.lab.training import models

RECORDS = RESULTS / "health.ndjson"


class Case:
    """A network in training, pruned to 90 %."""

    def __init__(self, name: str, model: nn.Module, images: torch.Tensor) -> None:
        self.name, self.model, self.images = name, model.train(), images
        self.labels = torch.randint(10, (len(images),))
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        self.pruner = fggp.Pruner(model, self.optimizer, 0.9, begin=0, end=2, every=1)
        for _ in range(3):
            self.step()
        self.pruner.reschedule(sparsity=0.95, end=1_000_000)  # updates are to come, as in most of training

    def step(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(self.images), self.labels).backward()
        self.optimizer.step()

    def look(self) -> None:
        """What a step adds: all that a step does for the Pruner's health, and nothing else."""
        pruner = self.pruner
        pruner._health.check_unchanged(pruner._masks)
        pruner._gradients.observe(pruner._masks.weights, pruner._steps.gradient_scales(pruner._masks.weights))
        pruner._health.note_written(pruner._masks)
        registry._after_any_step(self.optimizer, (), {})


def milliseconds(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return 1e3 * (time.perf_counter() - start) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.manual_seed(0)
    cases = [
        Case(f"{name}, batch {batch}", models.create(name, classes=10), torch.randn(batch, 3, 32, 32))
        for name, batch in (("resnet20", 128), ("resnet50", 16), ("vgg19", 16))
    ]
    times: dict[str, dict[str, list[float]]] = {c.name: {"look": [], "check": [], "step": []} for c in cases}
    for _ in range(args.rounds):
        for case in cases:
            times[case.name]["step"].append(milliseconds(case.step, 2))
            times[case.name]["look"].append(milliseconds(case.look, 50))
            times[case.name]["check"].append(milliseconds(case.pruner.check, 2))
    print(f"{'':34}{'training step':>15}{'look at a step':>17}{'of a step':>11}{'check()':>11}   (ms, medians)")
    for case in cases:
        step, look, check = (statistics.median(times[case.name][what]) for what in ("step", "look", "check"))
        print(f"{case.name:34}{step:15.1f}{look:17.3f}{look / step:11.2%}{check:11.2f}")
    append({"benchmark": "health", "rounds": args.rounds, **conditions("cpu"), "milliseconds": times}, RECORDS)
    print(f"\nappended to {RECORDS}")


if __name__ == "__main__":
    main()
