"""The report as Markdown."""

from collections.abc import Iterable, Mapping, Sequence

from fggp.lab.report.findings import (
    Contest,
    Entry,
    dense_accuracy,
    differences,
    entries,
    overall,
    summary_of,
)
from fggp.lab.report.records import Loaded
from fggp.lab.report.runs import Run, Split, shared_settings
from fggp.lab.report.statistics import Difference, Summary
from fggp.lab.report.style import Picture
from fggp.lab.report.tables import (
    SPARSE_THROUGHOUT_MARK,
    Setting,
    Table,
    differing_settings,
    percent,
    settings_of,
)
from fggp.lab.report.wording import count_of, headline, interval_of, listed, mean_std, signed

IMAGES: dict[Split, str] = {"test": "test images", "validation": "training images that were held out,"}
HOW_TO_READ = (
    "Accuracy is on the {images} after the last epoch, in percent: mean ± standard deviation (n − 1) over the seeds. "
    "The number of seeds is in brackets; – means that one seed has no deviation.",
    "Methods are compared on the seeds that they share; a cell with a rank has the mean over these. More seeds of a "
    "method appear in the paired differences only. A method that lacks the shared seeds has no rank.",
    "Bold is the highest mean of a column; dense is the unpruned network. ≈ marks what cannot be told from the "
    "highest: the 95 % confidence interval of the paired difference holds zero. # is the rank in a column.",
    "Ranks go by mean accuracy, 1 is best; ties share the average of their ranks.",
    "Differences are paired, seed by seed: mean, 95 % confidence interval (Student's t), number of pairs. Each "
    "interval is for one comparison alone: of twenty intervals, about one misses the truth by chance. Averaged over "
    "settings, a seed gives one difference, the mean of its differences in the settings, because runs of one seed are "
    "not independent.",
    "Sparsity is the share of the prunable weights that is zero.",
)


def render(
    loaded: Loaded,
    tables: Sequence[Table],
    ranking: Contest | None,
    baselines: Mapping[int, str],
    pictures: Sequence[Picture],
) -> str:
    """Return the report's text; it names pictures by file, in the same folder.

    Args:
        loaded: the records.
        tables: of the runs.
        ranking: of the methods, None where none can be ranked.
        baselines: labels by the table's number.
        pictures: of the tables.
    """
    by = loaded.runs[0].by
    parts = [
        "# Pruning methods compared",
        f"**{escape(title(by, tables, ranking))}**",
        escape(_summary(loaded, tables)),
    ]
    for number, table in enumerate(tables):
        parts += _section(table, baselines.get(number, ""), [p for p in pictures if p.table == number])
    if ranking is not None:
        parts += _ranks(ranking, baselines, [picture for picture in pictures if picture.kind == "ranks"])
    parts += ["## How to read this", _list(line.format(images=IMAGES[by]) for line in HOW_TO_READ)]
    if loaded.notes:
        parts += ["## Left out", _list(loaded.notes)]
    return "\n\n".join(part for part in parts if part) + "\n"


def title(by: Split, tables: Sequence[Table], ranking: Contest | None) -> str:
    """Return the headline, which says by which accuracy it is if not by test accuracy."""
    return ("" if by == "test" else "By validation accuracy: ") + headline(tables, ranking)


def _summary(loaded: Loaded, tables: Sequence[Table]) -> str:
    runs = loaded.runs
    methods = len({run.method for run in runs if not run.dense})
    devices = list(dict.fromkeys(str(run.record["device"]) for run in runs if run.record.get("device")))
    dates = sorted({str(run.record["date"])[:10] for run in runs if run.record.get("date")})
    facts = [
        count_of(len(runs), "run"),
        count_of(methods, "method") + (" and dense" if any(run.dense for run in runs) else ""),
        count_of(len(settings_of(tables)), "setting"),
        count_of(len({run.seed for run in runs}), "seed"),
        *(devices if len(devices) < 4 else [f"{len(devices)} devices"]),
        " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]])),
    ]
    return " · ".join(fact for fact in facts if fact)


def _section(table: Table, baseline: str, pictures: Sequence[Picture]) -> list[str]:
    drawn = {kind: [_picture(p) for p in pictures if p.kind == kind] for kind in ("accuracy", "differences")}
    others = [_picture(picture) for picture in pictures if picture.kind not in drawn]
    parts = [f"## {escape(table.title)}", *drawn["accuracy"], accuracy_table(table, baseline)]
    parts.append(_list(_remarks(table, baseline)))
    found = differences(table, baseline) if baseline else {}
    if found:
        body = [[escape(name), *(_difference(own.get(s)) for s in table.sparsities)] for name, own in found.items()]
        head = [f"minus {escape(baseline)}", *map(_sparsity_head, table.sparsities)]
        parts += ["### Paired differences", *drawn["differences"], _table(head, body)]
    return [*parts, *others]


