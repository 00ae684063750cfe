"""One mask update, and the cost of the steps in between, beside what people use today.

    python benchmarks/update.py                     prints the tables, appends the raw record to results/benchmarks/

Every contender prunes the same random network from dense to 20 %, from the same weights and gradients, in every
round, in turn; figures are medians over the rounds and only their ratios are meant to last. Memory is the growth of
the process's peak resident size during one update, in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import fggp
from fggp.lab import models
from fggp.lab.record import device_name

SPARSITY = 0.2
RESULTS = Path(__file__).parent.parent / "results" / "benchmarks" / "update.ndjson"


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = models.create(name, classes=10)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return model


def prunable(model: nn.Module) -> list[nn.Parameter]:
    return [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


# The contenders: each is made from a network, and its update prunes that from dense to 20 %.


@dataclass
class Contender:
    """An update to be measured, and what is to be done before each."""

    update: Callable[[], object]
    prepare: Callable[[], None] = lambda: None


def with_fggp(method: str) -> Callable[[nn.Module], Contender]:
    def make(model: nn.Module) -> Contender:
        # lr 0: the optimizer changes nothing, and the step's own cost is measured with it.
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        dense = copy.deepcopy(model.state_dict())
        pruner: fggp.Pruner | None = None

        def prepare() -> None:
            nonlocal pruner
            if pruner is not None:
                pruner.remove()
                model.load_state_dict(dense)
            pruner = fggp.Pruner(model, optimizer, SPARSITY, begin=0, end=1, every=1, method=method)

        return Contender(optimizer.step, prepare)

    return make


def sorted_topk(model: nn.Module) -> Contender:
    """Magnitude pruning as research code does it: concatenate, sort with topk, compare; float masks."""
    weights = prunable(model)

    def update() -> list[Tensor]:
        magnitudes = torch.cat([w.detach().abs().flatten() for w in weights])
        keep = round((1 - SPARSITY) * len(magnitudes))
        threshold = torch.topk(magnitudes, keep, sorted=True).values[-1]
        return [(w.detach().abs() >= threshold).float() for w in weights]

    return Contender(update)


def global_unstructured(model: nn.Module) -> Contender:
    """torch.nn.utils.prune, on a copy: it re-registers the parameters it prunes."""
    layers: list[tuple[nn.Module, str]] = []

    def prepare() -> None:
        copied = copy.deepcopy(model)
        layers[:] = [(m, "weight") for m in copied.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]

    def update() -> None:
        prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=SPARSITY)

    return Contender(update, prepare)


def kthvalue(model: nn.Module) -> Contender:
    weights = prunable(model)

    def update() -> list[Tensor]:
        magnitudes = torch.cat([w.detach().abs().flatten() for w in weights])
        threshold = magnitudes.kthvalue(len(magnitudes) - round((1 - SPARSITY) * len(magnitudes))).values
        return [w.detach().abs() > threshold for w in weights]

    return Contender(update)


def partition(model: nn.Module) -> Contender:
    weights = prunable(model)

    def update() -> list[Tensor]:
        magnitudes = torch.cat([w.detach().abs().flatten() for w in weights]).numpy()
        cut = len(magnitudes) - round((1 - SPARSITY) * len(magnitudes)) - 1
        threshold = float(np.partition(magnitudes, cut)[cut])
        return [w.detach().abs() > threshold for w in weights]

    return Contender(update)


CONTENDERS: dict[str, Callable[[nn.Module], Contender]] = {
    "fggp: FGGP": with_fggp("fggp"),
    "fggp: GMP": with_fggp("gmp"),
    "concatenate + sorted topk": sorted_topk,
    "torch.nn.utils.prune.global_unstructured": global_unstructured,
    "concatenate + torch.kthvalue": kthvalue,
    "concatenate + np.partition": partition,
}


def seconds(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def time_updates(name: str, rounds: int) -> dict[str, list[float]]:
    contenders = {contender: make(network(name)) for contender, make in CONTENDERS.items()}
    times: dict[str, list[float]] = {contender: [] for contender in contenders}
    for _ in range(rounds + 1):
        for label, contender in contenders.items():
            contender.prepare()
            times[label].append(seconds(contender.update))
    return {contender: ts[1:] for contender, ts in times.items()}  # the first round warms up


def time_steps(name: str, rounds: int) -> dict[str, list[float]]:
    """An SGD step with momentum, without and with a half sparse pruner between updates; one pass, for scale."""
    model = network(name)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6, momentum=0.9)
    optimizer.step()
    weights = [p.detach() for p in prunable(model)]
    times: dict[str, list[float]] = {"bare step": [], "step with pruner": [], "one pass over weights and momentum": []}
    for _ in range(rounds):
        times["bare step"].append(seconds(optimizer.step))
        pruner = fggp.Pruner(model, optimizer, 0.9, begin=10**6, end=10**7, every=1, init_sparsity=0.5)
        times["step with pruner"].append(seconds(optimizer.step))
        pruner.remove()
        momentum = [optimizer.state[p]["momentum_buffer"] for p in prunable(model)]
        times["one pass over weights and momentum"].append(seconds(partial(torch._foreach_mul_, weights + momentum, 1)))
    return times


def peak_growth(name: str, contender: str) -> int:
    """Bytes by which one update raises the process's peak resident size; run in a fresh process."""
    made = CONTENDERS[contender](network(name))
    made.prepare()

    def status(key: str) -> int:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
        return int(line.split()[1]) * 1024

    # 5 resets the peak to the present size.
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    made.update()
    return status("VmHWM") - before


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
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device("cpu")),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "fggp": fggp.__version__,
        "update_seconds": updates,
        "step_seconds": steps,
        "extra_bytes": memory,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(f"\nappended to {RESULTS}")


if __name__ == "__main__":
    main()
