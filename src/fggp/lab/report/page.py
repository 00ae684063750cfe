"""The report as one HTML page that needs nothing else: no network, no other file."""

import base64
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from fggp.lab.report.content import Content
from fggp.lab.report.inline import inline
from fggp.lab.report.runs import Json, Run, shared_settings
from fggp.lab.report.tables import percent
from fggp.lab.report.wording import how_to_read

DETAILS = {
    "device": "processor",
    "threads": "threads",
    "images_per_second": "images/s",
    "wall_seconds": "seconds",
    "date": "date",
    "commit": "commit",
}
"""What is shown of a run beside its settings, where it was recorded, and what it is called there."""


@dataclass(frozen=True)
class Column:
    """A column of the table of runs.

    Args:
        title: its head.
        value: what it is sorted by; None goes last, whichever way it is sorted.
        text: what it shows.
        number: whether it holds numbers.
        only_if_varied: whether it is left out where it is the same for all runs.
    """

    title: str
    value: Callable[[Run], Any]
    text: Callable[[Any], str] = str
    number: bool = True
    only_if_varied: bool = False


def render(content: Content) -> str:
    """Return the page."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    script, style = _asset("page.js"), _asset("page.css")
    columns = [column for column in _columns(content) if _worth_showing(column, content.runs)]
    shared = shared_settings(content.runs)
    return environment.from_string(_asset("page.html")).render(
        content=content,
        how_to_read=how_to_read(content.by),
        series={look.number: look for look in content.looks.values()},
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        columns=columns,
        look=lambda run: content.looks.get(content.labels[id(run)]),
        cell=_cell,
        inline=lambda picture: Markup(inline(picture, content.looks.values())),
        shared=_texts(shared),
        details=Markup(_script_json({"shared": _texts(shared), "runs": [_details(r, shared) for r in content.runs]})),
    )


def _asset(name: str) -> str:
    return (files("fggp.lab.report") / name).read_text("utf-8")


def _columns(content: Content) -> list[Column]:
    def accuracy(value: float) -> str:
        return f"{value:.2f}"

    def recorded(key: str) -> Callable[[Run], Any]:
        return lambda run: run.record.get(key) if isinstance(run.record.get(key), int | float) else None

    return [
        Column("run", lambda run: run.name, number=False),
        Column("method", lambda run: content.labels[id(run)], number=False),
        Column("data", lambda run: run.data, number=False, only_if_varied=True),
        Column("model", lambda run: run.model, number=False, only_if_varied=True),
        Column("sparsity", lambda run: run.sparsity, percent),
        Column("start", lambda run: run.init_sparsity, percent, only_if_varied=True),
        Column("epochs", lambda run: run.epochs, only_if_varied=True),
        Column("seed", lambda run: run.seed),
        Column("test, %", lambda run: run.test_accuracy, accuracy),
        Column("validation, %", lambda run: run.val_accuracy, accuracy),
        Column("parameters left", recorded("parameters_left"), "{:,}".format),
    ]


def _worth_showing(column: Column, runs: Sequence[Run]) -> bool:
    """Whether anything is known of it, and for what only some reports vary, whether this one does."""
    values = {column.value(run) for run in runs}
    return len(values) > 1 or (not column.only_if_varied and values != {None})


def _cell(column: Column, run: Run) -> dict[str, Any]:
    value = column.value(run)
    return {"text": "–" if value is None else column.text(value), "sort": "" if value is None else value}


def _details(run: Run, shared: Json) -> dict[str, Any]:
    settings = run.record.get("settings") or {}
    known = {shown: run.record[name] for name, shown in DETAILS.items() if run.record.get(name) is not None}
    versions = run.record.get("versions")
    known |= {f"{name} version": value for name, value in versions.items()} if isinstance(versions, dict) else {}
    own = {name: value for name, value in settings.items() if name not in shared}
    return {
        "name": run.name,
        "own": _texts({"measured sparsity": f"{run.record.get('sparsity', run.sparsity):.6f}", **own}),
        "known": _texts({**known, "recorded in": run.source}),
    }


def _texts(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(name, _text(value)) for name, value in values.items() if value is not None]


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _script_json(value: object) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value).replace("<", "\\u003c")
