"""Tables of runs: methods down, sparsities across, in each cell a run for each seed."""

import inspect
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from fggp import methods
from fggp.lab.report.runs import Run
from fggp.lab.training.methods import label

Item = TypeVar("Item")
Key = TypeVar("Key", bound=Hashable)
Cell = Mapping[int, Run]
"""The runs of a method in a setting, by seed."""

SPARSE_THROUGHOUT_MARK = " †"
"""Ends the label of a row whose runs started at their final sparsity."""


@dataclass(frozen=True)
class Row:
    """A method, trained in one way, over the sparsities of a table.

    Args:
        label: its name in every table.
        method: its name in the records.
        cells: runs by sparsity and seed.
    """

    label: str
    method: str
    cells: Mapping[float, Cell]

    @property
    def runs(self) -> list[Run]:
        """All runs, by sparsity and seed."""
        return [cell[seed] for _, cell in sorted(self.cells.items()) for seed in sorted(cell)]

    @property
    def rate(self) -> float | None:
        """The method's rate, None where it has none or it is unknown."""
        return self.runs[0].rate

    @property
    def has_default_rate(self) -> bool:
        """Whether the rate is known and the method's default."""
        return self.rate is not None and self.rate == default_rate(self.method)


@dataclass(frozen=True)
class Table:
    """Runs that are fair to compare: one network, the same data, length of training and start.

    Args:
        data, model: as recorded.
        epochs: of each run, None where unknown.
        start: sparsity at the start; None if each run started at its final sparsity.
        rows: methods that prune.
        dense: the unpruned references.
    """

    data: str
    model: str
    epochs: int | None
    start: float | None
    rows: Sequence[Row]
    dense: Sequence[Row] = field(default=())

    @property
    def subject(self) -> str:
        """Data, network and length of training."""
        length = [] if self.epochs is None else [f"{self.epochs} epoch{'s' * (self.epochs != 1)}"]
        return " · ".join([self.data, self.model, *length])

    @property
    def start_name(self) -> str:
        """What training started from, in words."""
        if not self.rows:
            return "not pruned"
        if self.start is None:
            return "sparse throughout"
        return "dense start" if self.start == 0 else f"{percent(self.start)} sparse start"

    @property
    def title(self) -> str:
        """Everything that the runs have in common."""
        return f"{self.subject} · {self.start_name}"

    @property
    def sparsities(self) -> list[float]:
        """The columns, ascending."""
        return sorted({sparsity for row in self.rows for sparsity in row.cells})

    @property
    def sweeps(self) -> list[list[Row]]:
        """The rows of each method that has three or more rates with equal settings."""
        groups = _grouped(self.rows, lambda row: (row.method, json.dumps(row.runs[0].settings, sort_keys=True)))
        return [rows for rows in groups.values() if len({row.rate for row in rows} - {None}) >= 3]

    def without_sweeps(self, baseline: str = "") -> "Table":
        """Return the table with one row for each sweep, that of the default rate, and the baseline's.

        A table that holds only a sweep stays as it is.
        """
        swept = [row for rows in self.sweeps for row in rows if any(other.has_default_rate for other in rows)]
        left_out = {row.label for row in swept if not row.has_default_rate and row.label != baseline}
        rows = [row for row in self.rows if row.label not in left_out]
        return replace(self, rows=rows) if left_out and len({row.method for row in rows}) > 1 else self


@dataclass(frozen=True)
class Setting:
    """A column of a table, where methods are compared."""

    table: Table
    sparsity: float

    @property
    def title(self) -> str:
        """The table's title and the sparsity."""
        return f"{self.table.title} · {percent(self.sparsity)}"

    @property
    def cells(self) -> dict[str, Cell]:
        """The methods' runs by label."""
        return {row.label: row.cells[self.sparsity] for row in self.table.rows if self.sparsity in row.cells}


