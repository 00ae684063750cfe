"""What the parts of the GPU minutes share: where things are, the notes, and the runs of the study."""

from __future__ import annotations

import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REHEARSAL = {"model": ["digits-cnn"], "device": ["cpu"], "batch_size": [8], "precision": ["fp32"]}


@dataclass(frozen=True)
class Day:
    """One use of a GPU.

    Args:
        out: folder of the results.
        packed: folder that pack.py made.
        commit: of the code.
        rehearse: on the CPU, with tiny networks and images.
        until: when the present part must have ended, as `time.time` counts.
    """

    out: str
    packed: str
    commit: str
    rehearse: bool
    until: float

    @staticmethod
    def given() -> Day:
        """Return the day that `command` put on this process's command line."""
        return Day(**json.loads(sys.argv[1]))

    def command(self, file: str) -> list[str]:
        """Return the command that runs a file of this folder on this day."""
        return [sys.executable, str(Path(__file__).with_name(file)), json.dumps(asdict(self))]

    @property
    def device(self) -> str:
        return "cpu" if self.rehearse else "cuda"

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of epochs that the study's runs may have, the best first."""
        return (2, 1) if self.rehearse else (160, 80, 40)

    def note(self, part: str, name: str, value: Any) -> None:
        """Write a result to the disk at once: the machine may be taken back at any time."""
        line: dict[str, Any] = {"benchmark": "gpu", "part": part, "name": name, "value": value, "commit": self.commit}
        line["date"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
        if "torch" in sys.modules:
            import torch

            from fggp.lab.base.machine import device_name

            line |= {"device": device_name(torch.device(self.device)), "torch": torch.__version__}
        with (Path(self.out) / "measured.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{part}: {name}: {json.dumps(value)}", flush=True)

    def measure(self, part: str, name: str, measurement: Callable[[], Any]) -> None:
        """Note what a measurement returns, or its error; the other measurements follow either way."""
        start = time.perf_counter()
        try:
            self.note(part, name, measurement())
        except Exception:
            self.note(part, name, {"error": traceback.format_exc()})
        print(f"    {time.perf_counter() - start:.1f} s", flush=True)

    def noted(self, name: str) -> list[Any]:
        """Return the values noted under a name, without the errors."""
        lines = map(json.loads, (Path(self.out) / "measured.jsonl").read_text().splitlines())
        return [line["value"] for line in lines if line["name"] == name and "error" not in line["value"]]


def planned(day: Day, epochs: int) -> list[Any]:
    """Return the settings of the study's runs, those of the first table of gpu.toml first."""
    from fggp.lab.grid.plan import plan_runs, read_tables

    options = {"epochs": [epochs], **(REHEARSAL if day.rehearse else {})}
    tables = read_tables(ROOT / "experiments" / "gpu.toml", options)
    return [run for table in tables for run in plan_runs([table])]
