"""The study on the GPU: experiments/gpu.toml, as much of it as there is time for.

    python experiments/gpu_day/study.py --minutes 9    on the GPU machine
    python experiments/gpu_day/study.py --rehearse     on a CPU, with a tiny network

It continues where it stopped. A new machine knows what is finished by records.jsonl and grid.json of $OUT, once they
are copied to results/gpu-study. Unfinished runs continue only while the machine is kept: they are in memory, because a
checkpoint an epoch on the disk would keep the GPU waiting.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import time
from pathlib import Path

from common import IN_MEMORY, ROOT, Day, begin, parser_of, run

KEPT = ROOT / "results" / "gpu-study"
REHEARSAL = (
    *("--data", "digits", "--model", "digits-cnn", "--epochs", "2"),
    *("--device", "cpu", "--sparsity", "0.9"),
)


def study(day: Day, minutes: float, jobs: int) -> None:
    """Run the grid for this long, and copy its records to the results whatever happens."""
    folder = grid_folder(day)
    if minutes < 0.5:
        day.note("study", "error", f"{minutes:.1f} minutes are left: too few to begin")
        return
    main = "import sys; from fggp.lab.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "grid", "experiments/gpu.toml", "--jobs", str(jobs)]
    command += ["--time-limit", f"{round(60 * minutes)}s", "--out", str(folder), *(REHEARSAL if day.rehearse else ())]
    day.out.mkdir(parents=True, exist_ok=True)
    if not day.rehearse and not folder.exists():  # a new machine: the repository has what others finished
        folder.mkdir(parents=True)
        for file in KEPT.glob("*.json*"):
            shutil.copy(file, folder)
    try:
        with (day.out / "study.log").open("w") as log:
            code = run(command, log, 60 * minutes + 20)
        day.note("study", "exit code", code)  # 1 is a grid that is not finished yet
    finally:
        copy_results(day, folder)


def grid_folder(day: Day) -> Path:
    """Return the folder of the study's runs."""
    if day.rehearse:
        return ROOT / "fggp-grids" / "gpu-rehearsal"
    return IN_MEMORY / "fggp-gpu" if IN_MEMORY.is_dir() else ROOT / "fggp-grids" / "gpu"


def copy_results(day: Day, folder: Path) -> None:
    """Copy records, settings and metrics, which are small and make up a study; no weights."""
    if (folder / "records.jsonl").exists():
        shutil.copy(folder / "grid.json", day.out)
        shutil.copy(folder / "records.jsonl", day.out)
        lines = (folder / "records.jsonl").read_text().splitlines()
        day.note("study", "runs finished", len(lines))
    with tarfile.open(day.out / "study.tar.gz", "w:gz") as tar:
        for file in sorted(folder.rglob("*")):
            if file.suffix in (".json", ".jsonl"):
                tar.add(file, Path("gpu") / file.relative_to(folder))
    epochs = {
        file.parent.name: file.read_text().count('"kind": "epoch"') for file in folder.glob("runs/*/metrics.jsonl")
    }
    day.note("study", "epochs done", epochs)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--minutes", type=float, default=9.0, help="time for all of it")
    parser.add_argument("--jobs", type=int, default=4, help="runs at once")
    options = parser.parse_args()
    start = time.monotonic()
    day = begin(options.rehearse)
    with day.part("study"):
        study(day, options.minutes - (time.monotonic() - start + 25) / 60, options.jobs)


if __name__ == "__main__":
    main()
