"""The small file compared with the dense one: size, and time to write and to load.

    python benchmarks/file.py                     prints the table, appends the raw record to results/benchmarks/

A random network is pruned at random (each layer to the same sparsity) and by global magnitude. torch.save writes the
dense file; torch.load and load_state_dict load it. Every round writes and loads all files in turn. Files are in the
page cache, so times do not include the disk. gzip -6 of the dense file is the baseline that needs no code. Figures are
medians over the rounds; compare their ratios, not their absolute values.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fggp
from common import RESULTS, append, conditions, seconds
from fggp.lab.training import models

RECORDS = RESULTS / "file.ndjson"


@torch.no_grad()
def prune(model: nn.Module, sparsity: float, by: str) -> nn.Module:
    """A copy, pruned in its convolutions and linear layers."""
    model = copy.deepcopy(model)
    weights = [m.weight for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if by == "magnitude":
        magnitudes = torch.cat([w.abs().flatten() for w in weights])
        threshold = magnitudes.kthvalue(round(sparsity * len(magnitudes))).values
        masks = [w.abs() > threshold for w in weights]
    else:
        masks = [torch.rand(w.shape) >= sparsity for w in weights]
    for weight, mask in zip(weights, masks, strict=True):
        weight.masked_fill_(~mask, 0)
    return model


def measure(model: nn.Module, folder: Path, rounds: int) -> dict[str, Any]:
    """Sizes in bytes, and lists of seconds to write and to load."""
    dense, small, rounded = (folder / name for name in ("dense.pt", "small.safetensors", "rounded.safetensors"))
    writes: dict[str, Callable[[], object]] = {
        "dense": lambda: torch.save(model.state_dict(), dense),
        "fp32": lambda: fggp.save(model, small),
        "bf16": lambda: fggp.save(model, rounded, values=torch.bfloat16),
    }
    target = copy.deepcopy(model)
    loads: dict[str, Callable[[], object]] = {
        "dense": lambda: target.load_state_dict(torch.load(dense, weights_only=True)),
        "fp32": lambda: fggp.load(small, target),
        "bf16": lambda: fggp.load(rounded, target),
    }
    times: dict[str, dict[str, list[float]]] = {"write": {}, "load": {}}
    for _ in range(rounds + 1):
        for kind, calls in (("write", writes), ("load", loads)):
            for name, call in calls.items():
                times[kind].setdefault(name, []).append(seconds(call))
    sizes = {name: path.stat().st_size for name, path in (("dense", dense), ("fp32", small), ("bf16", rounded))}
    sizes["gzip"] = len(gzip.compress(dense.read_bytes(), 6))
    drop_first = {
        kind: {name: ts[1:] for name, ts in by_name.items()} for kind, by_name in times.items()
    }  # it warms up
    return {"bytes": sizes, "write_seconds": drop_first["write"], "load_seconds": drop_first["load"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg19")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()

    torch.manual_seed(0)
    model = models.create(args.model, classes=10)
    print(f"{args.model}, {sum(p.numel() for p in model.parameters()):,} parameters, {args.rounds} rounds", end="")
    print(f", {torch.get_num_threads()} threads\n")
    print(f"{'':24}{'':8}{'size':>10}{'smaller':>10}{'write':>10}{'load':>10}{'best':>10}")
    measured = []
    for sparsity in (0.9, 0.95, 0.98):
        for by in ("chance", "magnitude"):
            with tempfile.TemporaryDirectory() as folder:
                result = measure(prune(model, sparsity, by), Path(folder), args.rounds)
            measured.append({"sparsity": sparsity, "pruned_by": by, **result})
            for name, size in result["bytes"].items():
                line = f"{sparsity:.0%} by {by:17}{name:8}{size / 1e6:7.2f} MB{result['bytes']['dense'] / size:9.1f}×"
                if name in result["load_seconds"]:
                    write, load = (result[f"{kind}_seconds"][name] for kind in ("write", "load"))
                    line += f"{statistics.median(write) * 1e3:7.0f} ms{statistics.median(load) * 1e3:7.0f} ms"
                    line += f"{min(load) * 1e3:7.0f} ms"
                print(line)

    record = {
        "benchmark": "file",
        "model": args.model,
        "rounds": args.rounds,
        **conditions(),
        "measured": measured,
    }
    append(record, RECORDS)
    print(f"\nappended to {RECORDS}")


if __name__ == "__main__":
    main()