def accuracy_table(table: Table, baseline: str) -> str:
    """Return the means over the seeds that a column's methods share, methods down and sparsities across.

    Rates that were only tried out are not ranked, and neither is a method alone.
    """
    head = ["method", *(map(_sparsity_head, table.sparsities) if table.rows else ["accuracy"])]
    ranked = {s: entries(Setting(table.without_sweeps(baseline), s)) for s in table.sparsities}
    body = [
        [escape(row.label), *[_accuracy(dense_accuracy(table, number))] * (len(head) - 1)]
        for number, row in enumerate(table.dense)
    ]
    for row in table.rows:
        cells = [""] * len(table.sparsities)
        for column, sparsity in enumerate(table.sparsities):
            if sparsity in row.cells:
                entry = ranked[sparsity].get(row.label)
                cells[column] = _accuracy(entry.accuracy if entry else summary_of(row.cells[sparsity]), entry)
        body.append([escape(row.label), *cells])
    return _table(head, body)


def _sparsity_head(sparsity: float) -> str:
    return f"{percent(sparsity)} sparsity"


def _accuracy(accuracy: Summary, entry: Entry | None = None) -> str:
    if entry is None:
        return f"{mean_std(accuracy)} ({accuracy.count})"
    text = f"**{mean_std(accuracy)}**" if entry.best else mean_std(accuracy)
    return f"{text} ({accuracy.count}){' ≈' * entry.close} #{entry.rank:g}"


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    verdict = "" if difference.verdict == "unknown" else f", {difference.verdict}"
    return f"{signed(difference.mean)} [{interval_of(difference)}] ({difference.pairs}){verdict}"


def _remarks(table: Table, baseline: str) -> list[str]:
    remarks = []
    if table.without_sweeps(baseline) is not table:
        remarks.append("Other rates than the default, tried out here, are not ranked.")
    if any(row.label.endswith(SPARSE_THROUGHOUT_MARK) for row in table.rows):
        remarks.append("† at its final sparsity from the start; such a row stands in the table of every start.")
    if any(not run.settings for row in (*table.dense, *table.rows) for run in row.runs):
        remarks.append("Not all records hold settings, so whether all runs were trained equally cannot be told.")
    for name, labels in differing_settings(table).items():
        values = "; ".join(f"{value} for {listed(own)}" for value, own in labels.items())
        remarks.append(f"Not the same for all: {name} is {values}.")
    return remarks


def _ranks(ranking: Contest, baselines: Mapping[int, str], pictures: Sequence[Picture]) -> list[str]:
    names = list(ranking.average)
    body = [
        [escape(setting.title), *(f"{ranking.ranks[name][number]:g}" for name in names)]
        for number, setting in enumerate(ranking.settings)
    ]
    body.append(["**average**", *(f"**{ranking.average[name]:.2f}**" for name in names)])
    # With one setting, its table of differences has the same figures.
    ranked_baselines = [name for name in baselines.values() if name in names and len(ranking.settings) > 1]
    if ranked_baselines:
        baseline = ranked_baselines[0]
        own = [None if name == baseline else overall(ranking.settings, name, baseline, ranking.seeds) for name in names]
        body.append([f"minus {escape(baseline)}, on average", *map(_difference, own)])
    seeds = f"seed{'s' * (len(ranking.seeds) != 1)} {listed([*map(str, ranking.seeds)])}"
    remark = f"Averaged over {count_of(len(ranking.settings), 'setting')} in which all of these were run with {seeds}."
    if ranking.absent:
        were = "was" if len(ranking.absent) == 1 else "were"
        remark += f" {listed(ranking.absent)} {were} not, and {were} left out of these ranks."
    return ["## Ranks", *map(_picture, pictures), _table(["setting", *map(escape, names)], body), escape(remark)]


def render_runs(runs: Sequence[Run], tables: Sequence[Table]) -> str:
    """Return a table of all runs, and the settings that all of them share."""
    labels = {id(run): row.label for table in tables for row in (*table.dense, *table.rows) for run in row.runs}
    columns = {
        "run": [run.name for run in runs],
        "data": [run.data for run in runs],
        "model": [run.model for run in runs],
        "method": [labels[id(run)] for run in runs],
        "sparsity": [percent(run.sparsity) for run in runs],
        "start": [percent(run.init_sparsity) for run in runs],
        "epochs": ["–" if run.epochs is None else str(run.epochs) for run in runs],
        "seed": [str(run.seed) for run in runs],
        "test, %": [f"{run.test_accuracy:.2f}" for run in runs],
        "validation, %": ["–" if run.val_accuracy is None else f"{run.val_accuracy:.2f}" for run in runs],
    }
    shown = {name: cells for name, cells in columns.items() if name == "run" or len(set(cells)) > 1}
    parts = [_table(list(shown), [list(map(escape, cells)) for cells in zip(*shown.values(), strict=True)])]
    shared = {name: value for name, value in shared_settings(runs).items() if value is not None}
    if shared:
        parts.append(escape(f"All runs share: {', '.join(f'{name} {value}' for name, value in shared.items())}."))
    return "\n\n".join(parts)


def _picture(picture: Picture) -> str:
    return f"![{escape(picture.title)}]({picture.name}.png)\n\n*{escape(picture.caption)}*"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


def escape(text: str) -> str:
    """Escape every character that means something in Markdown, in a table too."""
    for character in "\\`*_[]<>|#":
        text = text.replace(character, f"\\{character}")
    return " ".join(text.split())
