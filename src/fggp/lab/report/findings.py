"""What follows from the tables: the methods' ranks, and the differences between them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from fggp.lab.base.errors import UsageError
from fggp.lab.report.statistics import Difference, Summary, paired, ranks, summarise
from fggp.lab.report.tables import Cell, Row, Setting, Table, default_rate, rows_of, settings_of


@dataclass(frozen=True)
class Entry:
    """A method in a setting.

    Args:
        accuracy: over the seeds.
        rank: among the methods of the setting.
        best: whether no other has a higher mean.
        close: whether the paired difference to the best is not distinguishable; False where it is unknown.
    """

    accuracy: Summary
    rank: float
    best: bool
    close: bool


@dataclass(frozen=True)
class Contest:
    """Methods that were all run in all of some settings, and their ranks there.

    Args:
        settings: where all methods were run.
        rows: the methods, the best first.
        ranks: by method, in each setting, among these methods only.
        average: average rank by method, the best first.
        accuracy: by method, the mean over the settings of the mean over the seeds.
        absent: the methods that were not run in all of these settings.
    """

    settings: Sequence[Setting]
    rows: Sequence[Row]
    ranks: Mapping[str, Sequence[float]]
    average: Mapping[str, float]
    accuracy: Mapping[str, float]
    absent: Sequence[str]


def accuracies(cell: Cell) -> dict[int, float]:
    """Return accuracy by seed."""
    return {seed: run.accuracy for seed, run in cell.items()}


def summary_of(cell: Cell) -> Summary:
    """Return the mean and spread of a cell's accuracies."""
    return summarise([run.accuracy for run in cell.values()])


def dense_accuracy(table: Table, number: int = 0) -> Summary:
    """Return the accuracy of a table's dense row."""
    return summarise([run.accuracy for run in table.dense[number].runs])


def entries(setting: Setting) -> dict[str, Entry]:
    """Summarise and rank the methods of a setting."""
    values = {name: accuracies(cell) for name, cell in setting.cells.items()}
    summaries = {name: summarise([*seeds.values()]) for name, seeds in values.items()}
    placed = ranks({name: summary.mean for name, summary in summaries.items()})
    first = min(placed, key=lambda name: placed[name])
    found = {}
    for name, summary in summaries.items():
        best = placed[name] == placed[first]
        difference = paired(values[name], values[first])
        close = not best and difference is not None and difference.verdict == "not distinguishable"
        found[name] = Entry(summary, placed[name], best, close)
    return found


def contest(tables: Sequence[Table]) -> Contest | None:
    """Choose methods and settings to rank: all methods were run in all settings, and the cells are as many as possible.

    Returns:
        None where no two methods were run in the same setting.
    """
    settings = [setting for setting in settings_of(tables) if len(setting.cells) > 1]
    if not settings:
        return None
    present = [frozenset(setting.cells) for setting in settings]
    # The methods of every full block are an intersection of settings; those of pairs are enough to find a good one.
    candidates = {one & other for one, other in combinations(dict.fromkeys(present), 2)} | set(present)
    candidates |= {frozenset.intersection(*present)}

    def cells(methods: frozenset[str]) -> tuple[int, int]:
        return len(methods) * sum(methods <= others for others in present), len(methods)

    compared = max(sorted((c for c in candidates if len(c) > 1), key=sorted), key=cells)
    rows = {row.label: row for row in rows_of(tables)}
    names = [name for name in rows if name in compared]
    shared = [setting for setting, own in zip(settings, present, strict=True) if compared <= own]
    means = [{name: fmean(accuracies(setting.cells[name]).values()) for name in names} for setting in shared]
    by_setting = [ranks(own) for own in means]
    average = {name: fmean(own[name] for own in by_setting) for name in names}
    accuracy = {name: fmean(own[name] for own in means) for name in names}
    order = sorted(names, key=lambda name: (round(average[name], 9), -round(accuracy[name], 9)))
    return Contest(
        settings=shared,
        rows=[rows[name] for name in order],
        ranks={name: [own[name] for own in by_setting] for name in order},
        average={name: average[name] for name in order},
        accuracy={name: accuracy[name] for name in order},
        absent=[name for name in rows if name not in compared],
    )


def overall(settings: Sequence[Setting], ours: str, theirs: str) -> Difference | None:
    """Compare two methods over several settings, seed by seed.

    Runs of one seed share their initial weights and the order of the images at every sparsity, so only the seeds are
    independent: each gives one difference, the mean over the settings, for the seeds that all settings have.
    """
    cells = [(accuracies(setting.cells[ours]), accuracies(setting.cells[theirs])) for setting in settings]
    seeds = set.intersection(*({*own} & {*other} for own, other in cells))
    return paired(
        {seed: fmean(own[seed] for own, _ in cells) for seed in seeds},
        {seed: fmean(other[seed] for _, other in cells) for seed in seeds},
    )


def baseline_of(tables: Sequence[Table], asked: str | None) -> dict[int, str]:
    """Choose the row of each table that the others are compared with.

    Args:
        tables: to choose in.
        asked: a method's name or a row's label; None takes "fggp", or else the first row.

    Returns:
        The row's label by the table's number; tables with fewer than two rows have none.

    Raises:
        UsageError: no table has what was asked for.
    """
    wanted = "fggp" if asked is None else asked
    chosen = {}
    found = False
    for number, table in enumerate(tables):
        named = [row for row in table.rows if wanted.lower() in (row.method.lower(), row.label.lower())]
        found |= bool(named)
        if len(table.rows) > 1:
            # Of a method's rows, the one with the default rate, then the one with most runs.
            chosen[number] = max(
                named or table.rows[:1], key=lambda row: (row.rate == default_rate(row.method), len(row.runs))
            ).label
    if asked is not None and not found:
        names = dict.fromkeys(row.method for table in tables for row in table.rows)
        raise UsageError(f"baseline is {asked!r}; it must be a method of the records: {', '.join(names)}")
    return chosen


def differences(table: Table, baseline: str) -> dict[str, dict[float, Difference]]:
    """Compare every other row of a table with the baseline, at each sparsity where they share a seed."""
    base = next(row for row in table.rows if row.label == baseline)
    found: dict[str, dict[float, Difference]] = {}
    for row in table.rows:
        if row.label == baseline:
            continue
        for sparsity, cell in row.cells.items():
            difference = paired(accuracies(cell), accuracies(base.cells.get(sparsity, {})))
            if difference is not None:
                found.setdefault(row.label, {})[sparsity] = difference
    return found
