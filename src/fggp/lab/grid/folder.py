"""A grid on disk: the settings of its runs, their folders, and the record of each finished run."""

import itertools
import json
import os
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fggp.atomic import atomic_write
from fggp.lab.base import Json, disk
from fggp.lab.base.errors import UsageError
from fggp.lab.grid.plan import run_names
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import ResolvedSettings

AXES = ("data", "model", "method", "sparsity", "init_sparsity", "rate", "granularity", "exclude", "seed")
"""Settings whose values may be added to a grid; everything else must stay equal."""
VARY_WITH_METHOD = ("scope", "prune_begin", "prune_end", "every")
"""Settings that may differ between methods of one grid."""


class GridFolder:
    """The files of a grid.

    - ``grid.json``: the settings of every run that was ever part of it, by name.
    - ``runs/NAME/``: a run folder each, as `RunFolder` describes it.
    - ``records.jsonl``: the records of the finished runs, a line each, in the order in which they finished.

    A run's record is first in its own folder; lines that are missing in ``records.jsonl`` are copied from there.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.grid_file = path / "grid.json"
        self.records_file = path / "records.jsonl"
        self.records: dict[str, Json] = {}

    def run_folder(self, name: str) -> RunFolder:
        """Return the folder of a run."""
        return RunFolder(self.path / "runs" / name)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other grid commands out of the folder. A command that dies releases it.

        Raises:
            UsageError: another command works in it.
        """
        with disk.locked(self.path, f"another fggp grid is at work in {self.path}; wait for it, or stop it"):
            yield

    def name_runs(self, runs: Sequence[ResolvedSettings]) -> dict[str, ResolvedSettings]:
        """Return the runs by name. Runs that the grid has keep their names; `out` is the folder of each.

        Raises:
            UsageError: the folder holds something else, or a grid with other settings; nothing is changed.
        """
        named = self._read_grid().get("runs", {})
        by_settings = {_as_text(settings): name for name, settings in named.items()}
        new = [settings for settings in runs if _as_text(settings.as_json()) not in by_settings]
        self._refuse_other_grid(named.values(), [settings.as_json() for settings in runs])
        for settings, name in zip(new, run_names([run.as_json() for run in new], named), strict=True):
            by_settings[_as_text(settings.as_json())] = name
        by_name = {by_settings[_as_text(settings.as_json())]: settings for settings in runs}
        return {name: replace(settings, out=self.run_folder(name).path) for name, settings in by_name.items()}

    def adopt(self, runs: dict[str, ResolvedSettings]) -> None:
        """Make named runs part of the grid on disk.

        Raises:
            UsageError: a run's folder holds a run of other settings.
        """
        for name, settings in runs.items():
            if self.run_folder(name).holds_run():
                self.run_folder(name).check_settings(settings.as_json())
        grid = self._read_grid()
        every = grid.get("runs", {}) | {name: settings.as_json() for name, settings in runs.items()}
        with atomic_write(self.grid_file) as file:
            file.write(json.dumps({"id": grid.get("id", uuid.uuid4().hex), "runs": every}, indent=1).encode() + b"\n")

    def _read_grid(self) -> Json:
        """Read grid.json; empty for a new grid."""
        if self.grid_file.exists():
            return dict(json.loads(self.grid_file.read_text()))
        # A command that is killed while it creates the grid leaves only these.
        ours = {self.path / disk.LOCK, *self.path.glob(f"{self.grid_file.name}.*.partial")}
        others = sorted(file.name for file in {*self.path.glob("*")} - ours)
        if others:
            raise UsageError(f"out is {self.path}, which holds {others[0]!r} but no grid; choose another --out")
        return {}

    def _refuse_other_grid(self, old: Collection[Json], new: Collection[Json]) -> None:
        """Refuse settings that replace those of the grid on disk, instead of adding to them."""
        # Runs that agree in `key` may differ in other settings, and more such runs may be added. But if none of the
        # new runs of a key agrees with an old one in all other settings, the grid is another one.
        for key, ignored in ((AXES, ()), (("data", "model", "method"), ()), (("data", "model"), VARY_WITH_METHOD)):
            before, after = _other_settings(old, key, ignored), _other_settings(new, key, ignored)
            for group in sorted(before.keys() & after.keys()):
                if before[group].isdisjoint(after[group]):
                    pairs = itertools.product(sorted(before[group]), sorted(after[group]))
                    differ = min((_differences(json.loads(own), json.loads(now)) for own, now in pairs), key=len)
                    raise UsageError(
                        f"out is {self.path}, which holds another grid: {'; '.join(differ)}; choose another --out"
                    )

    def read_records(self, console: Console, repair: bool = True) -> None:
        """Read the records, and report lines that cannot be read.

        Args:
            console: shows the report.
            repair: whether to remove a line that a kill cut short.
        """
        text = self.records_file.read_bytes() if self.records_file.exists() else b""
        complete = text.rfind(b"\n") + 1
        if repair and complete < len(text):
            os.truncate(self.records_file, complete)  # the run folder still has the record
        for number, line in enumerate(text[:complete].splitlines(), 1):
            try:
                record = json.loads(line)
                self.records[record["run"]] = record
            except (ValueError, TypeError, KeyError):
                console.print(f"{self.records_file}, line {number} is damaged and left out", highlight=False)

    def finished(self, name: str) -> bool:
        """Whether a run has a record; one that is only in the run folder is appended to the records now."""
        if name not in self.records:
            record = self.run_folder(name).record()
            if record is not None:
                self.append(record)
        return name in self.records

    def append(self, record: Json) -> None:
        """Write a finished run's line, unless it has one."""
        if record["run"] in self.records:
            return
        line = json.dumps(record).encode() + b"\n"
        # One write: if a kill cuts the line short, it has no line end, and is recognised by that.
        with self.records_file.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())
        self.records[record["run"]] = record


def _as_text(settings: Json) -> str:
    return json.dumps(settings, sort_keys=True)


def _differences(own: Json, now: Json) -> list[str]:
    return [
        f"{name} is {now.get(name)!r}, that grid's is {own.get(name)!r}"
        for name in {**own, **now}
        if own.get(name) != now.get(name)
    ]


def _other_settings(runs: Collection[Json], key: Sequence[str], ignored: Sequence[str]) -> dict[str, set[str]]:
    """Group runs by the settings in ``key``; collect their settings that are neither axes nor ``ignored``."""
    groups: dict[str, set[str]] = {}
    for run in runs:
        rest = {name: value for name, value in run.items() if name not in (*AXES, *ignored)}
        groups.setdefault(json.dumps([run.get(name) for name in key]), set()).add(_as_text(rest))
    return groups
