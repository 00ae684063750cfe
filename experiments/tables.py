"""Write the CPU studies' tables into README.md and docs/results.md, computed from the records in results/.

    python experiments/tables.py            replaces every table between <!-- table: NAME --> and <!-- end -->
    python experiments/tables.py --check    changes nothing; names the pages whose tables are stale, and exits with 1

Differences are paired by seed and carry Student's 95 % interval, as in `fggp report`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fggp.lab.report.findings import accuracies, differences, overall
from fggp.lab.report.records import load
from fggp.lab.report.runs import Split
from fggp.lab.report.statistics import Difference, summarise
from fggp.lab.report.tables import Row, Setting, Table, percent, tabulate
from fggp.lab.report.wording import interval_of, mean_std, signed

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/results.md")
FGGP = "FGGP (r = 0.5)"
STUDY_ROWS = {
    FGGP: "**FGGP** (r = 0.5)",
    "magnitude-first": "magnitude first, r = 0.5",
    "magnitude-first-annealed": "magnitude first, r annealed to 0.005",
    "gradient-first-annealed": "gradient first, r annealed to 0.005",
    "gradient-only": "gradient only",
    "GMP": "GMP: magnitude only",
    "GraNet": "GraNet",
    "RigL †": "RigL †",
}
VARIANT_ROWS = {
    "mean-gradient": "`MeanGradient`: \\|mean of g\\| over about 10 steps",
    "running-gradient": "`RunningGradient`: mean of \\|g\\| over about 10 steps",
    "adam-step": "`AdamStep`: mean g over its root mean square, as Adam's step",
    "layer-scaled": "`LayerScaled`: \\|g\\| over its root mean square in the layer",
    "growth-first": "`GrowthFirst`: step 1 spares weights that grow",
    "annealed-up": "`AnnealedUp`: r rises from 0.25 to 0.75",
    "fggp-regrown": "`FGGPRegrown`: FGGP's chain, then GraNet's drop and regrow",
    "fisher-second": "`FisherSecond`: step 2 by θ²·E[g²]",
    "fisher-only": "`FisherOnly`: θ²·E[g²] alone",
    "random-first": "`RandomFirst`, the random-first control: step 1 spares at random",
    "GMP": "GMP",
}
HIGH_SPARSITIES = (0.95, 0.98)
CONTROL = "random-first"
SUMMARY_ROWS = {
    FGGP: "**FGGP**",
    "magnitude-first": "magnitude first: FGGP's two steps swapped",
    CONTROL: "random-first control: spares a random half",
    "GraNet": "GraNet: GMP that also drops and regrows weights",
    "GMP": "GMP: gradual magnitude pruning",
}
CHOICE_SEEDS, FRESH_SEEDS = (0, 1), (2, 3, 4)
"""Seeds whose held-out accuracy chooses a variant, and seeds that have no part in the choice."""
MODEL_NAMES = {"resnet20": "ResNet-20", "vgg19": "VGG-19"}
STUDIES_WITH_CONTROL = {
    ("cpu-study", "variants"): "",
    ("cpu-long",): "",
    ("cpu-vgg19",): "",
    ("ends",): ", first and last layer dense",
}
"""The studies that are compared with the control, and a note for their rows."""


def tables_of(*studies: str, by: Split = "test") -> list[Table]:
    """Return the tables of studies in results/, as `fggp report` makes them."""
    return tabulate(load([ROOT / "results" / study / "records.jsonl" for study in studies], by).runs)


def has_row(table: Table, label: str) -> bool:
    """Return whether the table has a row with this label."""
    return any(label in _labels(row) for row in table.rows)


def row_of(table: Table, label: str) -> Row:
    """Return the row with this label."""
    return next(row for row in table.rows if label in _labels(row))


def _labels(row: Row) -> tuple[str, str]:
    """A row's label, with and without the usual rate."""
    return row.label, row.label.removesuffix(" (r = 0.5)")


def with_seeds(table: Table, seeds: Iterable[int]) -> Table:
    """Return the table reduced to the runs with these seeds."""
    wanted = {*seeds}
    rows = [
        replace(row, cells={s: {n: run for n, run in cell.items() if n in wanted} for s, cell in row.cells.items()})
        for row in table.rows
    ]
    return replace(table, rows=rows)