def tabulate(runs: Sequence[Run]) -> list[Table]:
    """Group runs into tables.

    Runs that are sparse throughout share no start with others: they appear in the table of every start.
    """
    # A method shows its rate in labels if any of its runs has another than the default.
    show_rate = {run.method for run in runs if run.rate is not None and run.rate != default_rate(run.method)}
    tables = []
    for (data, model, epochs), group in _grouped(runs, lambda run: (run.data, run.model, run.epochs)).items():
        dense = _rows([run for run in group if run.dense], show_rate)
        throughout = _rows([run for run in group if run.sparse_throughout], show_rate, SPARSE_THROUGHOUT_MARK)
        others = [run for run in group if not run.dense and not run.sparse_throughout]
        starts = _grouped(others, lambda run: run.init_sparsity)
        for start in sorted(starts):
            rows = in_registry_order([*_rows(starts[start], show_rate), *throughout])
            tables.append(Table(data, model, epochs, start, rows, dense))
        if not starts:
            tables.append(Table(data, model, epochs, None, throughout, dense))
    return sorted(tables, key=lambda table: (table.data, table.model, table.epochs or 0, table.start or 0))


def settings_of(tables: Iterable[Table]) -> list[Setting]:
    """Return every column of every table."""
    return [Setting(table, sparsity) for table in tables for sparsity in table.sparsities]


def rows_of(tables: Iterable[Table]) -> list[Row]:
    """Return a row for each label of all tables, in order, without the dense ones."""
    return in_registry_order({row.label: row for table in tables for row in table.rows}.values())


def percent(share: float) -> str:
    """Return a share in percent, with four significant digits at most."""
    return f"{100 * share:.4g} %"


def differing_settings(table: Table) -> dict[str, dict[str, list[str]]]:
    """Find the settings beyond method, rate, start, sparsity and seed that are not equal for all runs.

    Returns:
        The labels by value by setting, for the settings that all methods' records have.
    """
    rows = [row for row in (*table.dense, *table.rows) if row.runs[0].settings]
    pruned = [row for row in rows if not row.runs[0].dense]
    names = dict.fromkeys(name for row in rows for run in row.runs for name in run.settings)
    found: dict[str, dict[str, list[str]]] = {}
    for name in names:
        labels: dict[str, list[str]] = {}
        for row in rows if all(name in row.runs[0].settings for row in rows) else pruned:
            value = row.runs[0].settings.get(name)
            labels.setdefault("none" if value is None else f"{value}", []).append(row.label)
        if len(labels) > 1:
            found[name] = labels
    return found


def _rows(runs: Sequence[Run], show_rate: set[str], mark: str = "") -> list[Row]:
    rows = []
    for method, own in _grouped(runs, lambda run: run.method).items():
        variants = list(_grouped(own, lambda run: run.variant).values())
        for group, details in zip(variants, _distinguishing_settings([group[0] for group in variants]), strict=True):
            rate = group[0].rate
            shown = [f"r = {rate:g}"] if method in show_rate and rate is not None else []
            notes = ", ".join([*shown, *details])
            cells = {
                sparsity: {run.seed: run for run in cell}
                for sparsity, cell in sorted(_grouped(group, lambda run: run.sparsity).items())
            }
            rows.append(Row(label(method) + (f" ({notes})" if notes else "") + mark, method, cells))
    return in_registry_order(rows)


def _distinguishing_settings(runs: Sequence[Run]) -> list[list[str]]:
    """Return for each of a method's variants the settings beyond the rate that tell it from the others."""
    names: list[str] = []
    keys: list[tuple[object, ...]] = [(run.rate,) for run in runs]
    for name in dict.fromkeys(name for run in runs for name in run.settings):
        # Only settings that separate what those before do not: half as many epochs also end pruning earlier.
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


def default_rate(method: str) -> float | None:
    """Return the default rate of a built-in method, None where it has none."""
    if method not in methods.REGISTRY:
        return None
    rate = inspect.signature(methods.REGISTRY[method]).parameters.get("rate")
    return None if rate is None or rate.default is rate.empty else float(rate.default)


def in_registry_order(rows: Iterable[Row]) -> list[Row]:
    """Sort rows as the methods' registry has them, unknown methods last as they appear; one method's rows by rate."""
    rows = list(rows)
    order = list(dict.fromkeys([*methods.REGISTRY, *(row.method for row in rows)]))
    return sorted(rows, key=lambda row: (order.index(row.method), -1 if row.rate is None else row.rate))


def _grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
