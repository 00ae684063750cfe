"""fggp.compile on networks of timm and Transformers that people run on CPUs, beside dense engines, one input at a time.

    python benchmarks/networks.py --prepare [NAME …]   only writes the networks for the engines, to build/networks
    python benchmarks/networks.py [NAME …]             measures them
    python benchmarks/networks.py --check [NAME …]     only: do they run without PyTorch, and how exact are they?

timm and transformers must be installed. Weights are random, and each layer is pruned by magnitude to 90 %. Preparing
them before spares time, as writing ONNX takes longer than the measurement. A run that is ended goes on where it was, if
the code and the options are the same. NAME may be any network of timm, or one of `zoo.TRANSFORMERS`.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import runtime
import zoo
from common import RESULTS, ROOT, append, conditions
from fggp.lab.base.errors import UsageError
from fggp.lab.bench.engines import Job, engines, measure
from fggp.lab.bench.networks import magnitude_pruned
from fggp.ship.graph.capture import CaptureError
from fggp.ship.graph.inplace import MutationError
from fggp.ship.graph.simplify import simplify
from fggp.ship.network.describe import captured
from fggp.ship.runtime import library
from fggp.ship.runtime.engine import Engine

RECORDS = RESULTS / "networks.ndjson"
UNFINISHED = RESULTS / "networks-unfinished.json"
FILES = ROOT / "build" / "networks"
SPARSITY = 0.9
ENGINES = ("onnxruntime", "openvino", "fggp")
BLAMED = 3
"""Kinds of steps that a record names, those that take longest."""


def prepare(name: str) -> None:
    """Write a network, its input and its output in float64."""
    folder = FILES / name
    if folder.exists():
        return
    dense, x = zoo.create(name)
    model = magnitude_pruned(dense, SPARSITY)
    partial = folder.with_name(f"{name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    np.savez(partial / "inputs.npz", x=x.numpy())
    np.save(partial / "exact.npy", exact(model, x).numpy())
    for kind in ("torch", "onnx"):
        try:
            runtime.write(copy.deepcopy(model), [x], kind, partial)
        except UsageError as error:  # then the dense engines have no times
            print(f"{name}: {error}")
    partial.rename(folder)


@torch.no_grad()
def exact(model: nn.Module, x: Tensor) -> Tensor:
    """The output in float64."""
    return copy.deepcopy(model).double()(x.double() if x.is_floating_point() else x)


def deviation(output: Any, expected: Any) -> float:
    """The greatest distance of a number of the output from the exact one, relative to the greatest exact one."""
    distance = np.abs(np.asarray(output, np.float64) - np.asarray(expected)).max()
    return float(distance / np.abs(np.asarray(expected)).max())


def native(model: nn.Module, x: Tensor) -> tuple[Engine | None, dict[str, Any]]:
    """A network in fggp, and what of it is left to PyTorch.

    Returns:
        The engine, None if it cannot be captured; and for the record: ``left``, the operators that PyTorch runs, with
        their number; ``slowest``, the kinds of steps that take longest, with their milliseconds; ``ms_of_steps``.
    """
    try:
        engine = Engine(simplify(captured(model, (x,), {}), copy_constants=False), library.load())
    except (CaptureError, MutationError) as error:
        return None, {"left": {f"all: {error}"[:300]: 1}}
    steps = engine.profile([x])
    left = Counter(name for step in steps if step.runs == "PyTorch" for name in step.operators)
    kinds: Counter[str] = Counter()
    for step in steps:
        operators = [
            engine.products[n].operation if n in engine.products else o
            for n, o in zip(step.names, step.operators, strict=True)
        ]
        kinds[f"{step.runs}: {' + '.join(dict.fromkeys(operators)) or 'layout'}"] += step.milliseconds  # type: ignore[assignment]
    slowest = {kind: round(ms, 3) for kind, ms in kinds.most_common(BLAMED)}
    return engine, {"left": dict(left), "slowest": slowest, "ms_of_steps": round(sum(kinds.values()), 3)}


def check(names: list[str]) -> None:
    """Print whether networks run without PyTorch, and how far PyTorch's output and ours are from float64's."""
    for name in names:
        dense, x = zoo.create(name)
        model = magnitude_pruned(dense, SPARSITY)
        expected = exact(model, x)
        with torch.no_grad():
            theirs = deviation(model(x), expected)
        engine, about = native(model, x)
        ours = deviation(engine.run([x])[0], expected) if engine is not None else None
        print(json.dumps({"model": name, "deviation": ours, "pytorch_deviation": theirs, **about}), flush=True)


def run(names: list[str], options: argparse.Namespace) -> None:
    """Measure networks, and append the record with all that were measured since the last one."""
    known = engines()
    torch.set_num_threads(options.threads)
    # The engines' processes read networks whose class is in `zoo`.
    paths = (str(Path(zoo.__file__).parent), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    record: dict[str, Any] = {
        "benchmark": "networks",
        "command": f"python benchmarks/networks.py --threads {options.threads} --rounds {options.rounds} "
        f"--seconds {options.seconds}",
        **conditions(),
        "threads": options.threads,
        "rounds": options.rounds,
        "turn_seconds": options.seconds,
        "measured": [],
    }
    lines = record["measured"] = runtime.measured_before(record, UNFINISHED)
    before = {each["model"] for each in lines}
    for name in names:
        if name in before:
            continue
        prepare(name)
        folder = FILES / name
        jobs = [
            Job(known[engine], folder / f"model.{known[engine].file}", folder / "inputs.npz")
            for engine in ENGINES
            if (folder / f"model.{known[engine].file}").exists()
        ]
        measured = measure(jobs, options.threads, options.rounds, options.seconds)
        # This process wrote the file, so its pickle is safe to load.
        model = torch.load(folder / "model.torch", weights_only=False)
        expected = np.load(folder / "exact.npy")
        with np.load(folder / "inputs.npz") as arrays:
            x = torch.from_numpy(arrays["x"])
        _, about = native(model, x)
        for m in measured:
            line = runtime.line(m, name, SPARSITY, 1, torch.from_numpy(expected), model)
            if m.output is not None:
                line["deviation"] = deviation(m.output, expected)
            lines.append({**line, **(about if m.job.engine.name == "fggp" else {})})
        UNFINISHED.write_text(json.dumps(record))
        print(
            name,
            {m.job.engine.name: round(m.median * 1e3, 2) if not m.error else m.error for m in measured},
            about,
            flush=True,
        )
    order = [*zoo.TIMM, *zoo.TRANSFORMERS]
    lines.sort(key=lambda each: order.index(each["model"]) if each["model"] in order else len(order))
    append(record, RECORDS)
    UNFINISHED.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="by default all of `zoo`")
    parser.add_argument("--prepare", action="store_true", help="write the networks for the engines")
    parser.add_argument("--check", action="store_true", help="measure nothing")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.3, help="of a turn")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="timm|transformers|torch")
    names = options.names or [*zoo.TIMM, *zoo.TRANSFORMERS]
    if options.prepare:
        for name in names:
            prepare(name)
    elif options.check:
        check(names)
    else:
        run(names, options)


if __name__ == "__main__":
    main()
