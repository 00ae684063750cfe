"""What is compared with what: tables of runs, methods down and sparsities across, a run for each seed in a cell."""

import inspect
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fggp import methods
from fggp.lab.report.runs import Run
from fggp.lab.training.record import label

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

Cell = Mapping[int, Run]
"""The runs of a method in a setting, by seed."""


@dataclass(frozen=True)
class Row:
    """A method, trained in one way, over the sparsities of a table.

    Args:
        label: what it is called; the same in every table.
        method: its name in the records.
        cells: runs by sparsity and seed.
    """

    label: str
    method: str
    cells: Mapping[float, Cell]

    @property
    def runs(self) -> list[Run]:
        """All of them, by sparsity and seed."""
        return [cell[seed] for _, cell in sorted(self.cells.items()) for seed in sorted(cell)]

    @property
    def rate(self) -> float | None:
        """The method's rate, None where it has none or it is unknown."""
        return self.runs[0].rate


@dataclass(frozen=True)
class Table:
    """Runs that are fair to compare: of one network, on the same data, for as long, from the same start.

    Args:
        data, model: as recorded.
        epochs: of each run, None where unknown.
        start: the sparsity that runs began with; None if each began with its final one.
        rows: methods that prune.
        dense: what they are held against: not pruned.
    """

    data: str
    model: str
    epochs: int | None
    start: float | None
    rows: Sequence[Row]
    dense: Sequence[Row] = field(default=())

    @property
    def subject(self) -> str:
        """Network, data and length of training."""
        length = [] if self.epochs is None else [f"{self.epochs} epoch{'s' * (self.epochs != 1)}"]
        return " · ".join([self.data, self.model, *length])

    @property
    def beginning(self) -> str:
        """What training started from."""
        if not self.rows:
            return "not pruned"
        if self.start is None:
            return "sparse throughout"
        return "dense start" if self.start == 0 else f"{percent(self.start)} sparse start"

    @property
    def title(self) -> str:
        """All that its runs have in common."""
        return f"{self.subject} · {self.beginning}"

    @property
    def sparsities(self) -> list[float]:
        """The columns."""
        return sorted({sparsity for row in self.rows for sparsity in row.cells})

    @property
    def sweeps(self) -> list[list["Row"]]:
        """The rows of each method that was run with three or more rates and is otherwise the same."""
        alike = _grouped(self.rows, lambda row: (row.method, json.dumps(row.runs[0].settings, sort_keys=True)))
        return [own for own in alike.values() if len({row.rate for row in own} - {None}) >= 3]

    def without_sweeps(self, baseline: str = "") -> "Table":
        """The table with one row for each sweep of rates, that of the method's default rate, and the baseline's.

        A table of nothing but a sweep stays as it is.
        """
        swept = [row for own in self.sweeps for row in own if any(_is_usual(each) for each in own)]
        left_out = {row.label for row in swept if not _is_usual(row) and row.label != baseline}
        rows = [row for row in self.rows if row.label not in left_out]
        return replace(self, rows=rows) if len({row.method for row in rows}) > 1 else self


@dataclass(frozen=True)
class Setting:
    """A column of a table: where methods meet."""

    table: Table
    sparsity: float

    @property
    def title(self) -> str:
        """The table's title and the sparsity."""
        return f"{self.table.title} · {percent(self.sparsity)}"

    @property
    def cells(self) -> dict[str, Cell]:
        """Who takes part, by label."""
        return {row.label: row.cells[self.sparsity] for row in self.table.rows if self.sparsity in row.cells}


CONSTANT = " †"
"""Marks the label of a row whose runs were as sparse as in the end from their start on."""


def tabulate(runs: Sequence[Run]) -> list[Table]:
    """Gather runs into tables.

    Runs that are sparse throughout start from neither of the starts that others share: they stand in all these tables.
    """
    rates = _methods_that_show_their_rate(runs)
    tables = []
    for (data, model, epochs), own in _grouped(runs, lambda run: (run.data, run.model, run.epochs)).items():
        dense = _rows([run for run in own if run.dense], rates)
        always = _rows([run for run in own if run.constant], rates, CONSTANT)
        starts = _grouped([run for run in own if not run.dense and not run.constant], lambda run: run.init_sparsity)
        for start in sorted(starts):
            rows = ordered([*_rows(starts[start], rates), *always])
            tables.append(Table(data, model, epochs, start, rows, dense))
        if not starts:
            tables.append(Table(data, model, epochs, None, always, dense))
    return sorted(tables, key=lambda table: (table.data, table.model, table.epochs or 0, table.start or 0))


