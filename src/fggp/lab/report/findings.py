"""What follows from the tables: who ranks where, and by how much methods differ."""

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
        accuracy: what is compared, over the seeds.
        rank: among the methods of the setting.
        best: whether no other has a higher mean.
        close: whether the paired difference to the best cannot be told from none; False where nothing is known.
    """

    accuracy: Summary
    rank: float
    best: bool
    close: bool


@dataclass(frozen=True)
class Contest:
    """The settings that methods can be ranked over: all of these methods meet in all of these settings.

    Args:
        settings: where they meet.
        rows: the methods, the best first.
        ranks: by method, in each of the settings, among these methods only.
        average: of these ranks, the best method first.
        accuracy: the mean over the settings of the mean over seeds, by method.
        absent: the methods that are not in all of these settings.
    """

    settings: Sequence[Setting]
    rows: Sequence[Row]
    ranks: Mapping[str, Sequence[float]]
    average: Mapping[str, float]
    accuracy: Mapping[str, float]
    absent: Sequence[str]


def accuracies(cell: Cell) -> dict[int, float]:
    """Accuracy by seed."""
    return {seed: run.accuracy for seed, run in cell.items()}


def dense_accuracy(table: Table, number: int = 0) -> Summary:
    """Accuracy of a table's dense row."""
    return summarise([run.accuracy for run in table.dense[number].runs])


def entries(setting: Setting) -> dict[str, Entry]:
    """Summarise and rank the methods of a setting."""
    values = {name: accuracies(cell) for name, cell in setting.cells.items()}
    summaries = {name: summarise([*own.values()]) for name, own in values.items()}
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
    """Find what can be ranked: of all blocks of methods that meet in all of some settings, the one with most cells.

    Returns:
        None where no two methods meet.
    """
    settings = [setting for setting in settings_of(tables) if len(setting.cells) > 1]
    if not settings:
        return None
    present = [frozenset(setting.cells) for setting in settings]
    # Every block of full settings is closed under intersection; pairs of settings are enough to find a good one.
    candidates = {one & other for one, other in combinations(dict.fromkeys(present), 2)} | set(present)
    candidates |= {frozenset.intersection(*present)}

    def cells(methods: frozenset[str]) -> tuple[int, int]:
        meetings = sum(methods <= own for own in present)
        return len(methods) * meetings, len(methods)

    compared = max(sorted((c for c in candidates if len(c) > 1), key=sorted), key=cells)
    names = [row.label for row in rows_of(tables) if row.label in compared]
    met = [setting for setting, own in zip(settings, present, strict=True) if compared <= own]
    means = [{name: fmean(accuracies(setting.cells[name]).values()) for name in names} for setting in met]
    by_setting = [ranks(own) for own in means]
    average = {name: fmean(own[name] for own in by_setting) for name in names}
    accuracy = {name: fmean(own[name] for own in means) for name in names}
    order = sorted(names, key=lambda name: (round(average[name], 9), -round(accuracy[name], 9)))
    return Contest(
        settings=met,
        rows=sorted((row for row in rows_of(tables) if row.label in compared), key=lambda row: order.index(row.label)),
        ranks={name: [own[name] for own in by_setting] for name in order},
        average={name: average[name] for name in order},
        accuracy={name: accuracy[name] for name in order},
        absent=[row.label for row in rows_of(tables) if row.label not in compared],
    )


def overall(settings: Sequence[Setting], ours: str, theirs: str) -> Difference | None:
    """Compare two methods over several settings, a seed at a time.

    Runs of one seed share their initial weights and the order of the images, whatever the sparsity, so it is the seeds
    that are independent: each gives one difference, the mean over the settings, for the seeds that all settings have.
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
        Its label, by the table's number; tables with fewer than two rows have none.

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
            chosen[number] = max(named or table.rows[:1], key=_usual).label
    if asked is not None and not found:
        names = dict.fromkeys(row.method for table in tables for row in table.rows)
        raise UsageError(f"baseline is {asked!r}; it must be a method of the records: {', '.join(names)}")
    return chosen


def _usual(row: Row) -> tuple[bool, int]:
    """Of a method's rows, the one with its default rate and with most runs stands for it."""
    return row.rate == default_rate(row.method), len(row.runs)


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
