"""All that a report says, in words and numbers ready to show: what console, Markdown and page have in common."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fggp.lab.report.canvas import Picture
from fggp.lab.report.findings import Contest, Entry, accuracies, dense_accuracy, differences, entries, overall
from fggp.lab.report.looks import Look
from fggp.lab.report.records import Loaded
from fggp.lab.report.runs import By, Run
from fggp.lab.report.statistics import Difference, summarise
from fggp.lab.report.tables import CONSTANT, Row, Setting, Table, differing, percent, settings_of
from fggp.lab.report.wording import headline, interval_of, listed, mean_std, rank_text, signed


@dataclass(frozen=True)
class Accuracy:
    """A cell of the main table."""

    text: str
    seeds: int
    rank: str = ""
    best: bool = False
    close: bool = False


@dataclass(frozen=True)
class Compared:
    """A cell of the table of differences."""

    text: str
    interval: str
    pairs: int
    verdict: str


@dataclass(frozen=True)
class Line:
    """A method's cells, None where it was not run."""

    label: str
    look: Look
    cells: Sequence[Accuracy | None]


@dataclass(frozen=True)
class ComparedLine:
    """A method's differences to the baseline, None where they share no seed."""

    label: str
    look: Look
    cells: Sequence[Compared | None]


@dataclass(frozen=True)
class Section:
    """What is said of a table.

    Args:
        title: of the table.
        columns: its sparsities.
        lines: its methods.
        dense: what not pruning reaches, by label.
        baseline: what ``differences`` are to.
        differences: of the other methods; empty where there is nothing to compare.
        remarks: what to keep in mind about it.
        pictures: drawn of it.
    """

    title: str
    columns: Sequence[str]
    lines: Sequence[Line]
    dense: Mapping[str, Accuracy]
    baseline: str
    differences: Sequence[ComparedLine]
    remarks: Sequence[str]
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Ranks:
    """Ranks in each setting, and their averages.

    Args:
        methods: with their looks, the best first.
        settings: title and ranks of each.
        averages: of the ranks.
        baseline: what ``differences`` are to; empty where there are none.
        differences: of mean accuracies over the settings, for each method; None for the baseline itself.
        remark: what they are averaged over.
        pictures: drawn of them.
    """

    methods: Mapping[str, Look]
    settings: Sequence[tuple[str, Sequence[str]]]
    averages: Sequence[str]
    baseline: str
    differences: Sequence[Compared | None]
    remark: str
    pictures: Sequence[Picture]


@dataclass(frozen=True)
class Content:
    """A report, by test or by validation accuracy."""

    by: By
    headline: str
    summary: Sequence[str]
    sections: Sequence[Section]
    ranks: Ranks | None
    notes: Sequence[str]
    runs: Sequence[Run]
    looks: Mapping[str, Look]
    labels: Mapping[int, str]


def compose(
    loaded: Loaded,
    tables: Sequence[Table],
    ranking: Contest | None,
    baselines: Mapping[int, str],
    looks: Mapping[str, Look],
    pictures: Sequence[Picture],
) -> Content:
    """Put a report together.

    Args:
        loaded: what was read.
        tables: of its runs.
        ranking: of their methods, None where none can be ranked.
        baselines: by the table's number.
        looks: by label.
        pictures: as they were drawn.
    """
    sections = [
        _section(table, baselines.get(number, ""), looks, [p for p in pictures if p.table == number])
        for number, table in enumerate(tables)
    ]
    by = loaded.runs[0].by
    return Content(
        by=by,
        headline=("" if by == "test" else "By validation accuracy: ") + headline(tables, ranking),
        summary=_summary(loaded, tables),
        sections=sections,
        ranks=None
        if ranking is None
        else _ranks(ranking, baselines, looks, [p for p in pictures if p.kind == "ranks"]),
        notes=loaded.notes,
        runs=loaded.runs,
        looks=looks,
        labels={id(run): row.label for table in tables for row in (*table.dense, *table.rows) for run in row.runs},
    )


