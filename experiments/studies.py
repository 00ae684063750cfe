"""The tables of accuracies in README.md and docs/, computed from the records of studies in results/.

Means stand beside each other only for seeds that the methods share. Differences are paired by seed and carry Student's
95 % interval, as in `fggp report`.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

from measured.records import markdown

from fggp.lab.report.findings import accuracies, differences, on_shared_seeds, overall
from fggp.lab.report.records import load
from fggp.lab.report.runs import Split
from fggp.lab.report.statistics import Difference, paired, summarise
from fggp.lab.report.tables import Row, Setting, Table, percent, tabulate
from fggp.lab.report.wording import interval_of, listed, mean_std, signed

ROOT = Path(__file__).resolve().parent.parent
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
STUDIES = {
    "cpu-study": "cpu.toml",
    "variants": "variants.toml",
    "ends": "ends.toml",
    "cpu-vgg19": "cpu-vgg19.toml",
    "cpu-long": "cpu-long.toml",
    "digits-matrix": "digits.toml",
    "per-nanosecond": "per-nanosecond.toml",
}
"""Folders in results/ by the grids in experiments/ that they are the records of."""
SUMMARY_FILES = {
    "cpu-study/records.jsonl": "ResNet-20, 10,000 images, 12 epochs",
    "cpu-long/records.jsonl": "ResNet-20, 10,000 images, 36 epochs",
    "cpu-vgg19/records.jsonl": "VGG-19, 10,000 images, 6 epochs",
    "cifar10-jpeg/resnet20-first.jsonl": "ResNet-20, all 50,000 images, 20 epochs",
    "demo/digits.jsonl": "small CNN, digits, 20 epochs",
}
CONSTANT_FIRST, ANNEALED_FIRST = FGGP, "gradient-first-annealed"
CONSTANT_SECOND, ANNEALED_SECOND = "magnitude-first", "magnitude-first-annealed"
ORDER_AND_RATE = {
    "order: gradient first − magnitude first": {
        **dict.fromkeys((CONSTANT_FIRST, ANNEALED_FIRST), 0.5),
        **dict.fromkeys((CONSTANT_SECOND, ANNEALED_SECOND), -0.5),
    },
    "rate: constant − annealed": {
        **dict.fromkeys((CONSTANT_FIRST, CONSTANT_SECOND), 0.5),
        **dict.fromkeys((ANNEALED_FIRST, ANNEALED_SECOND), -0.5),
    },
    "· of it with gradient first": {CONSTANT_FIRST: 1, ANNEALED_FIRST: -1},
    "· of it with magnitude first": {CONSTANT_SECOND: 1, ANNEALED_SECOND: -1},
    "interaction: the former − the latter": {
        **dict.fromkeys((CONSTANT_FIRST, ANNEALED_SECOND), 1),
        **dict.fromkeys((ANNEALED_FIRST, CONSTANT_SECOND), -1),
    },
}
"""The effects of the 2×2 ablation, as weights of its cells."""
CHOICE_SEEDS, FRESH_SEEDS = (0, 1), (2, 3, 4)
"""Seeds whose held-out accuracy chooses a variant, and seeds that have no part in the choice."""
SHARED_SEEDS = (0, 1, 2)
"""Seeds that all cells of the study's ablation have."""
MODEL_NAMES = {"resnet20": "ResNet-20", "vgg19": "VGG-19"}
STUDIES_WITH_CONTROL = {
    ("cpu-study", "variants"): "",
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


def contrast(table: Table, sparsities: Collection[float], weights: Mapping[str, float]) -> Difference | None:
    """Return a weighted sum of methods, seed by seed over the seeds that all have, averaged over sparsities."""
    cells = [(weight, accuracies(row_of(table, m).cells[s])) for s in sparsities for m, weight in weights.items()]
    seeds = set.intersection(*({*accuracy} for _, accuracy in cells))
    sums = {seed: sum(weight * accuracy[seed] for weight, accuracy in cells) / len(sparsities) for seed in seeds}
    return paired(sums, dict.fromkeys(sums, 0.0))


def summary() -> str:
    """FGGP beside GMP and dense training in every setting, for the README: the seeds that FGGP and GMP share."""
    lines = []
    for file, name in SUMMARY_FILES.items():
        for table in tabulate(load([ROOT / "results" / file]).runs):
            if table.start != 0:
                continue
            fggp, gmp = row_of(table, "FGGP"), row_of(table, "GMP")
            for sparsity in sorted(fggp.cells.keys() & gmp.cells.keys()):
                ours, theirs = accuracies(fggp.cells[sparsity]), accuracies(gmp.cells[sparsity])
                seeds = sorted(ours.keys() & theirs.keys())
                dense = accuracies(table.dense[0].cells[0.0]) if table.dense else {}
                found = paired(ours, theirs)
                assert found is not None
                lines.append(
                    [
                        name,
                        percent(sparsity),
                        f"{fmean(dense.values()):.1f}" if dense else "",
                        *(f"{fmean(own[seed] for seed in seeds):.1f}" for own in (ours, theirs)),
                        f"{signed(found.mean)} [{interval_of(found)}]" if len(seeds) > 1 else signed(found.mean),
                        str(len(seeds)),
                    ]
                )
    head = ["", "sparsity", "dense", "FGGP", "GMP", "FGGP − GMP [95 % interval]", "seeds"]
    return markdown(head, lines)


def runs() -> str:
    """How many runs every study has: as many as its grid asks for, made when and by which commits."""
    rows = []
    for study_name, grid in STUDIES.items():
        records = [
            json.loads(line) for line in (ROOT / "results" / study_name / "records.jsonl").read_text().splitlines()
        ]
        dates = sorted(record["date"][:10] for record in records)
        rows.append(
            [
                f"[{study_name}](../results/{study_name})",
                f"`fggp grid experiments/{grid} --jobs 2`",
                str(len(records)),
                listed(sorted({str(record["seed"]) for record in records})),
                f"{median(record['wall_seconds'] for record in records) / 60:.1f}",
                " to ".join(dict.fromkeys([dates[0], dates[-1]])),
            ]
        )
    return markdown(["records", "command", "runs", "seeds", "minutes a run (median)", "dates"], rows)


def study() -> str:
    """Every method's accuracy at every sparsity, over the seeds that all methods share."""
    table = tables_of("cpu-study")[0].without_sweeps(FGGP)
    table = on_shared_seeds(table)
    columns = table.sparsities
    rows = {label: row_of(table, label) for label in STUDY_ROWS}
    seeds = {tuple(sorted(row.cells[s])) for row in rows.values() for s in columns}
    assert len(seeds) == 1, "means of different seeds must not stand beside each other"
    best = {
        s: max(rows, key=lambda label: summarise([*accuracies(rows[label].cells[s]).values()]).mean) for s in columns
    }

    def cell(label: str, s: float) -> str:
        text = mean_of(rows[label], s)
        return f"**{text}**" if best[s] == label else text

    lines = [
        [
            name,
            *(cell(label, s) for s in columns),
            "" if label == FGGP else difference_text(average_difference(table, columns, label)),
        ]
        for label, name in STUDY_ROWS.items()
    ]
    dense = ["dense", mean_of(table.dense[0], 0.0), "", "", ""]
    (shared,) = seeds
    head = [
        "",
        *map(percent, columns),
        f"difference to FGGP, average of the three, seeds {listed([*map(str, shared)])}",
    ]
    return markdown(head, [dense, *lines])


def ablation() -> str:
    """The effects of order and rate, from all four cells of the 2×2 ablation, on the seeds that they share."""
    table = with_seeds(tables_of("cpu-study")[0], SHARED_SEEDS)
    rows = [
        [
            name,
            *(difference_text(contrast(table, [s], weights)) for s in HIGH_SPARSITIES),
            difference_text(contrast(table, HIGH_SPARSITIES, weights)),
        ]
        for name, weights in ORDER_AND_RATE.items()
    ]
    return markdown(["effect [95 % confidence interval]", *map(percent, HIGH_SPARSITIES), "95 and 98 %, average"], rows)


def length() -> str:
    """FGGP minus GMP at 98 % after 12 and after 36 epochs, on the seeds of the latter, and what is between the two."""
    short, long = tables_of("cpu-study")[0], tables_of("cpu-long")[0]
    by_seed = []
    for table, label in ((short, FGGP), (long, "FGGP")):
        ours, theirs = (accuracies(row_of(table, name).cells[0.98]) for name in (label, "GMP"))
        by_seed.append({seed: ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()})
    seeds = sorted(by_seed[1])
    leads = [{seed: lead[seed] for seed in seeds} for lead in by_seed]
    none = dict.fromkeys(seeds, 0.0)
    cells = [paired(leads[0], none), paired(leads[1], none), paired(leads[0], leads[1])]
    head = ["seeds", "12 epochs", "36 epochs", "how much the lead shrinks"]
    return markdown(head, [[listed([*map(str, seeds)]), *(difference_text(found, len(seeds)) for found in cells)]])


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
    """Every variant's difference to FGGP: on the seeds of the choice, and on seeds that had no part in it."""
    held_out = tables_of("cpu-study", "variants", by="validation")[0]
    test = tables_of("cpu-study", "variants")[0]
    rows = []
    for label, name in VARIANT_ROWS.items():
        chosen_by = average_difference(with_seeds(held_out, CHOICE_SEEDS), HIGH_SPARSITIES, label)
        first, fresh = (
            average_difference(with_seeds(test, seeds), HIGH_SPARSITIES, label) for seeds in (CHOICE_SEEDS, FRESH_SEEDS)
        )
        assert chosen_by is not None
        texts = difference_text(first, len(CHOICE_SEEDS)), difference_text(fresh, len(FRESH_SEEDS))
        rows.append([name, signed(chosen_by.mean), *texts])
    head = [
        "difference to FGGP",
        "held out, seeds 0, 1",
        "test, seeds 0, 1 [95 % interval]",
        "test, seeds 2 to 4 [95 % interval]",
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
    """FGGP, the control that spares weights at random, and GMP, in every setting and on every seed that they share."""
    rows = [
        _control_row(table, sparsity, note)
        for studies, note in STUDIES_WITH_CONTROL.items()
        for table in reversed(tables_of(*studies))
        if table.start == 0
        for sparsity in row_of(table, "GMP").cells
        if sparsity in row_of(table, CONTROL).cells
    ]
    head = ["", "sparsity", "seeds", "FGGP", "random-first control", "GMP", "control − FGGP", "GMP − FGGP"]
    return markdown(head, rows)


def _control_row(table: Table, sparsity: float, note: str) -> list[str]:
    """One setting's accuracies, and differences to FGGP."""
    labels = ("FGGP", CONTROL, "GMP")
    seeds = set.intersection(*({*row_of(table, label).cells[sparsity]} for label in labels))
    table = with_seeds(table, seeds)
    return [
        f"{MODEL_NAMES[table.model]}, {table.epochs} epochs{note}",
        percent(sparsity),
        str(len(seeds)),
        *(mean_of(row_of(table, label), sparsity, len(seeds)) for label in labels),
        *(difference_text(average_difference(table, [sparsity], label, "FGGP"), len(seeds)) for label in labels[1:]),
    ]


def digits() -> str:
    """GMP and FGGP on digits, on each processor that the demo was run on."""
    rows = []
    for name in ("digits", "digits-xeon"):
        loaded = load([ROOT / "results" / "demo" / f"{name}.jsonl"]).runs
        (table,) = tabulate(loaded)
        device = loaded[0].record["device"].replace("(R)", "")
        rows.append(
            [
                device,
                mean_of(table.dense[0], 0.0, 5),
                *(mean_of(row_of(table, method), s, 5) for s in HIGH_SPARSITIES for method in ("GMP", "FGGP")),
            ]
        )
    return markdown(
        ["5 seeds", "dense", *(f"{m}, {percent(s)}" for s in HIGH_SPARSITIES for m in ("GMP", "FGGP"))], rows
    )


TABLES: dict[str, Callable[[], str]] = {
    "summary": summary,
    "runs": runs,
    "study": study,
    "differences": study_differences,
    "ablation": ablation,
    "length": length,
    "rates": rates,
    "variants": variants,
    "vgg19": vgg19,
    "control": control,
    "digits": digits,
}