def mean_of(row: Row, sparsity: float, usual: int = 3) -> str:
    """Format mean ± standard deviation, and the number of runs if it is not the usual one."""
    found = summarise([*accuracies(row.cells[sparsity]).values()])
    return mean_std(found) + (f" ({found.count})" if found.count != usual else "")


def difference_text(found: Difference | None, usual: int = 3) -> str:
    """Format a paired difference with its interval, and the number of pairs if it is not the usual one."""
    if found is None:
        return ""
    return f"{signed(found.mean)} [{interval_of(found)}]" + (f" ({found.pairs})" if found.pairs != usual else "")


def average_difference(table: Table, sparsities: Iterable[float], ours: str, theirs: str = FGGP) -> Difference | None:
    """Return the difference of two methods, averaged over sparsities."""
    return overall([Setting(table, s) for s in sparsities], row_of(table, ours).label, row_of(table, theirs).label)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|".join(["", *(f" {cell} " if cell else " " for cell in line), ""]) for line in lines)


def summary() -> str:
    """The study in short, for the README: dense, FGGP, GMP and three others."""
    (table, *_), dense = tables_of("cpu-study", "variants"), tables_of("cpu-study")[0].dense[0]
    columns = (0.9, *HIGH_SPARSITIES)
    lines = []
    for label, name in SUMMARY_ROWS.items():
        row = row_of(table, label)
        cells = [mean_of(row, s) if s in row.cells else "" for s in columns]
        lines.append(
            [name, *cells, "" if label == FGGP else difference_text(average_difference(table, HIGH_SPARSITIES, label))]
        )
    head = ["sparsity", *map(percent, columns), "difference to FGGP [confidence interval]"]
    return markdown(head, [["dense: no pruning, 0 %", mean_of(dense, 0.0), "", "", ""], *lines])


def study() -> str:
    """Every method's accuracy at every sparsity."""
    table = tables_of("cpu-study")[0]
    columns = table.sparsities
    rows = {label: row_of(table, label) for label in STUDY_ROWS}
    best = {
        s: max(rows, key=lambda label: summarise([*accuracies(rows[label].cells[s]).values()]).mean) for s in columns
    }

    def cell(label: str, s: float) -> str:
        text = mean_of(rows[label], s)
        return re.sub(r"^(.*?)( \(\d\))?$", r"**\1**\2", text) if best[s] == label else text

    lines = [
        [
            name,
            *(cell(label, s) for s in columns),
            "" if label == FGGP else difference_text(average_difference(table, columns, label)),
        ]
        for label, name in STUDY_ROWS.items()
    ]
    dense = ["dense", mean_of(table.dense[0], 0.0), "", "", ""]
    return markdown(
        ["", *map(percent, columns), "difference to FGGP, average of the three, seeds 0 to 2"], [dense, *lines]
    )


def study_differences() -> str:
    """Every method's difference to FGGP at every sparsity."""
    table = tables_of("cpu-study")[0]
    found = differences(table, FGGP)
    rows = [
        [
            name,
            *(difference_text(found[label][s]) for s in table.sparsities),
            difference_text(average_difference(table, HIGH_SPARSITIES, label)),
        ]
        for label, name in STUDY_ROWS.items()
        if label != FGGP
    ]
    head = ["difference to FGGP [95 % confidence interval]", *map(percent, table.sparsities), "95 and 98 %, average"]
    return markdown(head, rows)


def rates() -> str:
    """Accuracy at every rate r, over the seeds that all rates share."""
    rows = [row for row in tables_of("cpu-study")[0].rows if row.method == "fggp"]
    seeds = sorted(set.intersection(*({*row.cells[0.95]} for row in rows)))
    runs = {row.rate: [row.cells[0.95][seed] for seed in seeds] for row in rows}
    return markdown(
        ["r", *(f"{rate:g}" for rate in runs)],
        [
            ["held out", *(mean_std(summarise([run.val_accuracy or 0.0 for run in own])) for own in runs.values())],
            ["test", *(mean_std(summarise([run.test_accuracy for run in own])) for own in runs.values())],
        ],
    )


