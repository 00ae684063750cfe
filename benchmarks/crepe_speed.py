"""CREPE as `examples/crepe` has pruned it, beside the dense network on other engines, one window of sound at a time.

    python examples/crepe/prune_crepe.py --size full --sparsity 0.95 --out build/crepe
    python benchmarks/crepe_speed.py build/crepe

Engines run in processes of their own, in turns (`fggp.lab.bench.engines`). The record takes the accuracy and the sizes
from the example's own record.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import fggp
from common import ROOT, append, conditions
from fggp.lab.bench.engines import Job, engines, measure
from fggp.lab.export.onnx_file import write_onnx

EXAMPLE = ROOT / "examples" / "crepe"
RECORDS = ROOT / "results" / "crepe" / "crepe.ndjson"
ENGINES = ("pytorch", "torch.compile", "onnxruntime", "fggp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="what prune_crepe.py was given as --out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    given = parser.parse_args()
    # This process and those of the engines read the network's class from the example.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(EXAMPLE), *filter(None, [os.environ.get("PYTHONPATH")])])
    sys.path.insert(0, str(EXAMPLE))
    from crepe import Crepe, tones

    run = json.loads((given.folder / "record.json").read_text())
    size = run["model"].split()[1]
    dense, pruned = Crepe(size).eval(), Crepe(size).eval()
    dense.load_state_dict(torch.load(given.folder / "dense.pt", weights_only=True))
    fggp.load(given.folder / "small.safetensors", pruned)
    window, _ = tones(1, torch.Generator().manual_seed(2))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        np.savez(folder / "inputs.npz", x=window.numpy())
        torch.save(dense, folder / "dense.torch")
        torch.save(pruned, folder / "pruned.torch")
        write_onnx(dense, {"x": window}, folder / "dense.onnx")
        known = engines()
        jobs = [
            Job(
                known[name],
                folder / ("pruned.torch" if name == "fggp" else f"dense.{known[name].file}"),
                folder / "inputs.npz",
            )
            for name in ENGINES
        ]
        measured = measure(jobs, given.threads, given.rounds, given.seconds)
    for m in measured:
        if m.error:
            raise SystemExit(f"{m.job.engine.label}: {m.error}")
    record = {
        "benchmark": "crepe",
        "command": f"python benchmarks/crepe_speed.py FOLDER --threads {given.threads} --rounds {given.rounds} "
        f"--seconds {given.seconds}",
        **conditions(),
        "threads": given.threads,
        "run": run,
        "measured": [
            {
                "engine": m.job.engine.name,
                "version": m.version,
                "ms": round(1e3 * m.median, 4),
                "turns_ms": [round(1e3 * s, 4) for s in m.seconds],
                "runs": m.runs,
            }
            for m in measured
        ],
    }
    append(record, RECORDS)
    for m in measured:
        print(f"{m.job.engine.label:14} {1e3 * m.median:.3g} ms")


if __name__ == "__main__":
    main()
