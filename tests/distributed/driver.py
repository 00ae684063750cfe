"""Runs scenarios in real processes: `python driver.py FOLDER NAME:SIZE…` writes errors to FOLDER/NAME.txt.

Each scenario's processes are forked from this one (importing PyTorch is what takes the time) and talk through gloo.
An empty file says that all went well.
"""

import os
import signal
import sys
import time
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import scenarios_gradients
import scenarios_optimizers
import scenarios_selection
import scenarios_state
import torch
import torch.distributed as dist

import fggp.pruner  # noqa: F401 (here, as all that scenarios use: forked processes need not import it again)

SCENARIOS = {
    name: scenario
    for module in (scenarios_gradients, scenarios_optimizers, scenarios_selection, scenarios_state)
    for name, scenario in vars(module).items()
}

TIMEOUT = 120.0


def in_process(name, rank, size, folder):
    warnings.simplefilter("error")
    # PyTorch warns about gloo and forks.
    warnings.filterwarnings("ignore", module=r"torch\.")
    store = folder / f"{name}.store"
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    SCENARIOS[name](folder)
    dist.barrier()
    dist.destroy_process_group()


def run(name, size, folder):
    children = {}
    for rank in range(size):
        pid = os.fork()
        if pid == 0:
            status = 0
            try:
                in_process(name, rank, size, folder)
            except BaseException:
                (folder / f"{name}.{rank}.txt").write_text(f"process {rank} of {size}\n{traceback.format_exc()}")
                status = 1
            os._exit(status)
        children[pid] = rank
    failed, end = [], time.monotonic() + TIMEOUT
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            rank = children.pop(pid)
            if status:
                failed.append(rank)
                end = min(end, time.monotonic() + 5)  # the others wait for the failed one
        elif time.monotonic() > end:
            for late, rank in children.items():
                os.kill(late, signal.SIGKILL)
                failed.append(rank)
            end += TIMEOUT
        else:
            time.sleep(0.01)
    said = [path.read_text() for path in sorted(folder.glob(f"{name}.*.txt"))]
    return "\n".join(said) or f"processes {failed} did not end" * bool(failed)


def main():
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for given in sys.argv[2:]:
        name, size = given.split(":")
        (folder / f"{name}.txt").write_text(run(name, int(size), folder))


if __name__ == "__main__":
    main()
