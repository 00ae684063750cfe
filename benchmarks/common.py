"""Helpers of all benchmarks: time and memory of a call, and the records in results/benchmarks/."""

from __future__ import annotations

import ctypes
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import torch

import fggp
from fggp.lab.base.machine import device_name, source_commit

Json = dict[str, Any]
T = TypeVar("T")

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results" / "benchmarks"


def seconds(f: Callable[[], object]) -> float:
    start = time.perf_counter()
    f()
    return time.perf_counter() - start


def watched(f: Callable[[], T], trim: bool = True) -> tuple[T, float, int]:
    """Call f and return its result, its seconds, and the growth of the process's peak resident size in bytes (Linux).

    Args:
        f: the function to measure.
        trim: first return the freed memory that malloc keeps to the system. Otherwise f reuses it and seems to need
            less. With ``trim``, times include the allocation of new memory.
    """
    if trim:
        ctypes.CDLL(None).malloc_trim(0)
    # 5 resets the peak to the present size.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    start = time.perf_counter()
    result = f()
    return result, time.perf_counter() - start, _status("VmHWM") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def conditions(device: str = "cpu") -> Json:
    """The conditions of a measurement: threads, device, date and versions."""
    return {
        "threads": torch.get_num_threads(),
        "device": device_name(torch.device(device)),
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "fggp": fggp.__version__,
        "commit": source_commit(),
    }


def append(record: Json, file: Path) -> None:
    """Add a record, one line of JSON, to a file in `RESULTS`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as out:
        out.write(json.dumps(record) + "\n")


def read(file: Path) -> list[Json]:
    """All records of a file in `RESULTS`, oldest first; none if the file does not exist yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