def _summary(loaded: Loaded, tables: Sequence[Table]) -> list[str]:
    runs = loaded.runs
    methods = len({run.method for run in runs if not run.dense})
    seeds = len({run.seed for run in runs})
    facts = [
        _count(len(runs), "run"),
        _count(methods, "method") + (" and dense" if any(run.dense for run in runs) else ""),
        _count(len(settings_of(tables)), "setting"),
        _count(seeds, "seed"),
    ]
    devices = dict.fromkeys(str(run.record["device"]) for run in runs if run.record.get("device"))
    dates = sorted({str(run.record["date"])[:10] for run in runs if run.record.get("date")})
    facts += list(devices) if len(devices) < 4 else [f"{len(devices)} devices"]
    if dates:
        facts.append(dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}")
    return facts


def _section(table: Table, baseline: str, looks: Mapping[str, Look], pictures: Sequence[Picture]) -> Section:
    columns = table.sparsities
    ranked = table.without_sweeps(baseline)
    by_setting = {sparsity: entries(Setting(ranked, sparsity)) for sparsity in columns}
    lines = [
        Line(row.label, looks[row.label], [_accuracy(row, sparsity, by_setting[sparsity]) for sparsity in columns])
        for row in table.rows
    ]
    compared = differences(table, baseline) if baseline else {}
    return Section(
        title=table.title,
        columns=[percent(sparsity) for sparsity in columns],
        lines=lines,
        dense={
            row.label: Accuracy(mean_std(dense_accuracy(table, number)), len(row.runs))
            for number, row in enumerate(table.dense)
        },
        baseline=baseline,
        differences=[
            ComparedLine(name, looks[name], [_compared(own.get(sparsity)) for sparsity in columns])
            for name, own in compared.items()
        ],
        remarks=[
            *(["Other rates than the default, tried out here, are not ranked."] * (ranked is not table)),
            *_remarks(table),
        ],
        pictures=pictures,
    )


def _accuracy(row: Row, sparsity: float, ranked: Mapping[str, Entry]) -> Accuracy | None:
    """A cell of the main table; rates that were only tried out are not ranked."""
    if sparsity not in row.cells:
        return None
    accuracy = summarise([*accuracies(row.cells[sparsity]).values()])
    entry = ranked.get(row.label)
    if entry is None or len(ranked) < 2:
        return Accuracy(mean_std(accuracy), accuracy.count)
    return Accuracy(mean_std(accuracy), accuracy.count, rank_text(entry.rank), entry.best, entry.close)


def _compared(difference: Difference | None) -> Compared | None:
    if difference is None:
        return None
    verdict = "" if difference.verdict == "unknown" else difference.verdict
    return Compared(signed(difference.mean), interval_of(difference), difference.pairs, verdict)


def _remarks(table: Table) -> list[str]:
    remarks = []
    if any(row.label.endswith(CONSTANT) for row in table.rows):
        remarks.append("† as sparse as in the end from the start on; such rows stand beside those of every start.")
    if any(not run.settings for row in (*table.dense, *table.rows) for run in row.runs):
        remarks.append("Not all records hold settings, so whether all runs were trained alike cannot be told.")
    for name, values in differing(table).items():
        told = "; ".join(f"{value} for {listed(labels)}" for value, labels in values.items())
        remarks.append(f"Not the same for all: {name} is {told}.")
    return remarks


def _ranks(
    ranking: Contest, baselines: Mapping[int, str], looks: Mapping[str, Look], pictures: Sequence[Picture]
) -> Ranks:
    names = list(ranking.average)
    # With one setting, its table of differences says it all.
    told = [name for name in baselines.values() if name in names and len(ranking.settings) > 1]
    baseline = told[0] if told else ""
    remark = f"Averaged over {_count(len(ranking.settings), 'setting')} in which all of these were run."
    if ranking.absent:
        were = "was" if len(ranking.absent) == 1 else "were"
        remark += f" {listed(ranking.absent)} {were} not, and {were} left out of these ranks."
    return Ranks(
        methods={name: looks[name] for name in names},
        settings=[
            (setting.title, [rank_text(ranking.ranks[name][number]) for name in names])
            for number, setting in enumerate(ranking.settings)
        ],
        averages=[f"{ranking.average[name]:.2f}" for name in names],
        baseline=baseline,
        differences=[
            None if name == baseline else _compared(overall(ranking.settings, name, baseline))
            for name in names
            if baseline
        ],
        remark=remark,
        pictures=[picture for picture in pictures if picture.kind == "ranks"],
    )


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"
