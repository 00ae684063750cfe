"""fggp's WebAssembly module beside ONNX Runtime Web, in one process of Node: one thread, one image, fp32.

    npm install --prefix build/onnxruntime-web onnxruntime-web
    python benchmarks/web.py --write        writes the networks to build/web-networks
    python benchmarks/web.py                measures them

Networks are CIFAR forms with random weights and random batch norms, each layer pruned by magnitude. ONNX Runtime Web
gains nothing from zeros, so it runs the dense network only. Both engines run in turns.
"""

from __future__ import annotations

import argparse
import gzip
import json
import subprocess
from pathlib import Path

import torch

from common import ROOT, append, conditions
from fggp.lab.bench.networks import magnitude_pruned, with_random_norms
from fggp.lab.export.onnx_file import write_onnx
from fggp.lab.training import models
from fggp.ship.network.describe import describe_model
from fggp.ship.network.write import write

RECORDS = ROOT / "results" / "web" / "web.ndjson"
FOLDER = ROOT / "build" / "web-networks"
MODULES = ROOT / "build" / "onnxruntime-web" / "node_modules" / "onnxruntime-web"
NETWORKS = ("resnet20", "mobilenet_v2", "resnet50")
SPARSITIES = (0.0, 0.9, 0.95)


def write_networks() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in NETWORKS:
        torch.manual_seed(0)
        dense = with_random_norms(models.create(name, classes=10)).eval()
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
        (FOLDER / f"{name}.x").write_bytes(images[:1].numpy().tobytes())
        write_onnx(dense, {"x": images}, FOLDER / f"{name}.onnx")
        for sparsity in SPARSITIES:
            model = magnitude_pruned(dense, sparsity)
            description = describe_model(model, (images,), {})
            write(FOLDER / f"{name}-{sparsity}.fggp", description.network, description.tensors, {})
            with torch.no_grad():
                (FOLDER / f"{name}-{sparsity}.y").write_bytes(model(images[:1]).numpy().tobytes())


def downloads() -> dict[str, int]:
    """Bytes of what a page loads to run a network, gzipped."""
    files = {
        "fggp": [ROOT / "web" / "fggp.wasm", ROOT / "web" / "fggp.js"],
        "onnxruntime-web": [
            MODULES / "dist" / name
            for name in ("ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.mjs", "ort.wasm.min.mjs")
        ],
    }
    return {engine: sum(len(gzip.compress(f.read_bytes(), mtime=0)) for f in each) for engine, each in files.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the networks, and measure nothing")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    if options.write:
        return write_networks()
    record = {
        "benchmark": "web",
        "command": f"python benchmarks/web.py --seconds {options.seconds} --turns {options.turns}",
        **conditions(),
        "threads": 1,
        "gzipped_bytes": downloads(),
        "onnxruntime-web": json.loads((MODULES / "package.json").read_text())["version"],
    }
    script = Path(__file__).with_name("web.mjs")
    command = ["node", script, FOLDER, MODULES, ",".join(NETWORKS), str(options.seconds), str(options.turns)]
    made = subprocess.run(command, check=True, capture_output=True, text=True)
    measured = json.loads(made.stdout)
    record.update(measured)
    append(record, RECORDS)
    for line in record["measured"]:
        print(line["model"], line["sparsity"], line["engine"], f"{line['ms']:.3g} ms")
    return None


if __name__ == "__main__":
    main()
