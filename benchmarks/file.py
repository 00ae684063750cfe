"""The small file compared with the dense one: size, and time to write and to load.

    python benchmarks/file.py                      VGG-19 of random weights, pruned by chance and by magnitude
    python benchmarks/file.py --runs FOLDER ...    trained networks, from finished runs of fggp train
    python benchmarks/file.py --rounds 0           sizes only, which do not depend on what else the machine does

Each prints a table and appends the raw record to results/benchmarks/. A random network is pruned at random (each layer
to the same sparsity) and by global magnitude.

Sizes: torch.save writes the dense file. Beside it stand that file through gzip -9, zstd -19 and xz -6, and a bound: 24
bits of sign and mantissa and the exponents' and the positions' entropy in each layer for the weights of more than one
dimension, and all other tensors as they are. Codes that use more than that can be smaller.

Times: torch.load and load_state_dict load the dense file. Every round writes and loads all files in turn. Files are in
the page cache, so times do not include the disk. Figures are medians over the rounds; compare their ratios, not their
absolute values.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import lzma
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import zstandard
from torch import Tensor, nn

import fggp
from common import RESULTS, append, conditions, seconds
from fggp.lab.export.trained import load_network
from fggp.lab.training import models
from fggp.lab.training.run_folder import RunFolder

RECORDS = RESULTS / "file.ndjson"
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda raw: gzip.compress(raw, 9),
    "zstd -19": lambda raw: zstandard.ZstdCompressor(level=19).compress(raw),
    "xz -6": lambda raw: lzma.compress(raw, preset=6),
}
KEPT_SETTINGS = ("model", "data", "method", "sparsity", "epochs", "seed", "precision")


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


def entropy_bits(counts: Tensor) -> float:
    """Bits that so many of each symbol take together, at least."""
    counts = counts[counts > 0].double()
    return float((counts * (counts.sum() / counts).log2()).sum())


def bound(model: nn.Module) -> int:
    """The bytes that the module docstring defines, for a network in float32."""
    bits = 0.0
    for tensor in model.state_dict().values():
        if tensor.ndim < 2:
            bits += 8 * tensor.nbytes
            continue
        elements = tensor.contiguous().view(torch.int32).flatten()
        nonzero = elements[elements != 0]
        exponents = (nonzero >> 23 & 255).bincount()
        positions = torch.tensor([len(nonzero), len(elements) - len(nonzero)])
        bits += 24 * len(nonzero) + entropy_bits(exponents) + entropy_bits(positions)
    return round(bits / 8)


def measure(model: nn.Module, folder: Path, rounds: int, others: bool) -> dict[str, Any]:
    """Sizes in bytes, and lists of seconds to write and to load, one for each round.

    Args:
        model: the network.
        folder: where the files go.
        rounds: how often to write and load.
        others: also measure what general compressors make of the dense file.
    """
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
    sizes["bound"] = bound(model)
    if others:
        raw = dense.read_bytes()
        sizes |= {name: len(compress(raw)) for name, compress in COMPRESSORS.items()}
    if not rounds:
        return {"bytes": sizes}
    drop_first = {
        kind: {name: ts[1:] for name, ts in by_name.items()} for kind, by_name in times.items()
    }  # it warms up
    return {"bytes": sizes, "write_seconds": drop_first["write"], "load_seconds": drop_first["load"]}


def show(title: str, result: dict[str, Any]) -> None:
    """Print a network's lines of the table."""
    for name, size in result["bytes"].items():
        line = f"{title:34}{name:10}{size / 1e6:9.3f} MB{result['bytes']['dense'] / size:9.2f}×"
        if name in result.get("load_seconds", {}):
            write, load = (result[f"{kind}_seconds"][name] for kind in ("write", "load"))
            line += f"{statistics.median(write) * 1e3:7.0f} ms{statistics.median(load) * 1e3:7.0f} ms"
            line += f"{min(load) * 1e3:7.0f} ms"
        print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vgg19", help="the network of random weights")
    parser.add_argument("--runs", nargs="+", type=Path, help="folders of finished runs, instead of random weights")
    parser.add_argument("--rounds", type=int, default=9, help="how often to write and load; 0: sizes only")
    args = parser.parse_args()

    print(f"{args.rounds} rounds, {torch.get_num_threads()} threads\n")
    print(f"{'':34}{'':10}{'size':>12}{'smaller':>10}{'write':>10}{'load':>10}{'best':>10}")
    measured: list[dict[str, Any]] = []

    def add(model: nn.Module, title: str, others: bool, about: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(model, Path(folder), args.rounds, others)
        measured.append({**about, **result})
        show(title, result)

    if args.runs:
        for path in args.runs:
            settings = RunFolder(path).record()["settings"]
            about = {key: settings[key] for key in KEPT_SETTINGS}
            title = f"{about['model']}, {about['data']}, {about['sparsity']:.0%}"
            add(load_network(path).model, title, True, about)
    else:
        torch.manual_seed(0)
        model = models.create(args.model, classes=10)
        for sparsity in (0.9, 0.95, 0.98):
            for by in ("chance", "magnitude"):
                pruned = prune(model, sparsity, by)
                add(pruned, f"{sparsity:.0%} by {by}", by == "magnitude", {"sparsity": sparsity, "pruned_by": by})

    name = "trained" if args.runs else args.model
    append({"benchmark": "file", "model": name, "rounds": args.rounds, **conditions(), "measured": measured}, RECORDS)
    print(f"\nappended to {RECORDS}")


if __name__ == "__main__":
    main()
