"""Training steps that skip pruned weights compared with dense ones.

    python benchmarks/training.py                     prints the table, appends the raw record to results/benchmarks/
    python benchmarks/training.py --networks vgg19 --scope global

A step is forward, backward and SGD with momentum on random images, which are ready before the clock starts. Dense steps
have no Pruner. Networks are pruned by magnitude in their first step, each layer to the same sparsity; `--scope global`
leaves early layers much denser than the average. "masked" is what pruning costs without `Pruner.accelerate`: dense
products, and zeros written after each step. Each case takes its turn in every round; figures are medians over the
rounds, and their ratios medians of each round's ratio to the faster dense step. Disturbed rounds are repeated as in
`fggp bench`.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before PyTorch allocates anything

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fggp
from common import RESULTS, append, conditions, watched
from fggp.lab.bench.engines import DISTURBED, ROUNDS_MOST, disturbances
from fggp.lab.training import models
from fggp.pruner.update import Scope

RECORDS = RESULTS / "training.ndjson"
SPARSITIES = (0.9, 0.95, 0.98)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "vgg19": (lambda: models.create("vgg19", 100), (128, 3, 32, 32)),
    "resnet50": (lambda: models.create("resnet50", 100), (64, 3, 32, 32)),
    "mlp-4096": (mlp, (256, 4096)),
}


class Case:
    """A network, and how it is trained."""

    def __init__(
        self, model: nn.Module, inputs: Tensor, bf16: bool, sparsity: float | None, accelerate: bool, scope: Scope
    ) -> None:
        # Dense convolutions are fastest with this layout.
        layout = torch.channels_last if inputs.dim() == 4 else torch.preserve_format
        self.model = copy.deepcopy(model).to(memory_format=layout).train()  # type: ignore[call-overload]
        self.inputs, self.bf16 = inputs.contiguous(memory_format=layout) if inputs.dim() == 4 else inputs, bf16
        self.labels = torch.arange(len(inputs)) % 10
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.001, momentum=0.9)
        self.note = ""
        if sparsity is not None:
            steps = {"begin": 0, "end": 1, "every": 1}
            self.pruner = fggp.Pruner(self.model, self.optimizer, sparsity, **steps, method="gmp", scope=scope)
            if accelerate:
                self.acceleration = self.pruner.accelerate()
            self.step()  # prunes
        for _ in range(2):
            self.step()
        if accelerate:
            self.note = str(self.acceleration)

    def step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            loss = F.cross_entropy(self.model(self.inputs).float(), self.labels)
        loss.backward()
        self.optimizer.step()

    def seconds(self) -> float:
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start


def make(name: str, scope: Scope) -> dict[str, Case]:
    create, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = create(), torch.randn(shape)
    kinds = {"fp32": False, "bf16": True}
    cases = {f"dense {kind}": Case(model, inputs, bf16, None, False, scope) for kind, bf16 in kinds.items()}
    cases["masked bf16, 95%"] = Case(model, inputs, True, 0.95, False, scope)
    for sparsity in SPARSITIES:
        for kind, bf16 in kinds.items():
            cases[f"accelerated {kind}, {sparsity:.0%}"] = Case(model, inputs, bf16, sparsity, True, scope)
    return cases


def timed(cases: dict[str, Case], rounds: int) -> list[dict[str, float]]:
    """Seconds of each case, a row for each round; the least disturbed rounds."""
    rows: list[dict[str, float]] = []

    def disturbed() -> list[float]:
        return disturbances([[row[name] for row in rows] for name in cases])

    while len(rows) < rounds or (len(rows) < ROUNDS_MOST * rounds and sum(x < DISTURBED for x in disturbed()) < rounds):
        rows.append({name: case.seconds() for name, case in cases.items()})
    calmest = sorted(zip(disturbed(), range(len(rows)), strict=True))[:rounds]
    return [rows[number] for _, number in calmest]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--scope", choices=("layer", "global"), default="layer", help="as the Pruner's")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    for name in args.networks:
        cases = make(name, args.scope)
        rows = timed(cases, args.rounds)
        memory = {kind: watched(cases[kind].step)[2] for kind in cases}
        measured = []
        for kind, case in cases.items():
            ratios = [min(row["dense fp32"], row["dense bf16"]) / row[kind] for row in rows]
            measured.append(
                {
                    "case": kind,
                    "ms": [round(1e3 * row[kind], 2) for row in rows],
                    "median_ms": round(1e3 * statistics.median(row[kind] for row in rows), 2),
                    "times_faster": round(statistics.median(ratios), 3),
                    "peak_growth": memory[kind],
                    "note": case.note,
                }
            )
            median, times = measured[-1]["median_ms"], measured[-1]["times_faster"]
            print(f"{name:10} {kind:24} {median:8.1f} ms  {times:.2f}×  {case.note}", flush=True)
        command = f"python benchmarks/training.py --networks {name} --scope {args.scope} --rounds {args.rounds}"
        shape = list(NETWORKS[name][1])
        append(
            {"benchmark": "training", "command": command, "network": name, "inputs": shape}
            | {"scope": args.scope, "rounds": args.rounds, **conditions()}
            | {"large_pages": os.environ["THP_MEM_ALLOC_ENABLE"] == "1"}
            | {"measured": measured},
            RECORDS,
        )


if __name__ == "__main__":
    main()
