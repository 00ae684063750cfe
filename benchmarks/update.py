"""One mask update, and the cost of the steps between updates, compared with common alternatives.

    python benchmarks/update.py                     prints the tables, appends the raw record to results/benchmarks/

In every round, all contenders in turn prune the same random network, with the same weights and gradients, from dense
to 20 %. Figures are medians over the rounds; compare their ratios, not their absolute values. Memory is the growth of
the process's peak resident size during one update, in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import copy
import gc
import statistics
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import fggp
from common import RESULTS, append, conditions, seconds, watched
from fggp.lab.training import models

SPARSITY = 0.2
RECORDS = RESULTS / "update.ndjson"


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(name, classes=10)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model


def copied(model: nn.Module) -> nn.Module:
    """A network with weights of its own, and the same gradients."""
    copied = copy.deepcopy(model)
    for own, p in zip(copied.parameters(), model.parameters(), strict=True):
        own.grad = p.grad
    return copied


def prunable(model: nn.Module) -> list[nn.Parameter]:
    return [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


# The contenders. Each takes a network and returns its update, to be called once. The update prunes the network from
# dense to 20 % and returns the masks, which are zero for pruned weights.

Contender = Callable[[nn.Module], Callable[[], list[Tensor]]]


class NoOptimizer(torch.optim.Optimizer):
    """Changes no weights, so that its step costs only the pruner's work."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {})

    def step(self, closure: Any = None) -> None:
        pass


def with_fggp(method: str) -> Contender:
    def make(model: nn.Module) -> Callable[[], list[Tensor]]:
        optimizer = NoOptimizer(model)
        pruner = fggp.Pruner(model, optimizer, SPARSITY, begin=1, end=2, every=1, method=method)
        optimizer.step()  # the first step also looks at the weights that it was given

        def update() -> list[Tensor]:
            optimizer.step()
            return list(pruner.masks.values())

        return update

    return make


def sorted_topk(model: nn.Module) -> Callable[[], list[Tensor]]:
    """Magnitude pruning as research code does it: concatenate, sort with topk, compare; float masks."""
    weights = prunable(model)

    def update() -> list[Tensor]:
        magnitudes = torch.cat([w.detach().abs().flatten() for w in weights])
        keep = round((1 - SPARSITY) * len(magnitudes))
        threshold = torch.topk(magnitudes, keep, sorted=True).values[-1]
        return [(w.detach().abs() >= threshold).float() for w in weights]

    return update


def global_unstructured(model: nn.Module) -> Callable[[], list[Tensor]]:
    """torch.nn.utils.prune, which replaces each weight by a parameter and a float mask."""
    layers = [(m, "weight") for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

    def update() -> list[Tensor]:
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=SPARSITY)
        return [m.weight_mask for m, _ in layers]

    return update


def kthvalue(model: nn.Module) -> Callable[[], list[Tensor]]:
    weights = prunable(model)

    def update() -> list[Tensor]:
        magnitudes = torch.cat([w.detach().abs().flatten() for w in weights])
        threshold = magnitudes.kthvalue(len(magnitudes) - round((1 - SPARSITY) * len(magnitudes))).values
        return [w.detach().abs() > threshold for w in weights]

    return update


def partition(model: nn.Module) -> Callable[[], list[Tensor]]:
    weights = prunable(model)

    def update() -> list[Tensor]:
        magnitudes = torch.cat([w.detach().abs().flatten() for w in weights]).numpy()
        cut = len(magnitudes) - round((1 - SPARSITY) * len(magnitudes)) - 1
        threshold = float(np.partition(magnitudes, cut)[cut])
        return [w.detach().abs() > threshold for w in weights]

    return update


CONTENDERS: dict[str, Contender] = {
    "fggp: FGGP": with_fggp("fggp"),
    "fggp: GMP": with_fggp("gmp"),
    "concatenate + sorted topk": sorted_topk,
    "torch.nn.utils.prune.global_unstructured": global_unstructured,
    "concatenate + torch.kthvalue": kthvalue,
    "concatenate + np.partition": partition,
}


def time_updates(name: str, rounds: int) -> dict[str, list[float]]:
    model = network(name)
    times: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
    for _ in range(rounds + 1):
        for contender, make in CONTENDERS.items():
            gc.collect()  # hooks make reference cycles, which keep the last contender's network
            times[contender].append(seconds(make(copied(model))))
    return {contender: ts[1:] for contender, ts in times.items()}  # the first round warms up


def time_steps(name: str, rounds: int) -> dict[str, list[float]]:
    """An SGD step with momentum, without and with a half-sparse pruner between updates; one pass, for comparison."""
    model = network(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    optimizer.step()
    weights = [p.detach() for p in prunable(model)]
    times: dict[str, list[float]] = {"bare step": [], "step with pruner": [], "one pass over weights and momentum": []}
    for _ in range(rounds):
        times["bare step"].append(seconds(optimizer.step))
        pruner = fggp.Pruner(model, optimizer, 0.9, begin=10**6, end=10**7, every=1, init_sparsity=0.5)
        optimizer.step()
        times["step with pruner"].append(seconds(optimizer.step))
        pruner.remove()
        momentum = [optimizer.state[p]["momentum_buffer"] for p in prunable(model)]
        times["one pass over weights and momentum"].append(seconds(partial(torch._foreach_mul_, weights + momentum, 1)))
    return times


def peak_growth(name: str, contender: str) -> int:
    """Bytes by which one update raises the process's peak resident size; run in a fresh process."""
    _, _, growth = watched(CONTENDERS[contender](network(name)))
    return growth


def measure_memory(name: str, contender: str) -> int:
    call = [sys.executable, __file__, "--model", name, "--peak-of", contender]
    return int(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["vgg19", "resnet50"], default="resnet50")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak_of:
        print(peak_growth(args.model, args.peak_of))
        return

    size = sum(p.numel() for p in prunable(network(args.model)))
    updates = time_updates(args.model, args.rounds)
    ours = statistics.median(updates["fggp: FGGP"])
    memory = {contender: measure_memory(args.model, contender) for contender in CONTENDERS}
    print(f"one update of {args.model}, {size:,} weights, {torch.get_num_threads()} threads, {args.rounds} rounds\n")
    print(f"{'':42}{'median':>10}{'fastest':>10}{'FGGP is':>10}{'extra memory':>15}")
    for contender, ts in updates.items():
        median = statistics.median(ts)
        per_weight = memory[contender] / size
        times = f"{median * 1e3:7.0f} ms{min(ts) * 1e3:7.0f} ms{median / ours:9.1f}×"
        print(f"{contender:42}{times}{per_weight:9.1f} B/weight")

    steps = time_steps(args.model, args.rounds)
    print("\nbetween updates, SGD with momentum")
    for kind, ts in steps.items():
        print(f"{kind:42}{statistics.median(ts) * 1e3:7.1f} ms{min(ts) * 1e3:7.1f} ms")

    record = {
        "benchmark": "update",
        "model": args.model,
        "weights": size,
        "sparsity": SPARSITY,
        "rounds": args.rounds,
        **conditions(),
        "update_seconds": updates,
        "step_seconds": steps,
        "extra_bytes": memory,
    }
    append(record, RECORDS)
    print(f"\nappended to {RECORDS}")


if __name__ == "__main__":
    main()
