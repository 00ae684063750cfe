"""Checks and timings on the GPU, about five minutes; results are written as they are measured.

    python experiments/gpu_day/measure.py              the GPU tests, a CPU's picks, an update's time, images a second
    python experiments/gpu_day/measure.py --only check or --only time
    python experiments/gpu_day/measure.py --rehearse   on a CPU, with tiny networks

Run it in the repository's root, after `pack.py` has filled data/gpu/ on another machine.
"""

from __future__ import annotations

import hashlib
import sys
from typing import Any

from common import Day, begin, parser_of, run
from loop import Loop, time_all
from update import pruned_network, update_times, zeroing_times

CHECK_SECONDS = 120
TIME_SECONDS = 150
TESTS = (
    "tests/selection/test_one_gpu.py",
    "tests/lab/training/test_step.py",
    "tests/masks/test_zeroing.py",
    "tests/lab/training/test_batches.py",
)
"""Tests of the code that has a form of its own on a GPU."""


def check(day: Day) -> None:
    """Compare selections and training with a CPU's, and time an update."""
    day.measure("check", "pruned weights are those of a CPU", lambda: same_picks(day))
    day.measure("check", "captured and eager", lambda: captured_and_eager(day))
    day.measure("check", "update, ms", lambda: update_times(day.rehearse))
    day.measure("check", "zeroing, ms", lambda: zeroing_times(day.rehearse))
    day.measure("check", "tests", lambda: tests(day, CHECK_SECONDS))


def tests(day: Day, seconds: float) -> Any:
    """Run the tests, on the GPU where they ask for one."""
    files = TESTS[-1:] if day.rehearse else TESTS
    log = day.out / "pytest.log"
    with log.open("w") as file:
        code = run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files], file, seconds)
    return {"exit code": code, "last line": log.read_text().strip().rpartition("\n")[2]}


def same_picks(day: Day) -> Any:
    """Make an update on both devices from the same weights and gradients; compare digests of the masks."""
    found: dict[str, Any] = {}
    for ties in (False, True):
        digests = []
        for device in ("cpu", day.device):
            _, optimizer, pruner = pruned_network(day.rehearse, device, ties)
            optimizer.param_groups[0]["lr"] = 0.0  # the devices round a step differently
            while pruner.sparsity == 0:
                optimizer.step()
            digest = hashlib.sha256()
            for mask in pruner.masks.values():
                digest.update(mask.cpu().contiguous().numpy().tobytes())
            digests.append(digest.hexdigest())
        found["with ties" if ties else "without ties"] = {"same": digests[0] == digests[1], "digest": digests[0]}
    return found


def captured_and_eager(day: Day) -> Any:
    """Train two epochs each way from the same start; return how far apart losses and weights are."""
    import torch

    found = {}
    torch.backends.cudnn.deterministic = True
    for model in ["digits-cnn"] if day.rehearse else ["resnet20", "vgg19"]:
        ends = []
        for step in ("eager", "captured", "eager again"):
            loop = Loop(day.rehearse, model, "fggp", step.split()[0], steps=10)
            losses = [loop.run() for _ in range(2)]
            weights = torch.cat([p.detach().flatten().double() for p in loop.trainer.model.parameters()])
            ends.append((losses, weights, loop.trainer.compute.name))
        found[model] = {
            "losses": [end[0] for end in ends],
            "steps": [end[2] for end in ends],
            "largest difference of a weight": float((ends[0][1] - ends[1][1]).abs().max()),
            "between two eager runs": float((ends[0][1] - ends[2][1]).abs().max()),
        }
    torch.backends.cudnn.deterministic = False
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--only", choices=("check", "time"), help="one of the two")
    options = parser.parse_args()
    day = begin(options.rehearse)
    if options.only != "time":
        with day.part("check"):
            check(day)
    if options.only != "check":
        with day.part("time"):
            time_all(day, 400 if options.only else TIME_SECONDS)


if __name__ == "__main__":
    main()
