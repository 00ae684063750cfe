"""Timings of the training loop on random images; `python experiments/gpu_day/measure.py --only time` runs them."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import IN_MEMORY, ROOT, Day, use_packed_packages


class Loop:
    """A trainer on random images, an epoch of a given number of steps at a time."""

    def __init__(self, rehearse: bool, model: str, method: str, step: str, steps: int) -> None:
        import torch

        from fggp.lab.training.data import Augmentation, ImageData, Split
        from fggp.lab.training.settings import TrainSettings
        from fggp.lab.training.step import EagerStep
        from fggp.lab.training.trainer import Trainer

        side, device = (8, "cpu") if rehearse else (32, "cuda")
        settings = TrainSettings(model=model, method=method, epochs=160, device=device).resolve()
        generator = torch.Generator().manual_seed(0)
        count = steps * settings.batch_size
        pixels = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
        split = Split(pixels, torch.randint(10, (count,), generator=generator))
        data = ImageData("random", tuple("0123456789"), split, None, split, Augmentation(shift=4, flip=True))
        self.trainer = Trainer(settings, data)
        if step == "eager":
            self.trainer.compute = EagerStep(self.trainer.model, self.trainer.loss_and_hits)
        self.epoch = 0
        self.images_per_second = 0.0

    def run(self) -> float:
        """Train an epoch and return its loss."""
        tally = self.trainer.train_epoch(self.epoch, lambda tally: None)
        self.epoch += 1
        self.images_per_second = tally.images / tally.seconds
        return tally.loss


def time_all(day: Day, seconds: float) -> None:
    """Measure images a second: captured steps first, which the study uses."""
    deadline = time.monotonic() + seconds
    models = ["digits-cnn"] if day.rehearse else ["vgg19", "resnet50"]
    for step in ("captured", "eager"):
        for model in models:
            for method in ("dense", "fggp"):
                if time.monotonic() < deadline:
                    day.measure("time", f"{model}, {method}, {step}", lambda a=(model, method, step): speed(day, *a))
    day.measure("time", f"{models[0]}, a checkpoint, s", lambda: checkpoint_seconds(day, models[0]))
    for jobs in (1, 2, 4):
        if deadline - time.monotonic() > 45 or day.rehearse:
            day.measure("time", f"{models[0]}, fggp, {jobs} jobs", lambda n=jobs: side_by_side(day, models[0], n))
    for model in models:
        if time.monotonic() < deadline:
            day.measure("time", f"{model}, dense, captured, cudnn.benchmark", lambda m=model: benchmarked(day, m))


def speed(day: Day, model: str, method: str, step: str) -> Any:
    """Return the median images a second of three epochs, after one to warm up."""
    loop = Loop(day.rehearse, model, method, step, steps=2 if day.rehearse else 100)
    loop.run()
    speeds = []
    for _ in range(3):
        loop.run()
        speeds.append(loop.images_per_second)
    median = statistics.median(speeds)
    return {
        "images/s": round(median),
        "ms a step": round(1000 * loop.trainer.settings.batch_size / median, 3),
        "step": loop.trainer.compute.name,
    }


def benchmarked(day: Day, model: str) -> Any:
    """Return the speed with algorithms that cuDNN chooses by trying them."""
    import torch

    torch.backends.cudnn.benchmark = True
    try:
        return speed(day, model, "dense", "captured")
    finally:
        torch.backends.cudnn.benchmark = False


def checkpoint_seconds(day: Day, model: str) -> Any:
    """Time a checkpoint, which is written after every epoch: on the disk and in memory."""
    from fggp.lab.training.run_folder import RunFolder

    loop = Loop(day.rehearse, model, "fggp", "captured", steps=2)
    loop.run()
    found = {}
    for name, place in (("disk", ROOT), ("memory", IN_MEMORY)):
        if place.is_dir():
            with tempfile.TemporaryDirectory(dir=place) as path:
                folder = RunFolder(Path(path))
                folder.metrics_file.touch()
                start = time.perf_counter()
                folder.save_checkpoint({"trainer": loop.trainer.state_dict()})
                found[name] = round(time.perf_counter() - start, 3)
                found["MiB"] = round(folder.checkpoint_file.stat().st_size / 2**20)
    return found


def side_by_side(day: Day, model: str, jobs: int) -> Any:
    """Return the images a second of all of some processes that train at the same time."""
    begin, length = time.time() + (8 if day.rehearse else 18), 2 if day.rehearse else 8
    command = [sys.executable, __file__, model, str(begin), str(length), *(["--rehearse"] if day.rehearse else [])]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(jobs)]
    lines = [process.communicate(timeout=90)[0].strip().rpartition("\n")[2] for process in processes]
    speeds = [json.loads(line) for line in lines]
    return {"images/s, all together": round(sum(s["images/s"] for s in speeds)), "each": speeds}


def train_at(model: str, begin: float, length: float, rehearse: bool) -> None:
    """Be one process of `side_by_side`: warm up, wait for the common start, train, and print a line."""
    loop = Loop(rehearse, model, "fggp", "captured", steps=2 if rehearse else 25)
    loop.run()
    late = max(0.0, time.time() - begin)
    time.sleep(max(0.0, begin - time.time()))
    images, start = 0, time.perf_counter()
    while time.time() < begin + late + length:
        loop.run()
        images += len(loop.trainer.data.train)
    rate = images / (time.perf_counter() - start)
    print(json.dumps({"images/s": round(rate), "late": round(late, 1), "step": loop.trainer.compute.name}))


if __name__ == "__main__":
    use_packed_packages()
    train_at(sys.argv[1], float(sys.argv[2]), float(sys.argv[3]), "--rehearse" in sys.argv)
