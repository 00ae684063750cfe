"""The third part: as many runs of experiments/gpu.toml as there is time for, in its order."""

from __future__ import annotations

import math
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from day import ROOT, Day, planned
from rich.console import Console
from worker import Worker

from fggp.lab.grid.folder import GridFolder

FINISHED = ROOT / "results" / "gpu-study"
"""What other days have finished."""
FIRST = 10
"""The runs that are to finish: three seeds at 98 %, and a dense one."""
OVERHEAD = 1.15
"""What a run takes, by what its training steps take."""


def choose(speeds: dict[int, float], seconds: float, images: int, lengths: tuple[int, ...]) -> tuple[int, int]:
    """Choose how long runs are, and how many train at once.

    Args:
        speeds: images a second of all together, by the number of runs at once.
        seconds: until the end.
        images: that an epoch trains on.
        lengths: numbers of epochs, the best first.

    Returns:
        The first length with which the `FIRST` runs finish in time, else the last; the number that finishes them first.
    """
    epoch_seconds = {jobs: OVERHEAD * math.ceil(FIRST / jobs) * jobs * images / speed for jobs, speed in speeds.items()}
    jobs = min(epoch_seconds, key=lambda jobs: epoch_seconds[jobs])
    return next((n for n in lengths if n * epoch_seconds[jobs] <= seconds), lengths[-1]), jobs


def study(day: Day, images: int, finished: Path) -> None:
    """Train the missing runs until the day's end, and write every record at once.

    Args:
        day: at whose end the runs that are not finished are given up.
        images: that an epoch trains on.
        finished: folder with grid.json and records.jsonl of other days, if there were any; their runs' length stays.
    """
    folder = GridFolder(Path(day.out) / "gpu-study")
    folder.path.mkdir(exist_ok=True)
    for file in finished.glob("*.json*"):
        shutil.copy(file, folder.path)
    folder.read_records(Console())
    lengths = tuple({record["settings"]["epochs"] for record in folder.records.values()}) or day.lengths
    speeds = {value["jobs"]: value["images/s"] for value in day.noted("captured")} or {2: 1.0}
    epochs, jobs = choose(speeds, day.until - time.time(), images, lengths)
    named = folder.name_runs(planned(day, epochs))
    folder.adopt(named)
    day.note("study", "begun", {"epochs": epochs, "jobs": jobs, "runs": len(named), "finished": len(folder.records)})
    waiting = iter([(number, name) for number, name in enumerate(named) if name not in folder.records])

    def work(_: int) -> None:
        worker, took = Worker(day), 0.0
        for number, name in waiting:
            start = time.time()
            if start + took > day.until:  # it would only slow down the others
                break
            worker.give("train", run=number, epochs=epochs, name=name)
            answer = worker.answer()
            if "record" in answer:
                folder.append(answer["record"])
                answer, took = {"test accuracy": answer["record"]["test_accuracy"]}, time.time() - start
            day.note("study", name, answer)
        worker.close()

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(work, range(jobs)))


def main() -> None:
    import images

    day = Day.given()
    data = images.load(Path(day.packed) / "images.pt", planned(day, 1)[0])
    study(day, len(data.train), Path(day.packed) / "none" if day.rehearse else FINISHED)


if __name__ == "__main__":
    main()
