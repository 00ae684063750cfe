"""A program that loads a network and runs it once: how long it takes from its start, and its memory.

    python benchmarks/start.py --runtime PYTHON      prints the table, appends the raw record to results/benchmarks/

PYTHON is an interpreter of an environment with fggp-runtime, and without PyTorch (`.venv-runtime/bin/python`, which
`make runtime` makes). Each program is a process of its own: Python starts, imports its engine, opens the network's file
and runs one image. The programs take turns. Files are in the page cache. What fggp-runtime measures to choose its
kernels is in its time, and what PyTorch imports to read the module in that of PyTorch.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import fggp
from common import RESULTS, append, conditions
from fggp.lab.bench.networks import magnitude_pruned, with_random_norms
from fggp.lab.export.onnx_file import write_onnx
from fggp.lab.training import models

RECORDS = RESULTS / "start.ndjson"
PROGRAMS = {
    "NumPy alone": "import sys, numpy; x = numpy.load(sys.argv[2])",
    "fggp-runtime": """
import sys, numpy, fggp_runtime
net = fggp_runtime.load(sys.argv[1])
net(numpy.load(sys.argv[2]))
""",
    "ONNX Runtime": """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
session.run(None, {"x": numpy.load(sys.argv[2])})
""",
    "OpenVINO": """
import sys, numpy, openvino
model = openvino.Core().compile_model(sys.argv[1], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
model([numpy.load(sys.argv[2])])
""",
    "PyTorch": """
import sys, numpy, torch
model = torch.load(sys.argv[1], weights_only=False)
with torch.inference_mode():
    model(torch.from_numpy(numpy.load(sys.argv[2])))
""",
}
"""What each process runs, with the file of the network and that of the image."""
PEAK = "\nprint(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
"""Follows them: the largest resident size in kB. What the system says of a child's can be its parent's."""
FILES = {"fggp-runtime": "net.fggp", "ONNX Runtime": "net.onnx", "OpenVINO": "net.onnx", "PyTorch": "net.pt"}


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    torch.manual_seed(0)
    return {
        "ResNet-50": (torchvision.models.resnet50(weights=None), torch.randn(1, 3, 224, 224)),
        "MobileNetV2": (torchvision.models.mobilenet_v2(weights=None), torch.randn(1, 3, 224, 224)),
        "VGG-19 (CIFAR form)": (models.create("vgg19", classes=10), torch.randn(1, 3, 32, 32)),
    }


def run_program(python: str, program: str, arguments: Sequence[Path]) -> tuple[float, int]:
    """Seconds that a process takes from start to end, and its largest resident size in bytes."""
    start = time.perf_counter()
    printed = subprocess.check_output([python, "-c", program + PEAK, *map(str, arguments)])
    return time.perf_counter() - start, 1024 * int(printed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", required=True, metavar="PYTHON", help="the interpreter with fggp-runtime")
    parser.add_argument("--sparsity", type=float, default=0.95)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()
    measured = []
    for name, (dense, image) in networks().items():
        model = magnitude_pruned(with_random_norms(dense).eval(), args.sparsity)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            fggp.compile(model, image).save(folder / "net.fggp")
            write_onnx(model, {"x": image}, folder / "net.onnx")
            torch.save(model, folder / "net.pt")
            np.save(folder / "x.npy", image.numpy())
            found: dict[str, list[tuple[float, int]]] = {program: [] for program in PROGRAMS}
            for number in range(args.rounds + 1):
                for program, text in PROGRAMS.items():
                    file = folder / FILES.get(program, "x.npy")
                    python = args.runtime if program in ("fggp-runtime", "NumPy alone") else sys.executable
                    one = run_program(python, text, [file, folder / "x.npy"])
                    if number:  # the first one reads the files
                        found[program].append(one)
            sizes = {program: (folder / file).stat().st_size for program, file in FILES.items()}
        for program, runs in found.items():
            ms = [round(1e3 * taken, 1) for taken, _ in runs]
            memory = statistics.median(used for _, used in runs)
            measured.append(
                {"model": name, "program": program, "ms": ms, "median_ms": statistics.median(ms)}
                | {"fastest_ms": min(ms), "resident_bytes": memory, "file_bytes": sizes.get(program)}
            )
            times = f"{statistics.median(ms):7.0f} ms, {min(ms):7.0f} at least"
            print(f"{name:20} {program:14} {times}, {memory / 1e6:6.0f} MB", flush=True)
    command = f"python benchmarks/start.py --runtime PYTHON --sparsity {args.sparsity} --rounds {args.rounds}"
    versions = {
        name: subprocess.check_output(
            [sys.executable, "-c", f"import {name}; print({name}.__version__)"], text=True
        ).strip()
        for name in ("onnxruntime", "openvino")
    }
    append(
        {"benchmark": "start", "command": command, "sparsity": args.sparsity, "rounds": args.rounds, **conditions()}
        | {"versions": versions, "measured": measured},
        RECORDS,
    )


if __name__ == "__main__":
    main()
