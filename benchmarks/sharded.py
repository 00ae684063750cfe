"""One mask update of sharded weights (FSDP2): its time, and the bytes that each process exchanges.

    python benchmarks/sharded.py                    prints a table, appends the raw record to results/benchmarks/

Processes on this machine communicate through gloo. They share its cores, so times show what an update costs, not how it
scales. Bytes are those of the collectives' buffers: the input of an all-reduce, and the output of an all-gather.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import fggp
from fggp.lab.base.machine import device_name
from fggp.lab.training import models

RESULTS = Path(__file__).parent.parent / "results" / "benchmarks" / "sharded.ndjson"


class Traffic:
    """Counts the calls and bytes of collectives."""

    def __init__(self) -> None:
        self.bytes = self.calls = 0
        for name in ("all_reduce", "all_gather_into_tensor"):
            setattr(dist, name, self.counted(getattr(dist, name)))

    def counted(self, collective):
        def call(tensor, *args, **kwargs):
            self.bytes += tensor.nbytes
            self.calls += 1
            return collective(tensor, *args, **kwargs)

        return call


def work(rank: int, processes: int, store: str, model_name: str, scope: str, rounds: int, out: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=processes)
    torch.manual_seed(0)
    model = models.create(model_name, classes=10)
    for layer in model.modules():
        if isinstance(layer, (torch.nn.Conv2d, torch.nn.Linear)):
            fully_shard(layer)
    fully_shard(model)
    torch.manual_seed(rank)
    for p in model.parameters():
        p.grad = DTensor.from_local(torch.randn_like(p.to_local()) * 1e-3, p.device_mesh, p.placements,
                                    shape=p.shape, stride=p.stride())  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    traffic = Traffic()
    found = []
    for _ in range(rounds):
        pruner = fggp.Pruner(model, optimizer, 0.2, begin=1, end=2, every=1, scope=scope)
        optimizer.step()  # the first step also looks at the weights that it was given
        traffic.bytes = traffic.calls = 0
        dist.barrier()
        start = time.perf_counter()
        optimizer.step()
        found.append((time.perf_counter() - start, traffic.bytes, traffic.calls))
        layers = len(pruner.masks)
        pruner.remove()
    if rank == 0:
        seconds, sent, calls = zip(*found, strict=True)
        record = {
            "processes": processes,
            "scope": scope,
            "layers": layers,
            "seconds": seconds,
            "bytes": max(sent),
            "collectives": max(calls),
        }
        Path(out).write_text(json.dumps(record))
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["vgg19", "resnet50"], default="resnet50")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    measured = []
    print(f"one FGGP update of {args.model}, {args.rounds} rounds, one thread a process\n")
    print(f"{'processes':>9}  {'scope':8}{'median':>10}{'bytes a process':>18}{'collectives':>13}")
    for processes in args.processes:
        for scope in ("global", "layer"):
            with tempfile.TemporaryDirectory() as folder:
                out = os.path.join(folder, "out.json")
                given = (processes, os.path.join(folder, "store"), args.model, scope, args.rounds, out)
                mp.spawn(work, given, nprocs=processes)
                measured.append(json.loads(Path(out).read_text()))
            m = measured[-1]
            median = f"{statistics.median(m['seconds']) * 1e3:7.0f} ms"
            print(f"{processes:>9}  {scope:8}{median:>10}{m['bytes']:>18,}{m['collectives']:>13}", flush=True)
    record = {
        "benchmark": "sharded",
        "command": " ".join(["python", "benchmarks/sharded.py", *sys.argv[1:]]),
        "model": args.model,
        "device": device_name(torch.device("cpu")),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "fggp": fggp.__version__,
        "measured": measured,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")
    print(f"\nappended to {RESULTS}")


if __name__ == "__main__":
    main()
