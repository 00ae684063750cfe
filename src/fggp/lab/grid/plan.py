"""What a grid is: its file and flags read, multiplied out and checked, and a name for each of its runs."""

import difflib
import itertools
import json
import re
import sys
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fggp.lab.base.errors import UsageError
from fggp.lab.training.run_folder import Json
from fggp.lab.training.settings import ResolvedSettings, TrainSettings, unused_fields

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FIELDS: dict[str, Any] = {
    name: type_ for name, type_ in get_type_hints(TrainSettings).items() if name not in ("out", "resume")
}
"""What a grid may say, and of which type."""

ALWAYS = ("method", "sparsity", "seed")
"""What is in the name of every run."""

Table = tuple[str, dict[str, list[Any]]]
"""One product: the words that lead a user to it, and settings by name, each with all the values it takes."""


def plan_runs(tables: Sequence[Table]) -> list[ResolvedSettings]:
    """Multiply a grid out.

    Args:
        tables: the products it is the union of, as `read_tables` returns them.

    Returns:
        All runs, each once, with the first seed's first. Their `out` is not theirs yet.

    Raises:
        UsageError: naming the first entry that is not as it should be.
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
            except UsageError as error:
                raise UsageError(f"{where}{error}") from error
            used |= chosen.keys() - unused
            known = runs.setdefault(json.dumps(resolved.as_json()), resolved)
            if known.data != resolved.data:
                raise UsageError(
                    f"{where}data is {known.data!r} and {resolved.data!r}, which records could not tell apart; "
                    f"give them a data_name each, in [[grid]] tables"
                )
            if known.method != resolved.method:
                raise UsageError(
                    f"{where}method is {known.method!r} and {resolved.method!r}, which records could not tell apart; "
                    f"give the files names of their own"
                )
    for name in given.keys() - used:
        methods = ", ".join(dict.fromkeys(run.method for run in runs.values()))
        raise UsageError(
            f"{name} is {_shown(given[name])}, but no run of this grid has a use for it (method {methods})"
        )
    seeds = list(dict.fromkeys(run.seed for run in runs.values()))
    # Seeds outermost: a grid that is stopped half-way has whole tables of its first seeds.
    return sorted(runs.values(), key=lambda run: seeds.index(run.seed))


def read_tables(file: Path | None, flags: Mapping[str, list[Any]]) -> list[Table]:
    """Read a grid file.

    Args:
        file: None where flags say it all.
        flags: settings that take the place of the file's.

    Raises:
        UsageError: naming the first entry that cannot be read.
    """
    if file is None:
        return [("", dict(flags))]
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
    return [(place, {**common, **_values(place, table), **flags}) for place, table in zip(places, tables, strict=True)]


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
    """Return a value of the file as its setting has it."""
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
    words = {int: "a whole number", float: "a number", str: "a text", Path: "a path"}[kind]
    raise UsageError(f"{where}{name} is {value!r}; it must be {words}, or a list of such")


def _shown(values: Sequence[Any]) -> str:
    return ", ".join(map(repr, values))


def run_names(runs: Sequence[Json], named: Mapping[str, Json]) -> list[str]:
    """Name runs by what tells them apart: method, sparsity and seed always, anything else where it is needed.

    Args:
        runs: settings as `ResolvedSettings.as_json` gives them, no two the same.
        named: those of runs that have their names already.

    Returns:
        A name for each of ``runs``, fit for a folder, all of them new.
    """
    every = [*named.values(), *runs]
    parts = [_always(run) for run in every]
    groups = [list(range(len(every)))]
    others = [name for name in FIELDS if name not in ALWAYS]
    for field in (*ALWAYS, *others):
        groups = [smaller for group in groups for smaller in _split(every, parts, group, field)]
    order = ("data", "model", "method", "sparsity", *(name for name in others if name not in ("data", "model")), "seed")
    names = ["-".join(part[field] for field in order if field in part) for part in parts]
    return _unique([re.sub(r"[^\w.+=-]", "-", name) for name in names[len(named) :]], named)


def _always(run: Json) -> dict[str, str]:
    sparsity = {} if run["method"] == "dense" else {"sparsity": _number(run["sparsity"])}
    return {"method": run["method"].rpartition(":")[2], **sparsity, "seed": f"seed{run['seed']}"}


def _split(runs: Sequence[Json], parts: list[dict[str, str]], group: list[int], field: str) -> list[list[int]]:
    """Divide a group of runs by a setting, and note it in their names where it takes more than one value."""
    by_value: dict[Any, list[int]] = {}
    for index in group:
        by_value.setdefault(runs[index].get(field), []).append(index)
    if len(by_value) > 1 and field not in ALWAYS:
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
