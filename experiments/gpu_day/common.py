"""What the parts of the GPU day share: paths, notes of results, and the packed files."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKED = ROOT / "data" / "gpu"
IMAGES = ROOT / "data" / "cifar10-jpeg"
SITE = PACKED / "site"
IN_MEMORY = Path("/dev/shm")
NEEDED = ("torch", "torchvision", "numpy", "safetensors", "PIL", "rich", "filelock", "scipy", "matplotlib", "sklearn")
ALSO_NEEDED = ("tyro", "pytest", "hypothesis")


@dataclass
class Day:
    """The folder of the results, and the results so far."""

    out: Path
    rehearse: bool
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    def note(self, part: str, name: str, value: Any) -> None:
        """Write a result to the disk at once: the machine may be taken back at any time."""
        self.results.setdefault(part, {})[name] = value
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / f"{part}.json").write_text(json.dumps(self.results[part], indent=1) + "\n")
        print(f"{part}: {name}: {json.dumps(value)}", flush=True)

    def measure(self, part: str, name: str, measurement: Callable[[], Any]) -> None:
        """Note what a measurement returns, or its error; the other measurements follow either way."""
        start = time.perf_counter()
        try:
            self.note(part, name, measurement())
        except Exception:
            self.note(part, name, {"error": traceback.format_exc()})
        print(f"    {time.perf_counter() - start:.1f} s", flush=True)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Note how long a part takes, or its error; the other parts follow either way."""
        start = time.perf_counter()
        try:
            yield
        except Exception:
            self.note(name, "error", traceback.format_exc())
        self.note(name, "seconds", round(time.perf_counter() - start, 1))


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the option that all parts have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny networks")
    return parser


def begin(rehearse: bool) -> Day:
    """Unpack the packed files, note the machine and what is missing on it, and return the day."""
    day = Day(Path(os.environ.get("OUT", ROOT / "runs" / "gpu-day")), rehearse)
    with day.part("machine"):
        _unpack(day)
    return day


def use_packed_packages() -> None:
    """Make fggp and the packed packages importable, here and in processes started from here."""
    sys.path[:0] = [str(ROOT / "src"), str(SITE)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])


def _unpack(day: Day) -> None:
    if not SITE.exists():
        for wheel in PACKED.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(SITE)
    use_packed_packages()
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
    day.note("machine", "missing", [name for name, version in versions.items() if version is None])
    day.note("machine", "images", IMAGES.exists())
    import torch

    day.note("machine", "device", torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU")
    day.note("machine", "cpus", os.cpu_count())
    if not day.rehearse and not torch.cuda.is_available():
        raise SystemExit("PyTorch sees no GPU; --rehearse runs on a CPU")


def run(command: list[str], log: Any, seconds: float | None) -> int | str:
    """Run a command in the repository; return its exit code, or that it was stopped after these seconds."""
    try:
        return subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s"
