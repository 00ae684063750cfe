"""Reads records: a damaged one is reported by file and line, and the rest is used."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fggp.lab.base.errors import UsageError
from fggp.lab.report.runs import Run, Split, parse


@dataclass(frozen=True)
class Loaded:
    """The usable records.

    Args:
        runs: one for each different record.
        notes: a line, with file and line number, on everything that was not used, and why.
    """

    runs: Sequence[Run]
    notes: Sequence[str]


def load(paths: Iterable[Path], by: Split = "test") -> Loaded:
    """Read every record in files and below folders.

    Args:
        paths: the files and folders.
        by: the split whose accuracy is compared; records without it are not usable.

    Raises:
        UsageError: a path does not exist or cannot be read, or no record is usable.
    """
    paths = list(paths)
    found: list[Run] = []
    notes: list[str] = []
    for file in _files(paths):
        file_runs, file_notes = _read(file, by)
        found += file_runs
        notes += file_notes
    runs: dict[tuple[object, ...], Run] = {}
    copies = 0
    for run in _with_epochs(found):
        first = runs.setdefault(run.identity, run)
        if first is run:
            continue
        if run.record == first.record:
            copies += 1  # a grid's folder holds each record twice: in the run's folder and in the list of all
        else:
            notes.append(_duplicate_note(run, first))
    if copies:
        were = "record is a copy" if copies == 1 else "records are copies"
        notes.append(f"{copies} {were} of others: every run is used once")
    if not runs:
        reasons = "; ".join(notes[:3]) or "no *.jsonl and no record.json there"
        raise UsageError(f"no usable record in {', '.join(map(str, paths))}: {reasons}")
    return Loaded(list(runs.values()), notes)


def _with_epochs(runs: Sequence[Run]) -> list[Run]:
    """Give runs of unknown length the known length of their data and model, if there is exactly one."""
    lengths: dict[tuple[str, str], set[int]] = {}
    for run in runs:
        lengths.setdefault((run.data, run.model), set()).update([] if run.epochs is None else [run.epochs])
    only = {where: known.pop() for where, known in lengths.items() if len(known) == 1}
    return [run if run.epochs else replace(run, epochs=only.get((run.data, run.model))) for run in runs]


def _files(paths: Sequence[Path]) -> list[Path]:
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            # metrics.jsonl in a run's folder holds its epochs, not runs.
            below = [file for file in path.rglob("*.jsonl") if file.name != "metrics.jsonl"]
            files = sorted([*below, *path.rglob("record.json")])
        elif path.exists():
            files = [path]
        else:
            raise UsageError(f"{path} does not exist; name a file of records or a folder to search")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _read(file: Path, by: Split) -> tuple[list[Run], list[str]]:
    """Return a file's runs, and a note on each line that holds none."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    runs, notes, others = [], [], 0
    # Not splitlines: JSON strings may hold characters that Python counts as line ends.
    lines = [content] if file.suffix == ".json" else content.split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        source = f"{file}:{number}"
        try:
            record = json.loads(line.decode())
            if isinstance(record, dict) and not {"run", "method"} & record.keys():
                others += 1
                continue
            run, run_notes = parse(record, source, by)
        except json.JSONDecodeError as error:
            notes.append(f"{file}:{number + error.lineno - 1}: skipped, not JSON ({error.msg}, column {error.colno})")
        except UnicodeDecodeError as error:
            notes.append(f"{source}: skipped, not UTF-8 text (byte {error.start + 1})")
        except ValueError as error:
            notes.append(f"{source}: skipped, {error}")
        else:
            runs.append(run)
            notes += run_notes
    if others:
        lines_are = "1 line is" if others == 1 else f"{others} lines are"
        notes.append(f"{file}: {lines_are} not about runs (neither run nor method in it), skipped")
    return runs, notes


def _duplicate_note(run: Run, first: Run) -> str:
    same = run.test_accuracy == first.test_accuracy
    outcome = "" if same else f"; its test accuracy, {run.test_accuracy:.2f} %, is not the same"
    return f"{run.source}: not used, the same settings and seed as {first.source}{outcome}"
