"""Write the tables of the CPU studies into docs/results.md and README.md, from the records in results/.

    python experiments/tables.py            writes them between their marks, <!-- table: NAME --> and <!-- end -->
    python experiments/tables.py --check    says which are not what the records give; exits with 1 then

No figure in these tables is typed by hand. Differences are paired by seed, with Student's 95 % interval, as in `fggp
report`.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from fggp.lab.report.findings import accuracies, differences, overall
from fggp.lab.report.records import load
from fggp.lab.report.runs import By
from fggp.lab.report.statistics import Difference, summarise
from fggp.lab.report.tables import Row, Setting, Table, percent, tabulate
from fggp.lab.report.wording import interval_of, mean_std, signed

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("docs/results.md", "README.md")
FGGP = "FGGP (r = 0.5)"
CORNERS = {
    FGGP: "**FGGP** (r = 0.5)",
    "magnitude-first": "magnitude first, r = 0.5",
    "magnitude-first-annealed": "magnitude first, r annealed to 0",
    "gradient-first-annealed": "gradient first, r annealed to 0",
    "gradient-only": "gradients alone",
    "GMP": "magnitudes alone: GMP",
    "GraNet": "GraNet",
    "RigL †": "RigL †",
}
VARIANTS = {
    "mean-gradient": "`MeanGradient`: size of g averaged over some 10 steps",
    "running-gradient": "`RunningGradient`: \\|g\\| averaged over some 10 steps",
    "adam-step": "`AdamStep`: mean g over its root mean square, as Adam's step",
    "layer-scaled": "`LayerScaled`: \\|g\\| over its root mean square in the layer",
    "growth-first": "`GrowthFirst`: step 1 spares weights that grow",
    "annealed-up": "`AnnealedUp`: r rises from 0.25 to 0.75",
    "fggp-regrown": "`FGGPRegrown`: FGGP's chain, then GraNet's exchange",
    "fisher-second": "`FisherSecond`: step 2 by θ²·E[g²]",
    "fisher-only": "`FisherOnly`: θ²·E[g²] alone",
    "random-first": "`RandomFirst`, the control: step 1 spares at random",
    "GMP": "GMP",
}
HIGH = (0.95, 0.98)
CONTROL = "random-first"
CHOICE, FRESH = (0, 1), (2, 3, 4)
"""Seeds by whose held-out accuracy a variant would have been chosen, and those that had no part in it."""
MODELS = {"resnet20": "ResNet-20", "vgg19": "VGG-19"}
CONTROLLED = {
    ("cpu-study", "variants"): "",
    ("cpu-long",): "",
    ("cpu-vgg19",): "",
    ("ends",): ", first and last layer dense",
}
"""Where the control was run, and what is to be said of it."""


def tables_of(*studies: str, by: By = "test") -> list[Table]:
    """The tables of studies in results/, as `fggp report` makes them."""
    return tabulate(load([ROOT / "results" / study / "records.jsonl" for study in studies], by).runs)


def has(table: Table, label: str) -> bool:
    """Whether `row_of` finds a row."""
    return any(label in (row.label, row.label.removesuffix(" (r = 0.5)")) for row in table.rows)


def row_of(table: Table, label: str) -> Row:
    """A row of a table by its label; the usual rate may be left out of it."""
    return next(row for row in table.rows if label in (row.label, row.label.removesuffix(" (r = 0.5)")))


def only(table: Table, seeds: Iterable[int]) -> Table:
    """A table of the runs with these seeds."""
    wanted = {*seeds}
    rows = [
        replace(row, cells={s: {n: run for n, run in cell.items() if n in wanted} for s, cell in row.cells.items()})
        for row in table.rows
    ]
    return replace(table, rows=rows)


def mean(row: Row, sparsity: float, usual: int = 3) -> str:
    """Mean ± standard deviation, and the number of runs where it is not the usual one."""
    found = summarise([*accuracies(row.cells[sparsity]).values()])
    return mean_std(found) + (f" ({found.count})" if found.count != usual else "")


def difference(found: Difference | None, usual: int = 3) -> str:
    """A paired difference with its interval, and the number of pairs where it is not the usual one."""
    if found is None:
        return ""
    return f"{signed(found.mean)} [{interval_of(found)}]" + (f" ({found.pairs})" if found.pairs != usual else "")


def over(table: Table, sparsities: Iterable[float], ours: str, theirs: str = FGGP) -> Difference | None:
    """The difference of two methods, averaged over sparsities."""
    return overall([Setting(table, s) for s in sparsities], row_of(table, ours).label, row_of(table, theirs).label)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|".join(["", *(f" {cell} " if cell else " " for cell in line), ""]) for line in lines)


def study() -> str:
    """Every method at every sparsity."""
    table = tables_of("cpu-study")[0]
    columns = table.sparsities
    rows = {label: row_of(table, label) for label in CORNERS}
    best = {
        s: max(rows, key=lambda label: summarise([*accuracies(rows[label].cells[s]).values()]).mean) for s in columns
    }

    def cell(label: str, s: float) -> str:
        text = mean(rows[label], s)
        return re.sub(r"^(.*?)( \(\d\))?$", r"**\1**\2", text) if best[s] == label else text

    lines = [
        [name, *(cell(label, s) for s in columns), "" if label == FGGP else difference(over(table, columns, label))]
        for label, name in CORNERS.items()
    ]
    dense = ["dense", mean(table.dense[0], 0.0), "", "", ""]
    return markdown(["", *map(percent, columns), "minus FGGP, average of the three"], [dense, *lines])


def study_differences() -> str:
    """Every method against FGGP, at every sparsity."""
    table = tables_of("cpu-study")[0]
    found = differences(table, FGGP)
    rows = [
        [name, *(difference(found[label][s]) for s in table.sparsities), difference(over(table, HIGH, label))]
        for label, name in CORNERS.items()
        if label != FGGP
    ]
    head = ["minus FGGP, [95 % interval]", *map(percent, table.sparsities), "95 and 98 %, average"]
    return markdown(head, rows)


def rates() -> str:
    """The sweep of r, over the seeds that all rates have."""
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
    """Every variant against FGGP: on the seeds that the choice was made by, and on fresh ones."""
    held_out = tables_of("cpu-study", "variants", by="validation")[0]
    test = tables_of("cpu-study", "variants")[0]
    rows = []
    for label, name in VARIANTS.items():
        first = over(only(held_out, CHOICE), HIGH, label), over(only(test, CHOICE), HIGH, label)
        fresh, every = over(only(test, FRESH), HIGH, label), over(test, HIGH, label)
        seeds = every.pairs if every else 0
        chosen = [signed(found.mean) if found else "" for found in first]
        rows.append([name, *chosen, difference(fresh, len(FRESH)), difference(every, seeds), str(seeds)])
    head = [
        "minus FGGP",
        "held out, seeds 0, 1",
        "test, seeds 0, 1",
        "test, seeds 2 to 4 [95 %]",
        "test, all [95 %]",
        "seeds",
    ]
    return markdown(head, rows)


def vgg19() -> str:
    """VGG-19, a run a cell."""
    (table,) = tables_of("cpu-vgg19")
    names = {"FGGP": "FGGP", "random-first": "`RandomFirst`, the control", "GMP": "GMP", "GraNet": "GraNet"}
    own = {"dense": table.dense[0], **{name: row_of(table, label) for label, name in names.items()}}
    runs = {name: {run.seed: run.accuracy for run in row.runs} for name, row in own.items()}
    seeds = sorted({seed for found in runs.values() for seed in found})
    return markdown(
        ["98 %", *(f"seed {seed}" for seed in seeds)],
        [[name, *(f"{found[seed]:.2f}" if seed in found else "" for seed in seeds)] for name, found in runs.items()],
    )


def control() -> str:
    """FGGP, the control that spares at random, and GMP, wherever they met."""
    rows = [
        _meeting(table, sparsity, note)
        for studies, note in CONTROLLED.items()
        for table in reversed(tables_of(*studies))
        if table.start == 0
        for sparsity in row_of(table, "GMP").cells
        if not has(table, CONTROL) or sparsity in row_of(table, CONTROL).cells
    ]
    head = ["", "sparsity", "seeds", "FGGP", "`RandomFirst`", "GMP", "`RandomFirst` − FGGP", "GMP − FGGP"]
    return markdown(head, rows)


def _meeting(table: Table, sparsity: float, note: str) -> list[str]:
    met = [label for label in ("FGGP", CONTROL, "GMP") if has(table, label)]
    seeds = len(row_of(table, "FGGP").cells[sparsity])
    means = {label: mean(row_of(table, label), sparsity, seeds) for label in met}
    less = {label: difference(over(table, [sparsity], label, "FGGP"), seeds) for label in met[1:]}
    where = f"{MODELS[table.model]}, {table.epochs} epochs{note}"
    three = (means.get(label, "") for label in ("FGGP", CONTROL, "GMP"))
    return [where, percent(sparsity), str(seeds), *three, less.get(CONTROL, ""), less["GMP"]]


TABLES: dict[str, Callable[[], str]] = {
    "study": study,
    "differences": study_differences,
    "rates": rates,
    "variants": variants,
    "vgg19": vgg19,
    "control": control,
}


def written(page: str) -> str:
    """A page with its tables made anew."""
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
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say what would change")
    check = parser.parse_args().check
    stale = [name for name in PAGES if written(text := (ROOT / name).read_text(encoding="utf-8")) != text]
    for name in stale:
        print(f"{name}: {'not what the records give' if check else 'written'}")
        if not check:
            (ROOT / name).write_text(written((ROOT / name).read_text(encoding="utf-8")), encoding="utf-8")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