def settings_of(tables: Iterable[Table]) -> list[Setting]:
    """Every column of every table."""
    return [Setting(table, sparsity) for table in tables for sparsity in table.sparsities]


def rows_of(tables: Iterable[Table]) -> list[Row]:
    """A row for each label of all tables, in order; dense ones left out."""
    return ordered({row.label: row for table in tables for row in table.rows}.values())


def percent(share: float) -> str:
    """Return a share in percent, with as many digits as it takes."""
    return f"{100 * share:.4g} %"


def differing(table: Table) -> dict[str, dict[str, list[str]]]:
    """What runs of a table differ in beyond method, rate, start, sparsity and seed.

    Returns:
        The methods by value by setting, for the settings that all methods' records have.
    """
    rows = [row for row in (*table.dense, *table.rows) if row.runs[0].settings]
    pruned = [row for row in rows if not row.runs[0].dense]
    names = dict.fromkeys(name for row in rows for run in row.runs for name in run.settings)
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        values: dict[str, list[str]] = {}
        for row in rows if all(name in row.runs[0].settings for row in rows) else pruned:
            value = row.runs[0].settings.get(name)
            values.setdefault("none" if value is None else f"{value}", []).append(row.label)
        if len(values) > 1:
            found[name] = values
    return found


def _rows(runs: Sequence[Run], rates: set[str], mark: str = "") -> list[Row]:
    rows = []
    for method, own in _grouped(runs, lambda run: run.method).items():
        variants = _grouped(own, lambda run: run.variant)
        told_apart = _told_apart([group[0] for group in variants.values()])
        for (variant, group), differences in zip(variants.items(), told_apart, strict=True):
            rate = json.loads(variant)[0]
            shown = [f"r = {rate:g}"] if method in rates and rate is not None else []
            details = [*shown, *differences]
            name = label(method) + (f" ({', '.join(details)})" if details else "") + mark
            cells = {
                sparsity: {run.seed: run for run in cell}
                for sparsity, cell in sorted(_grouped(group, lambda run: run.sparsity).items())
            }
            rows.append(Row(name, method, cells))
    return ordered(rows)


def _told_apart(runs: Sequence[Run]) -> list[list[str]]:
    """For each of a method's variants, what tells it from the others beyond the rate."""
    names: list[str] = []
    keys: list[tuple[object, ...]] = [(run.rate,) for run in runs]
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        # Only a setting that tells apart what those before it do not: half as many epochs also end pruning earlier.
        finer = [(*key, repr(run.settings.get(name))) for key, run in zip(keys, runs, strict=True)]
        if len(set(finer)) > len(set(keys)):
            names.append(name)
            keys = finer
    return [
        ["settings unknown"]
        if not run.settings and any(other.settings or (other.rate is not None and run.rate is None) for other in runs)
        else [f"{name} {run.settings[name]}" for name in names if name in run.settings]
        for run in runs
    ]


def _methods_that_show_their_rate(runs: Iterable[Run]) -> set[str]:
    """Those that were run with a rate other than their default."""
    return {run.method for run in runs if run.rate is not None and run.rate != default_rate(run.method)}


def default_rate(method: str) -> float | None:
    """The rate that a built-in method has if none is given, None where it has none."""
    if method not in methods.REGISTRY:
        return None
    rate = inspect.signature(methods.REGISTRY[method]).parameters.get("rate")
    return None if rate is None or rate.default is rate.empty else float(rate.default)


def _is_usual(row: Row) -> bool:
    return row.rate is not None and row.rate == default_rate(row.method)


def ordered(rows: Iterable[Row]) -> list[Row]:
    """Rows in the order of the methods' registry, then as they come; a method's own by rate."""
    known = list(methods.REGISTRY)
    rows = list(rows)
    first = {row.method: len(known) + number for number, row in reversed(list(enumerate(rows)))}
    return sorted(
        rows,
        key=lambda row: (
            known.index(row.method) if row.method in known else first[row.method],
            row.rate if row.rate is not None else -1,
        ),
    )


def _grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
