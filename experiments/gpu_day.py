"""All that is to be found out on a GPU that is lent for minutes and has no network, in one command.

    python experiments/gpu_day.py pack --source DIR    here: DIR (train/ and test/, a folder per class) into data/gpu/
    python experiments/gpu_day.py all --minutes 9      there: check, time and study, one after the other
    python experiments/gpu_day.py check                there: the GPU tests; the picks of a CPU; an update's time
    python experiments/gpu_day.py time                 there: images a second, eager and captured, one job and four
    python experiments/gpu_day.py study --minutes 9    there: experiments/gpu.toml, as much of it as there is time for

Run it in the repository's root. data/gpu/ is to be brought along; it is all that is needed beside the repository and an
environment with PyTorch. Results are JSON in the folder $OUT (runs/gpu-day if there is none), written as they come.
The study goes on where it stopped. Another machine knows what is finished by records.jsonl and grid.json of $OUT, once
they are copied to results/gpu-study. What was under way goes on while the machine is kept: the runs are in memory where
the system has a disk there, because a checkpoint an epoch would keep a GPU waiting. `--rehearse` does it all on a CPU,
tiny.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKED = ROOT / "data" / "gpu"
IMAGES = ROOT / "data" / "cifar10-jpeg"
SITE = PACKED / "site"
KEPT = ROOT / "results" / "gpu-study"
IN_MEMORY = Path("/dev/shm")
# Small, pure Python, and in few environments.
WHEELS = ("tyro", "docstring-parser", "typeguard")
NEEDED = ("torch", "torchvision", "numpy", "safetensors", "PIL", "rich", "filelock", "scipy", "matplotlib", "sklearn")
ALSO_NEEDED = ("tyro", "pytest", "hypothesis")
LIMIT = 64 << 20
"""What may be brought along, in bytes."""


@dataclass
class Day:
    """Where results go and how much is done."""

    out: Path
    rehearse: bool
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def note(self, part: str, name: str, value: Any) -> None:
        """Write a result down at once: the machine may be taken back at any time."""
        self.results.setdefault(part, {})[name] = value
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{part}.json").write_text(json.dumps(self.results[part], indent=1) + "\n")
        print(f"{part}: {name}: {json.dumps(value)}", flush=True)

    def measure(self, part: str, name: str, measurement: Callable[[], Any]) -> None:
        """Note what a measurement returns, or its error: one that fails must not take the others along."""
        start = time.perf_counter()
        try:
            self.note(part, name, measurement())
        except Exception:
            self.note(part, name, {"error": traceback.format_exc()})
        print(f"    {time.perf_counter() - start:.1f} s", flush=True)


# Before and at the start


def pack(source: Path) -> None:
    """Put the images and the wheels that are missing there into data/gpu/."""
    PACKED.mkdir(parents=True, exist_ok=True)
    # Alike headers make most of such small JPEGs, so they do compress.
    with tarfile.open(PACKED / "images.tar.gz", "w:gz") as tar:
        for part in ("train", "test"):
            tar.add(source / part, part)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(PACKED), *WHEELS], check=True)
    size = sum(file.stat().st_size for file in PACKED.iterdir() if file.is_file())
    print(f"{PACKED.relative_to(ROOT)}: {size / 2**20:.1f} MiB")
    if size > LIMIT:
        raise SystemExit(f"that is more than the {LIMIT >> 20} MiB that can be brought along")


def unpack(day: Day) -> None:
    """Make the packed files usable and say what is missing."""
    if not SITE.exists():
        for wheel in PACKED.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(SITE)
    sys.path[:0] = [str(ROOT / "src"), str(SITE)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])
    if not IMAGES.exists() and (PACKED / "images.tar.gz").exists():
        partial = IMAGES.with_name(IMAGES.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(PACKED / "images.tar.gz") as tar:
            tar.extractall(partial, filter="data")
        partial.rename(IMAGES)
    versions: dict[str, str | None] = {}
    for name in (*NEEDED, *ALSO_NEEDED):
        try:
            versions[name] = str(getattr(importlib.import_module(name), "__version__", "there"))
        except ImportError:
            versions[name] = None
    day.note("machine", "versions", versions)
    missing = [name for name, version in versions.items() if version is None]
    day.note("machine", "missing", missing)
    day.note("machine", "images", IMAGES.exists())
    import torch

    day.note("machine", "device", torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
    day.note("machine", "cpus", os.cpu_count())
    if not day.rehearse and not torch.cuda.is_available():
        raise SystemExit("there is no GPU that PyTorch sees; --rehearse does without")


# Check


def check(day: Day, seconds: float) -> None:
    """Whether it is right on a GPU, and how long an update takes."""
    day.measure("check", "pruned weights are those of a CPU", lambda: same_picks(day))
    day.measure("check", "captured and eager", lambda: captured_and_eager(day))
    day.measure("check", "update, ms", lambda: update_times(day))
    day.measure("check", "zeroing, ms", lambda: zeroing_times(day))
    day.measure("check", "tests", lambda: tests(day, seconds))


def tests(day: Day, seconds: float) -> Any:
    """Run the tests of what does its own thing on a GPU, and on it those that ask for one."""
    files = [
        "tests/selection/test_one_gpu.py",
        "tests/lab/training/test_step.py",
        "tests/masks/test_zeroing.py",
        "tests/lab/training/test_batches.py",
    ]
    if day.rehearse:
        files = files[-1:]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    log = day.out / "pytest.log"
    with log.open("w") as file:
        code = run(command, file, seconds)
    return {"exit code": code, "last line": log.read_text().strip().rpartition("\n")[2]}


def run(command: list[str], log: Any, seconds: float | None) -> int | str:
    """Run a command in the repository; its exit code, or what became of it."""
    try:
        return subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"


def pruned_network(day: Day, device: str, ties: bool) -> tuple[Any, Any, Any]:
    """A network with gradients, its optimizer, and an FGGP pruner that updates in every step."""
    import torch

    import fggp
    from fggp.lab.training import models

    torch.manual_seed(0)
    model = models.create("digits-cnn" if day.rehearse else "resnet50", 10).to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(1)
    for p in model.parameters():
        gradient = torch.randn(p.shape, generator=generator)
        p.grad = torch.empty_like(p).copy_(gradient.relu() if ties else gradient)
        if ties:
            p.data.mul_(64).round_().div_(64)
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True if device == "cuda" else None)
    pruner = fggp.Pruner(model, optimizer, sparsity=0.9, begin=0, end=20, every=1)
    return model, optimizer, pruner


def same_picks(day: Day) -> Any:
    """Selections on both devices, from the same weights and gradients, as digests of the masks."""
    from fggp.scores import gradient, magnitude
    from fggp.selection.chains import TopK, run_chain
    from fggp.weights.layers import flatten

    found: dict[str, Any] = {}
    for ties in (False, True):
        digests = []
        for device in ("cpu", day.device):
            _, _, pruner = pruned_network(day, device, ties)
            layers = flatten(pruner._masks.weights, grads=True)
            total = sum(map(len, layers))
            chain = [TopK(gradient, total // 2), TopK(magnitude, total // 3)]
            marks = run_chain(layers, pruner._masks.flat(layers), chain)
            digest = hashlib.sha256()
            for m in marks:
                digest.update(m.cpu().numpy().tobytes())
            digests.append(digest.hexdigest())
        found["with ties" if ties else "without ties"] = {"same": digests[0] == digests[1], "digest": digests[0]}
    return found


def update_times(day: Day) -> Any:
    """A step with an update, one without, one of a dense network; beside torch.topk of the same weights."""
    import torch

    _, optimizer, pruner = pruned_network(day, day.device, ties=False)
    weights = [w.parameter.detach() for w in pruner._masks.weights]
    joined = torch.cat([w.abs().flatten() for w in weights])
    with_update, more_memory = times(day, optimizer.step, 5), most_memory(day, optimizer.step)
    while pruner.step < 20:
        optimizer.step()
    found: dict[str, Any] = {
        "step with an update": with_update,
        "step without one": times(day, optimizer.step, 15),
        "torch.topk of joined |w|": times(day, lambda: torch.topk(joined, len(joined) // 2, largest=False), 9),
        "torch.sort of joined |w|": times(day, joined.sort, 9),
        "weights": len(joined),
        "bytes a weight an update takes": round(more_memory / len(joined), 2),
    }
    pruner.remove()
    return {**found, "step, dense": times(day, optimizer.step, 15)}


def zeroing_times(day: Day) -> Any:
    """Ways to put masks in force on weights and momenta; the first is what fggp does."""
    import torch

    from fggp.masks.zeroing import zero_pruned

    _, optimizer, pruner = pruned_network(day, day.device, ties=False)
    optimizer.step()
    held = [w.parameter for w in pruner._masks.weights]
    tensors = [t.detach() for p in held for t in (p, optimizer.state[p]["momentum_buffer"])]
    masks = [m for m in pruner.masks.values() for _ in range(2)]

    def fill() -> None:
        for i in range(0, len(tensors), 2):
            pruned = masks[i].logical_not()
            tensors[i].masked_fill_(pruned, 0)
            tensors[i + 1].masked_fill_(pruned, 0)

    def widen() -> None:
        bits = [t.view(torch.int32) for t in tensors]
        wide = [torch.empty_like(b) for b in bits[::2]]
        torch._foreach_copy_(wide, masks[::2])
        torch._foreach_mul_(bits, [w for w in wide for _ in range(2)])

    ways = {"bits times mask": lambda: zero_pruned(tensors, masks), "masked_fill_": fill, "wide masks, foreach": widen}
    found = {
        name: {"until done": times(day, way, 30), "until launched": times(day, way, 30, False)}
        for name, way in ways.items()
    }
    if not day.rehearse:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            zero_pruned(tensors, masks)
        found["bits times mask, captured"] = {"until done": times(day, graph.replay, 30)}
    return found


def captured_and_eager(day: Day) -> Any:
    """Two epochs, each way, from the same start: how far apart the losses and weights are."""
    import torch

    found = {}
    torch.backends.cudnn.deterministic = True
    for model in ["digits-cnn"] if day.rehearse else ["resnet20", "vgg19"]:
        ends = []
        for step in ("eager", "captured", "eager again"):
            loop = Loop(day, model, "fggp", step.split()[0], steps=10)
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


def times(day: Day, action: Callable[[], Any], rounds: int, wait: bool = True) -> float:
    """Median milliseconds of an action, until the device has done it or, without waiting, until it is launched."""
    durations = []
    for _ in range(3 if day.rehearse else rounds):
        synchronise(day)
        start = time.perf_counter()
        action()
        if wait:
            synchronise(day)
        durations.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(durations), 4)


def synchronise(day: Day) -> None:
    import torch

    if not day.rehearse:
        torch.cuda.synchronize()


def most_memory(day: Day, action: Callable[[], Any]) -> int:
    """The most bytes that an action holds beyond what is held before it."""
    import torch

    if day.rehearse:
        return 0
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    action()
    return torch.cuda.max_memory_allocated() - before


# Time


class Loop:
    """A trainer on random images, an epoch of so many steps at a time."""

    def __init__(self, day: Day, model: str, method: str, step: str, steps: int) -> None:
        import torch

        from fggp.lab.training.data import Augmentation, ImageData, Split
        from fggp.lab.training.settings import TrainSettings
        from fggp.lab.training.step import EagerStep
        from fggp.lab.training.trainer import Trainer

        side = 8 if day.rehearse else 32
        settings = TrainSettings(model=model, method=method, epochs=160, device=day.device).resolve()
        generator = torch.Generator().manual_seed(0)
        count = steps * settings.batch_size
        pixels = torch.randint(256, (count, 3, side, side), generator=generator, dtype=torch.uint8)
        split = Split(pixels, torch.randint(10, (count,), generator=generator))
        data = ImageData("random", tuple("0123456789"), split, None, split, Augmentation(shift=4, flip=True))
        self.trainer = Trainer(settings, data)
        if step == "eager":
            self.trainer.compute = EagerStep(self.trainer.model, self.trainer._loss)
        self.epoch = 0
        self.images_per_second = 0.0

    def run(self) -> float:
        """An epoch; its loss."""
        tally = self.trainer.train_epoch(self.epoch, lambda tally: None)
        self.epoch += 1
        self.images_per_second = tally.images / tally.seconds
        return tally.loss


def speed(day: Day, model: str, method: str, step: str) -> Any:
    """Median images a second of an epoch, after one to warm up."""
    loop = Loop(day, model, method, step, steps=2 if day.rehearse else 100)
    loop.run()
    speeds = []
    for _ in range(3):
        loop.run()
        speeds.append(loop.images_per_second)
    middle = statistics.median(speeds)
    return {
        "images/s": round(middle),
        "ms a step": round(1000 * loop.trainer.settings.batch_size / middle, 3),
        "step": loop.trainer.compute.name,
    }


def time_all(day: Day, seconds: float) -> None:
    """Images a second: the captured steps first, as they are what the study uses."""
    start = time.monotonic()
    models = ["digits-cnn"] if day.rehearse else ["vgg19", "resnet50"]
    for step in ("captured", "eager"):
        for model in models:
            for method in ("dense", "fggp"):
                if time.monotonic() - start < seconds:
                    day.measure("time", f"{model}, {method}, {step}", lambda a=(model, method, step): speed(day, *a))
    day.measure("time", f"{models[0]}, a checkpoint, s", lambda: checkpoint_seconds(day, models[0]))
    for jobs in (1, 2, 4):
        left = seconds - (time.monotonic() - start)
        if left > 45 or day.rehearse:
            day.measure("time", f"{models[0]}, fggp, {jobs} jobs", lambda n=jobs: several(day, models[0], n))
    for model in models:
        if time.monotonic() - start < seconds:
            day.measure("time", f"{model}, dense, captured, cudnn.benchmark", lambda m=model: benchmarked(day, m))


def benchmarked(day: Day, model: str) -> Any:
    import torch

    torch.backends.cudnn.benchmark = True
    try:
        return speed(day, model, "dense", "captured")
    finally:
        torch.backends.cudnn.benchmark = False


def checkpoint_seconds(day: Day, model: str) -> Any:
    """How long a checkpoint takes, which is written after every epoch: on the disk and in memory."""
    from fggp.lab.training.run_folder import RunFolder

    loop = Loop(day, model, "fggp", "captured", steps=2)
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


def several(day: Day, model: str, jobs: int) -> Any:
    """Images a second of all of some processes that train side by side for a while."""
    begin, length = time.time() + (8 if day.rehearse else 18), 2 if day.rehearse else 8
    command = [sys.executable, __file__, "job", model, str(begin), str(length)]
    command += ["--rehearse"] if day.rehearse else []
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(jobs)]
    lines = [process.communicate(timeout=90)[0].strip().rpartition("\n")[2] for process in processes]
    speeds = [json.loads(line) for line in lines]
    return {"images/s, all together": round(sum(s["images/s"] for s in speeds)), "each": speeds}


def job(day: Day, model: str, begin: float, length: float) -> None:
    """One of `several`: warm up, wait for the common start, train, print a line."""
    loop = Loop(day, model, "fggp", "captured", steps=2 if day.rehearse else 25)
    loop.run()
    late = max(0.0, time.time() - begin)
    time.sleep(max(0.0, begin - time.time()))
    images, start = 0, time.perf_counter()
    while time.time() < begin + late + length:
        loop.run()
        images += len(loop.trainer.data.train)
    rate = images / (time.perf_counter() - start)
    print(json.dumps({"images/s": round(rate), "late": round(late, 1), "step": loop.trainer.compute.name}))


# Study


def study(day: Day, minutes: float, jobs: int) -> None:
    """Run the grid for a while, and take its records along whatever happens."""
    folder = grid_folder(day)
    command = [sys.executable, "-c", "import sys; from fggp.lab.cli import main; sys.exit(main())", "grid"]
    command += [
        "experiments/gpu.toml",
        "--jobs",
        str(jobs),
        "--time-limit",
        f"{round(60 * minutes)}s",
        "--out",
        str(folder),
    ]
    if day.rehearse:
        command += [
            "--data",
            "digits",
            "--model",
            "digits-cnn",
            "--epochs",
            "2",
            "--device",
            "cpu",
            "--sparsity",
            "0.9",
        ]
    if minutes < 0.5:
        day.note("study", "error", f"{minutes:.1f} minutes are left: too few to begin")
        return
    day.out.mkdir(parents=True, exist_ok=True)
    if not day.rehearse and not folder.exists():  # a new machine: what earlier ones finished is in the repository
        folder.mkdir(parents=True)
        for file in KEPT.glob("*.json*"):
            shutil.copy(file, folder)
    try:
        with (day.out / "study.log").open("w") as log:
            code = run(command, log, 60 * minutes + 20)
        day.note("study", "exit code", code)  # 1 is a grid that is not finished yet
    finally:
        take_along(day, folder)


def grid_folder(day: Day) -> Path:
    """Where the study's runs are."""
    if day.rehearse:
        return ROOT / "fggp-grids" / "gpu-rehearsal"
    return IN_MEMORY / "fggp-gpu" if IN_MEMORY.is_dir() else ROOT / "fggp-grids" / "gpu"


