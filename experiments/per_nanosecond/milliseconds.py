"""Time the networks of a grid in the sparse runtime, in turns.

The record is appended to milliseconds.ndjson in the grid's folder.

    python experiments/per_nanosecond/milliseconds.py fggp-grids/per-nanosecond
"""

import argparse
import json
from datetime import datetime, timezone
from pathlib import Path

import torch

import fggp
from fggp.lab.base.machine import device_name, source_commit
from fggp.lab.bench.worker import time_runs
from fggp.lab.export.trained import load_network

BATCHES = (1, 32)
TURN_SECONDS = 0.04


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path, help="folder of fggp grid")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    records = [json.loads(line) for line in (options.grid / "records.jsonl").read_text().splitlines()]
    timed = []
    for record in records:
        network = load_network(options.grid / "runs" / record["run"])
        for batch in BATCHES:
            images = network.images(batch)
            entry = {key: record[key] for key in ("run", "method", "seed")} | {"batch": batch, "turns_ms": []}
            timed.append((entry, fggp.compile(network.model, images), images))
    with torch.inference_mode():
        for _ in range(options.turns):
            for entry, compiled, images in timed:
                seconds = time_runs(lambda run=compiled, x=images: run(x), TURN_SECONDS)["seconds"]
                entry["turns_ms"].append(round(1e3 * seconds, 5))
    line = {
        "device": device_name(torch.device("cpu")),
        "threads": options.threads,
        "torch": torch.__version__,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": source_commit(),
        "measured": [entry for entry, _, _ in timed],
    }
    with (options.grid / "milliseconds.ndjson").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
