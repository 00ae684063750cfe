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
import contextlib
import copy
import io
import os
import statistics
import time
from collections.abc import Callable
from importlib.util import find_spec

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # before PyTorch allocates anything

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fggp
from common import RESULTS, append, conditions, watched
from fggp.lab.bench.engines import DISTURBED, ROUNDS_MOST, disturbances
from fggp.lab.bench.networks import magnitude_pruned
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
    """A network in training.

    Args:
        model: it is trained itself.
        inputs: of each step.
        bf16: whether it is trained under autocast.
    """

    note = ""

    def __init__(self, model: nn.Module, inputs: Tensor, bf16: bool) -> None:
        self.model, self.inputs, self.bf16 = model.train(), inputs, bf16
        self.labels = torch.arange(len(inputs)) % 10
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)

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


def dense(model: nn.Module, inputs: Tensor, bf16: bool) -> Case:
    if inputs.dim() == 4:  # dense convolutions are fastest with this layout
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Case(model, inputs.contiguous(memory_format=torch.channels_last), bf16)
    return Case(copy.deepcopy(model), inputs, bf16)


def pruned(model: nn.Module, inputs: Tensor, bf16: bool, sparsity: float, scope: Scope, accelerate: bool) -> Case:
    case = dense(model, inputs, bf16)
    steps = {"begin": 0, "end": 1, "every": 1}
    pruner = fggp.Pruner(case.model, case.optimizer, sparsity, **steps, method="gmp", scope=scope)
    acceleration = pruner.accelerate() if accelerate else None
    for _ in range(3):  # the first prunes, the second measures the layers
        case.step()
    case.note = str(acceleration or "")
    return case


def by_sparseprop(model: nn.Module, inputs: Tensor, sparsity: float) -> Case:
    """The layers that SparseProp finds to be faster in its products, and its parameters, which are the kept weights."""
    from sparseprop.utils import swap_modules_with_sparse

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        sparse = swap_modules_with_sparse(magnitude_pruned(model, sparsity), tuple(inputs.shape))
    case = Case(sparse, inputs, bf16=False)
    case.note = f"{said.getvalue().count(' replaced with ')} layers replaced"
    return case


def make(name: str, scope: Scope) -> dict[str, Case]:
    create, shape = NETWORKS[name]
    torch.manual_seed(0)
    model, inputs = create(), torch.randn(shape)
    kinds = {"fp32": False, "bf16": True}
    cases = {f"dense {kind}": dense(model, inputs, bf16) for kind, bf16 in kinds.items()}
    cases["masked bf16, 95%"] = pruned(model, inputs, True, 0.95, scope, accelerate=False)
    for sparsity in SPARSITIES:
        for kind, bf16 in kinds.items():
            cases[f"accelerated {kind}, {sparsity:.0%}"] = pruned(model, inputs, bf16, sparsity, scope, accelerate=True)
        if find_spec("sparseprop") and scope == "layer":
            cases[f"SparseProp fp32, {sparsity:.0%}"] = by_sparseprop(model, inputs, sparsity)
    for case in cases.values():
        case.step()
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