def take_along(day: Day, folder: Path) -> None:
    """Copy what is small: records, settings and metrics, which make up a study; no weights."""
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


# The command line


@contextmanager
def noted(day: Day, part: str) -> Iterator[None]:
    """Note how long a part took, and its error without ending the others."""
    start = time.perf_counter()
    try:
        yield
    except Exception:
        day.note(part, "error", traceback.format_exc())
    day.note(part, "seconds", round(time.perf_counter() - start, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("pack").add_argument("--source", type=Path, required=True)
    for name in ("check", "time", "study", "all", "job"):
        command = commands.add_parser(name)
        command.add_argument("--rehearse", action="store_true", help="on a CPU, and tiny")
        if name in ("study", "all"):
            command.add_argument("--minutes", type=float, default=9.0, help="to be done in")
            command.add_argument("--jobs", type=int, default=4, help="runs of the study at once")
        if name == "job":
            command.add_argument("model")
            command.add_argument("begin", type=float)
            command.add_argument("length", type=float)
    args = parser.parse_args()
    if args.command == "pack":
        pack(args.source)
        return

    start = time.monotonic()
    day = Day(Path(os.environ.get("OUT", ROOT / "runs" / "gpu-day")), args.rehearse)
    if args.command == "job":
        sys.path[:0] = [str(ROOT / "src"), str(SITE)]
        job(day, args.model, args.begin, args.length)
        return
    with noted(day, "machine"):
        unpack(day)
    if args.command in ("check", "all"):
        with noted(day, "check"):
            check(day, 120)
    if args.command in ("time", "all"):
        with noted(day, "time"):
            time_all(day, 150 if args.command == "all" else 400)
    if args.command in ("study", "all"):
        with noted(day, "study"):
            study(day, args.minutes - (time.monotonic() - start + 25) / 60, args.jobs)


if __name__ == "__main__":
    main()
