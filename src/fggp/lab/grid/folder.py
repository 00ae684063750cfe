"""A grid on disk: which runs it is made of, their folders, and the record of each that is finished."""

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
from fggp.lab.base import disk
from fggp.lab.base.errors import UsageError
from fggp.lab.grid.plan import run_names
from fggp.lab.training.run_folder import Json, RunFolder
from fggp.lab.training.settings import ResolvedSettings

AXES = ("data", "model", "method", "sparsity", "init_sparsity", "rate", "exclude", "seed")
"""What may be added to a grid; everything else must stay as it was."""
OF_METHODS = ("scope", "prune_begin", "prune_end", "every")
"""What differs between methods of one grid."""


class GridFolder:
    """The files of a grid.

    - ``grid.json``: the settings of every run that was ever part of it, by name.
    - ``runs/NAME/``: a run folder each, as `RunFolder` describes it.
    - ``records.jsonl``: the records of the finished runs, a line each, in the order in which they finished.

    A run folder's ``record.json`` is the truth: whatever lines are missing here are copied from there.

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

    def read_id(self) -> str | None:
        """Return what tells this grid from all others, None where there is none."""
        return str(json.loads(self.grid_file.read_text())["id"]) if self.grid_file.exists() else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other grid command out of the folder; a command that dies lets go of it.

        Raises:
            UsageError: another command is at work in it.
        """
        with disk.locked(self.path, f"another fggp grid is at work in {self.path}; wait for it, or stop it"):
            yield

    def name_runs(self, runs: Sequence[ResolvedSettings]) -> dict[str, ResolvedSettings]:
        """Return the runs by name, old ones by the name that they have; `out` is where each belongs.

        Raises:
            UsageError: the folder holds something else, or a grid with other settings; nothing is changed.
        """
        named = self._named()
        by_settings = {_identity(settings): name for name, settings in named.items()}
        new = [settings for settings in runs if _identity(settings.as_json()) not in by_settings]
        self._check_grown(named.values(), [settings.as_json() for settings in runs])
        for settings, name in zip(new, run_names([run.as_json() for run in new], named), strict=True):
            by_settings[_identity(settings.as_json())] = name
        by_name = {by_settings[_identity(settings.as_json())]: settings for settings in runs}
        return {name: replace(settings, out=self.run_folder(name).path) for name, settings in by_name.items()}

    def adopt(self, runs: dict[str, ResolvedSettings]) -> None:
        """Make named runs part of the grid on disk.

        Raises:
            UsageError: a run's folder holds a run of other settings.
        """
        for name, settings in runs.items():
            if self.run_folder(name).holds_run():
                self.run_folder(name).check_settings(settings.as_json())
        every = self._named() | {name: settings.as_json() for name, settings in runs.items()}
        grid = {"id": self.read_id() or uuid.uuid4().hex, "runs": every}
        with atomic_write(self.grid_file) as file:
            file.write(json.dumps(grid, indent=1).encode() + b"\n")

    def _named(self) -> dict[str, Json]:
        """Read the settings of the runs that are there."""
        if not self.grid_file.exists():
            # What a kill left of a grid that was never begun is no other folder's content.
            ours = {self.path / disk.LOCK, *self.path.glob(f"{self.grid_file.name}.*.partial")}
            others = sorted(file.name for file in {*self.path.glob("*")} - ours)
            if others:
                raise UsageError(f"out is {self.path}, which holds {others[0]!r} but no grid; choose another --out")
            return {}
        return dict(json.loads(self.grid_file.read_text())["runs"])

    def _check_grown(self, old: Collection[Json], new: Collection[Json]) -> None:
        """Refuse settings that replace those of the grid that is there, instead of adding to them."""
        # Runs that agree in `key` may differ in all else, and more of them may come, but not only other ones.
        for key, but in ((AXES, ()), (("data", "model", "method"), ()), (("data", "model"), OF_METHODS)):
            before, after = _grouped(old, key, but), _grouped(new, key, but)
            for group in sorted(before.keys() & after.keys()):
                if before[group].isdisjoint(after[group]):
                    pairs = itertools.product(sorted(before[group]), sorted(after[group]))
                    differ = min((_differences(json.loads(own), json.loads(now)) for own, now in pairs), key=len)
                    raise UsageError(
                        f"out is {self.path}, which holds another grid: {'; '.join(differ)}; choose another --out"
                    )

    def read_records(self, console: Console, mend: bool = True) -> None:
        """Read the records and tell of lines that cannot be read; unless told not to, mend what a kill left undone."""
        text = self.records_file.read_bytes() if self.records_file.exists() else b""
        whole = text.rfind(b"\n") + 1
        if mend and whole < len(text):
            os.truncate(self.records_file, whole)  # the run folder still has what was being written
        for number, line in enumerate(text[:whole].splitlines(), 1):
            try:
                record = json.loads(line)
                self.records[record["run"]] = record
            except (ValueError, TypeError, KeyError):
                console.print(f"{self.records_file}, line {number} is damaged and left out", highlight=False)

    def finished(self, name: str) -> bool:
        """Whether a run has its record; one that has it in its run folder only is given its line now."""
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
        # One write to the end: what a kill leaves of it has no line's end, by which it is known.
        with self.records_file.open("ab", buffering=0) as file:
            file.write(line)
            os.fsync(file.fileno())
        self.records[record["run"]] = record


def _identity(settings: Json) -> str:
    return json.dumps(settings, sort_keys=True)


def _differences(own: Json, now: Json) -> list[str]:
    return [
        f"{name} is {now.get(name)!r}, that grid's is {own.get(name)!r}"
        for name in {**own, **now}
        if own.get(name) != now.get(name)
    ]


def _grouped(runs: Collection[Json], key: Sequence[str], but: Sequence[str]) -> dict[str, set[str]]:
    """Gather, by the settings in ``key``, what else the runs' settings are, but for axes and those in ``but``."""
    groups: dict[str, set[str]] = {}
    for run in runs:
        own = json.dumps([run.get(name) for name in key])
        rest = {name: value for name, value in run.items() if name not in (*AXES, *but)}
        groups.setdefault(own, set()).add(_identity(rest))
    return groups