def variants() -> str:
    """Every variant's difference to FGGP: on the seeds of the choice, on fresh seeds, on all."""
    held_out = tables_of("cpu-study", "variants", by="validation")[0]
    test = tables_of("cpu-study", "variants")[0]
    rows = []
    for label, name in VARIANT_ROWS.items():
        first = (
            average_difference(with_seeds(held_out, CHOICE_SEEDS), HIGH_SPARSITIES, label),
            average_difference(with_seeds(test, CHOICE_SEEDS), HIGH_SPARSITIES, label),
        )
        fresh, every = (
            average_difference(with_seeds(test, FRESH_SEEDS), HIGH_SPARSITIES, label),
            average_difference(test, HIGH_SPARSITIES, label),
        )
        seeds = every.pairs if every else 0
        chosen = [signed(found.mean) if found else "" for found in first]
        rows.append(
            [name, *chosen, difference_text(fresh, len(FRESH_SEEDS)), difference_text(every, seeds), str(seeds)]
        )
    head = [
        "difference to FGGP",
        "held out, seeds 0, 1",
        "test, seeds 0, 1",
        "test, seeds 2 to 4 [95 % interval]",
        "test, all seeds [95 % interval]",
        "seeds",
    ]
    return markdown(head, rows)


def vgg19() -> str:
    """VGG-19's accuracy, one run in each cell."""
    (table,) = tables_of("cpu-vgg19")
    names = {"FGGP": "FGGP", "random-first": "random-first control", "GMP": "GMP", "GraNet": "GraNet"}
    own = {"dense": table.dense[0], **{name: row_of(table, label) for label, name in names.items()}}
    runs = {name: {run.seed: run.accuracy for run in row.runs} for name, row in own.items()}
    seeds = sorted({seed for found in runs.values() for seed in found})
    return markdown(
        ["98 %", *(f"seed {seed}" for seed in seeds)],
        [[name, *(f"{found[seed]:.2f}" if seed in found else "" for seed in seeds)] for name, found in runs.items()],
    )


def control() -> str:
    """FGGP, the control that spares weights at random, and GMP, in every setting that they share."""
    rows = [
        _control_row(table, sparsity, note)
        for studies, note in STUDIES_WITH_CONTROL.items()
        for table in reversed(tables_of(*studies))
        if table.start == 0
        for sparsity in row_of(table, "GMP").cells
        if not has_row(table, CONTROL) or sparsity in row_of(table, CONTROL).cells
    ]
    head = ["", "sparsity", "seeds", "FGGP", "random-first control", "GMP", "control − FGGP", "GMP − FGGP"]
    return markdown(head, rows)


def _control_row(table: Table, sparsity: float, note: str) -> list[str]:
    """One setting's accuracies, and differences to FGGP."""
    labels = [label for label in ("FGGP", CONTROL, "GMP") if has_row(table, label)]
    seeds = len(row_of(table, "FGGP").cells[sparsity])
    means = {label: mean_of(row_of(table, label), sparsity, seeds) for label in labels}
    differences_to_fggp = {
        label: difference_text(average_difference(table, [sparsity], label, "FGGP"), seeds) for label in labels[1:]
    }
    setting = f"{MODEL_NAMES[table.model]}, {table.epochs} epochs{note}"
    three = (means.get(label, "") for label in ("FGGP", CONTROL, "GMP"))
    return [
        setting,
        percent(sparsity),
        str(seeds),
        *three,
        differences_to_fggp.get(CONTROL, ""),
        differences_to_fggp["GMP"],
    ]


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "study": study,
    "differences": study_differences,
    "rates": rates,
    "variants": variants,
    "vgg19": vgg19,
    "control": control,
}


def with_tables(page: str) -> str:
    """Return the page with its tables computed anew."""
    made = {name: make() for name, make in TABLES.items() if f"<!-- table: {name} -->" in page}
    for name, table in made.items():
        page = re.sub(
            rf"(<!-- table: {name} -->\n\n).*?(\n\n<!-- end -->)",
            lambda marks, table=table: f"{marks[1]}{table}{marks[2]}",
            page,
            flags=re.DOTALL,
        )
    return page


def main() -> int:
    """Write the tables, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; name the pages whose tables are stale")
    check = parser.parse_args().check
    stale = False
    for name in PAGES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = with_tables(before)
        if after == before:
            continue
        stale = True
        print(f"{name}: {'its tables are not what the records give' if check else 'tables replaced'}")
        if not check:
            path.write_text(after, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
