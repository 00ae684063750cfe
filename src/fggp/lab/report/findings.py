"""What follows from the tables: the methods' ranks, and the differences between them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from fggp.lab.base.errors import UsageError
from fggp.lab.report.statistics import Difference, Summary, paired, ranks, summarise
from fggp.lab.report.tables import Cell, Row, Setting, Table, default_rate, rows_of, settings_of


@dataclass(frozen=True)
class Entry:
    """A method in a setting, on the seeds that the compared methods share.

    Args:
        accuracy: over these seeds.
        rank: among the compared methods of the setting.
        best: whether no other has a higher mean.
        to_best: the paired difference to the best, or to the first of those that tie; None for that one itself.
    """

    accuracy: Summary
    rank: float
    best: bool
    to_best: Difference | None

    @property
    def close(self) -> bool:
        """Whether the method is not the best but cannot be told from it; False where that is unknown."""
        return not self.best and self.to_best is not None and self.to_best.verdict == "not distinguishable"


@dataclass(frozen=True)
class Block:
    """Methods that were all run with all of some seeds in all of some settings.

    Args:
        methods: labels.
        settings: where the methods were run.
        seeds: with which they were run, ascending.
    """

    methods: frozenset[str]
    settings: Sequence[Setting]
    seeds: Sequence[int]


@dataclass(frozen=True)
class Contest:
    """Methods that were all run with the same seeds in the same settings, and their ranks there.

    Args:
        settings: where all methods were run.
        seeds: with which all methods were run in all of these settings; no other seed counts.
        rows: the methods, the best first.
        ranks: by method, in each setting, among these methods only.
        average: average rank by method, the best first.
        accuracy: by method, the mean over the settings of the mean over the seeds.
        absent: the methods that were not run with these seeds in all of these settings.
    """

    settings: Sequence[Setting]
    seeds: Sequence[int]
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


def largest_block(settings: Sequence[Setting]) -> Block | None:
    """Choose the methods, settings and seeds to compare, so that every method has every run.

    Means over different seeds differ by luck too, so only these runs are ranked.

    Returns:
        The largest such block that intersections of pairs give; None where no two methods share a setting and a seed.
    """
    present: dict[int, dict[int, frozenset[str]]] = {}  # the methods, by setting's number and seed
    for number, setting in enumerate(settings):
        seeds = {seed for cell in setting.cells.values() for seed in cell}
        present[number] = {
            seed: frozenset(name for name, cell in setting.cells.items() if seed in cell) for seed in sorted(seeds)
        }
    every = list(dict.fromkeys(methods for by_seed in present.values() for methods in by_seed.values()))
    # The methods of every full block are an intersection of these; those of pairs are enough to find a good one.
    candidates = {one & other for one, other in combinations(every, 2)} | set(every)
    if every:
        candidates.add(frozenset.intersection(*every))
    best: tuple[int, int, Block] | None = None
    for methods in sorted((c for c in candidates if len(c) > 1), key=sorted):
        own = {
            number: frozenset(seed for seed, others in by_seed.items() if methods <= others)
            for number, by_seed in present.items()
        }
        shared = {seeds for seeds in own.values() if seeds}
        shared |= {one & other for one, other in combinations(sorted(shared, key=sorted), 2) if one & other}
        for chosen in sorted(shared, key=sorted):
            where = [settings[number] for number, seeds in own.items() if chosen <= seeds]
            size = len(methods) * len(where) * len(chosen), len(methods)
            if best is None or size > best[:2]:
                best = (*size, Block(methods, where, sorted(chosen)))
    return None if best is None else best[2]


def on_shared_seeds(table: Table) -> Table:
    """Reduce a table to what can be compared: in each column, the methods' runs with the seeds that they share.

    A method that lacks these seeds in a column keeps its runs there; `entries` does not rank it.
    """
    kept: dict[float, Block] = {}
    for sparsity in table.sparsities:
        block = largest_block([Setting(table, sparsity)])
        if block is not None:
            kept[sparsity] = block

    def reduced(row: Row, sparsity: float, cell: Cell) -> Cell:
        block = kept.get(sparsity)
        return cell if block is None or row.label not in block.methods else {seed: cell[seed] for seed in block.seeds}

    rows = [replace(row, cells={s: reduced(row, s, cell) for s, cell in row.cells.items()}) for row in table.rows]
    return replace(table, rows=rows)


def entries(setting: Setting) -> dict[str, Entry]:
    """Summarise and rank the methods of a setting on the seeds that they share; a method without them has no entry."""
    block = largest_block([setting])
    if block is None:
        return {}
    values = {
        name: {seed: cell[seed].accuracy for seed in block.seeds}
        for name, cell in setting.cells.items()
        if name in block.methods
    }
    summaries = {name: summarise([*seeds.values()]) for name, seeds in values.items()}
    placed = ranks({name: summary.mean for name, summary in summaries.items()})
    first = min(placed, key=lambda name: placed[name])
    return {
        name: Entry(
            accuracy=summary,
            rank=placed[name],
            best=placed[name] == placed[first],
            to_best=None if name == first else paired(values[name], values[first]),
        )
        for name, summary in summaries.items()
    }


def contest(tables: Sequence[Table]) -> Contest | None:
    """Rank the methods on the largest block of runs that they share.

    Returns:
        None where no two methods were run in the same setting with the same seed.
    """
    block = largest_block(settings_of(tables))
    if block is None:
        return None
    rows = {row.label: row for row in rows_of(tables)}
    names = [name for name in rows if name in block.methods]
    means = [
        {name: fmean(setting.cells[name][seed].accuracy for seed in block.seeds) for name in names}
        for setting in block.settings
    ]
    by_setting = [ranks(own) for own in means]
    average = {name: fmean(own[name] for own in by_setting) for name in names}
    accuracy = {name: fmean(own[name] for own in means) for name in names}
    order = sorted(names, key=lambda name: (round(average[name], 9), -round(accuracy[name], 9)))
    return Contest(
        settings=block.settings,
        seeds=block.seeds,
        rows=[rows[name] for name in order],
        ranks={name: [own[name] for own in by_setting] for name in order},
        average={name: average[name] for name in order},
        accuracy={name: accuracy[name] for name in order},
        absent=[name for name in rows if name not in block.methods],
    )


def overall(
    settings: Sequence[Setting], ours: str, theirs: str, among: Collection[int] | None = None
) -> Difference | None:
    """Compare two methods over several settings, seed by seed.

    Runs of one seed share their initial weights and the order of the images at every sparsity, so only the seeds are
    independent: each gives one difference, the mean over the settings, for the seeds that all settings have.

    Args:
        settings: where both were run.
        ours, theirs: labels; the latter is subtracted.
        among: the seeds to use; None uses all that both methods have.
    """
    cells = [(accuracies(setting.cells[ours]), accuracies(setting.cells[theirs])) for setting in settings]
    seeds = set.intersection(*({*own} & {*other} for own, other in cells))
    if among is not None:
        seeds &= {*among}
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
