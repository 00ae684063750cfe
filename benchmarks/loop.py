"""The lab's training loop compared with a bare PyTorch loop of the same network and precision.

    python benchmarks/loop.py                     prints the table, appends the raw record to results/benchmarks/
    python benchmarks/loop.py --device cuda --model vgg19 --steps 100

The bare loop gets normalised batches that were made before the clock starts. The lab's loop makes, augments and
normalises its batches, counts correct predictions, follows the learning-rate schedule and, in the second row, prunes.
Both train on random 32×32 images, in turn, `--steps` steps a round; figures are medians over the rounds. On a GPU the
lab captures its steps in CUDA graphs and the bare loop does not; the row of the lab's eager steps shows the difference.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from common import RESULTS, append, conditions
from fggp.lab.training import models
from fggp.lab.training.data import Augmentation, ImageData, Split
from fggp.lab.training.settings import ResolvedSettings, TrainSettings
from fggp.lab.training.step import EagerStep
from fggp.lab.training.trainer import Trainer

RECORDS = RESULTS / "loop.ndjson"


def random_data(images: int) -> ImageData:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (images, 3, 32, 32), generator=generator, dtype=torch.uint8)
    split = Split(pixels, torch.randint(10, (images,), generator=generator))
    return ImageData("random", tuple("0123456789"), split, None, split, Augmentation(shift=4, flip=True))


class BareLoop:
    """Forward, backward, step, on batches that are ready."""

    def __init__(self, settings: ResolvedSettings, steps: int) -> None:
        self.settings, self.device = settings, torch.device(settings.device)
        torch.manual_seed(0)
        model = models.create(settings.model, classes=10)
        self.model = model.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=settings.weight_decay
        )
        self.batches = [self.batch() for _ in range(steps)]

    def batch(self) -> tuple[Tensor, Tensor]:
        images = torch.randn(self.settings.batch_size, 3, 32, 32, device=self.device)
        labels = torch.randint(10, (self.settings.batch_size,), device=self.device)
        return images.contiguous(memory_format=torch.channels_last), labels

    def run(self) -> None:
        for images, labels in self.batches:
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.precision == "bf16"):
                loss = F.cross_entropy(self.model(images), labels)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
        loss.item()


class LabLoop:
    """An epoch of the lab's trainer."""

    def __init__(self, settings: ResolvedSettings, steps: int, eager: bool = False) -> None:
        self.trainer = Trainer(settings, random_data(steps * settings.batch_size))
        if eager:
            self.trainer.compute = EagerStep(self.trainer.model, self.trainer.loss_and_hits)
        self.epoch = 0

    def run(self) -> None:
        self.trainer.train_epoch(self.epoch, lambda tally: None)
        self.epoch += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()

    def settings(method: str) -> ResolvedSettings:
        return TrainSettings(method=method, model=args.model, epochs=args.rounds + 1, device=args.device).resolve()

    loops: dict[str, BareLoop | LabLoop] = {
        "bare": BareLoop(settings("dense"), args.steps),
        "lab, dense": LabLoop(settings("dense"), args.steps),
        "lab, FGGP to 95 %": LabLoop(settings("fggp"), args.steps),
    }
    if settings("dense").device != "cpu":
        loops["lab, dense, eager"] = LabLoop(settings("dense"), args.steps, eager=True)
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(args.rounds + 1):
        for name, loop in loops.items():
            start = time.perf_counter()
            loop.run()
            speeds[name].append(args.steps * settings("dense").batch_size / (time.perf_counter() - start))
    speeds = {name: s[1:] for name, s in speeds.items()}  # the first round warms up

    bare = statistics.median(speeds["bare"])
    dense = settings("dense")
    where = f"{dense.precision}, {dense.device}, {torch.get_num_threads()} threads"
    print(f"{args.model}, batch {dense.batch_size}, {where}\n")
    print(f"{'':20}{'images/s, median':>18}{'best':>10}{'of bare':>10}")
    for name, s in speeds.items():
        print(f"{name:20}{statistics.median(s):18,.0f}{max(s):10,.0f}{statistics.median(s) / bare:10.1%}")
    record = {
        "benchmark": "loop",
        "model": args.model,
        "batch_size": dense.batch_size,
        "precision": dense.precision,
        "steps": args.steps,
        "rounds": args.rounds,
        **conditions(dense.device),
        "images_per_second": speeds,
    }
    append(record, RECORDS)
    print(f"\nappended to {RECORDS}")


if __name__ == "__main__":
    main()
