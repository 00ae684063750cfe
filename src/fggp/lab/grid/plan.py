"""The runs of a grid: its file and options are read, multiplied out and checked, and each run gets a name."""

import difflib
import itertools
import json
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.training.settings import ResolvedSettings, TrainSettings, unused_fields

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FIELDS: dict[str, Any] = {
    name: type_ for name, type_ in get_type_hints(TrainSettings).items() if name not in ("out", "resume")
}
"""The settings that a grid may have, and their types."""

ALWAYS_NAMED = ("method", "sparsity", "seed")
"""Settings in the name of every run."""

Table = tuple[str, dict[str, list[Any]]]
"""One product: its place as error messages name it, and the values of each setting by name."""


def plan_runs(tables: Sequence[Table]) -> list[ResolvedSettings]:
    """Multiply a grid out.

    Args:
        tables: the products it is the union of, as `read_tables` returns them.

    Returns:
        All runs, each once, those of the first seed first. Their `out` is not yet a folder of the grid.

    Raises:
        UsageError: naming the first entry that is wrong.
    """
    runs: dict[str, ResolvedSettings] = {}
    given: dict[str, list[Any]] = {}
    used: set[str] = set()
    for where, values in tables:
        given |= values
        for combination in itertools.product(*values.values()):
            chosen = dict(zip(values, combination, strict=True))
            try:
                unused = unused_fields(TrainSettings(**chosen))
                resolved = TrainSettings(**{name: v for name, v in chosen.items() if name not in unused}).resolve()
                text = json.dumps(resolved.as_json())
            except UsageError as error:
                raise UsageError(f"{where}{error}") from error
            used |= chosen.keys() - unused
            known = runs.setdefault(text, resolved)
            remedies = {"data": "give each a data_name, in [[grid]] tables", "method": "rename one of the files"}
            for name, remedy in remedies.items():
                pair = getattr(known, name), getattr(resolved, name)
                if pair[0] != pair[1]:
                    raise UsageError(
                        f"{where}{name} is {pair[0]!r} and {pair[1]!r}, which are equal in records; {remedy}"
                    )
    for name in given.keys() - used:
        methods = ", ".join(dict.fromkeys(run.method for run in runs.values()))
        listed = ", ".join(map(repr, given[name]))
        raise UsageError(f"{name} is {listed}, but no run of this grid uses it (method {methods})")
    seeds = list(dict.fromkeys(run.seed for run in runs.values()))
    # Seeds outermost: a grid that is stopped half-way has complete tables of its first seeds.
    return sorted(runs.values(), key=lambda run: seeds.index(run.seed))


def read_tables(file: Path | None, options: Mapping[str, list[Any]]) -> list[Table]:
    """Read a grid file.

    Args:
        file: None if there are options only.
        options: settings that replace those of the file.

    Raises:
        UsageError: naming the first entry that cannot be read.
    """
    if file is None:
        return [("", dict(options))]
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} is not a TOML file: {error}") from error
    tables = content.pop("grid", [{}])
    if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
        raise UsageError(f"{file}: grid must be tables, each under a line [[grid]]")
    common = _values(f"{file}: ", content)
    places = [f"{file}: "] if tables == [{}] else [f"{file}, [[grid]] {n}: " for n in range(1, len(tables) + 1)]
    return [
        (place, {**common, **_values(place, table), **options}) for place, table in zip(places, tables, strict=True)
    ]


def _values(where: str, table: Mapping[str, Any]) -> dict[str, list[Any]]:
    found = {}
    for name, value in table.items():
        if name not in FIELDS:
            close = difflib.get_close_matches(name, FIELDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it must be one of {', '.join(FIELDS)}"
            raise UsageError(f"{where}{name} is no setting of a run; {hint}")
        values = value if isinstance(value, list) else [value]
        if not values:
            raise UsageError(f"{where}{name} is []; it must hold at least one value")
        found[name] = [_typed(where, name, value) for value in values]
    return found


def _typed(where: str, name: str, value: Any) -> Any:
    """Return a value of the file in the type of its setting."""
    kinds = get_args(FIELDS[name]) if get_origin(FIELDS[name]) in (Union, types.UnionType) else (FIELDS[name],)
    if get_origin(kinds[0]) is Literal:
        choices = get_args(kinds[0])
        if value in choices:
            return value
        raise UsageError(f"{where}{name} is {value!r}; it must be one of {', '.join(choices)}")
    kind = kinds[0]
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is kind:
        return value
    words = {int: "a whole number", float: "a number", str: "a text", Path: "a path", bool: "true or false"}[kind]
    raise UsageError(f"{where}{name} is {value!r}; it must be {words}, or a list of them")


def run_names(runs: Sequence[Json], named: Mapping[str, Json]) -> list[str]:
    """Name runs by method, sparsity and seed, and by other settings where they differ.

    Args:
        runs: settings as `ResolvedSettings.as_json` returns them, no two equal.
        named: settings of runs that have names already, by name.

    Returns:
        A new name for each of ``runs``, valid as the name of a folder.
    """
    every = [*named.values(), *runs]
    parts = [_common_parts(run) for run in every]
    groups = [list(range(len(every)))]
    others = [name for name in FIELDS if name not in ALWAYS_NAMED]
    for field in (*ALWAYS_NAMED, *others):
        groups = [smaller for group in groups for smaller in _split(every, parts, group, field)]
    order = ("data", "model", "method", "sparsity", *(name for name in others if name not in ("data", "model")), "seed")
    names = ["-".join(part[field] for field in order if field in part) for part in parts]
    return _unique([re.sub(r"[^\w.+=-]", "-", name) for name in names[len(named) :]], named)


def _common_parts(run: Json) -> dict[str, str]:
    sparsity = {} if run["method"] == "dense" else {"sparsity": _number(run["sparsity"])}
    return {"method": run["method"].rpartition(":")[2], **sparsity, "seed": f"seed{run['seed']}"}


def _split(runs: Sequence[Json], parts: list[dict[str, str]], group: list[int], field: str) -> list[list[int]]:
    """Divide a group of runs by a setting; if it has more than one value, add it to their names."""
    by_value: dict[Any, list[int]] = {}
    for index in group:
        by_value.setdefault(runs[index].get(field), []).append(index)
    if len(by_value) > 1 and field not in ALWAYS_NAMED:
        for value, members in by_value.items():
            for index in members:
                parts[index][field] = _label(field, value)
    return list(by_value.values())


def _label(field: str, value: Any) -> str:
    text = _number(value) if isinstance(value, float) else str(value)
    if field == "data":
        return text.removeprefix("folder:")
    return text if field == "model" else {"init_sparsity": "init"}.get(field, field.replace("_", "-")) + text


def _number(value: float) -> str:
    short = f"{value:g}"
    return short if float(short) == value else repr(value)


def _unique(names: Sequence[str], taken: Iterable[str]) -> list[str]:
    seen = set(taken)
    unique = []
    for name in names:
        candidates = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        unique.append(next(candidate for candidate in candidates if candidate not in seen))
        seen.add(unique[-1])
    return unique
