"""The table of the experiment that counts what a weight costs: accuracy and milliseconds of the same networks."""

import json
from itertools import groupby
from statistics import fmean

from fggp.lab.report.statistics import paired, summarise
from fggp.lab.report.wording import interval_of, listed, mean_std, signed
from measured.records import RESULTS, Json, made_by, markdown, milliseconds, of_a_commit, percent, records_of

FOLDER = "per-nanosecond"
BATCHES = (1, 32)
GLOBAL = ("fggp", "global")
NAMES = {
    GLOBAL: "FGGP",
    ("per-fourth-root-nanosecond", "global"): "score per ⁴√nanosecond",
    ("per-root-nanosecond", "global"): "score per √nanosecond",
    ("per-nanosecond", "global"): "score per nanosecond",
    ("fggp", "layer"): "FGGP, every layer alike",
}
"""Methods and scopes, in the order of the rows."""
NETWORKS = {"digits-cnn": "network for digits", "resnet20": "ResNet-20"}


def layers() -> str | None:
    """What a weight costs in layers that follow each other and have equally many output positions."""
    files = [RESULTS / FOLDER / f"costs-{model}.json" for model in NETWORKS]
    records = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.exists()]
    if not records or not all(map(of_a_commit, records)):
        return None
    rows = []
    for record in records:
        for positions, group in groupby(record["positions"], key=record["positions"].get):
            costs = [record["nanoseconds"][name] for name in group]
            per_position = f"{fmean(costs) / positions:.2g}"
            rows.append(
                [NETWORKS[record["model"]], str(len(costs)), str(positions), f"{fmean(costs):.3g}", per_position]
            )
    head = ["", "layers", "output positions", "ns that a weight adds", "ns for each position"]
    return f"{markdown(head, rows)}\n\n{' '.join(dict.fromkeys(map(made_by, records)))}"


def costs() -> str | None:
    """Each method at each sparsity: accuracy and milliseconds, beside those of FGGP on the same seeds."""
    made: dict[tuple[float, tuple[str, str]], dict[int, Json]] = {}
    for record in records_of(f"{FOLDER}/records.jsonl"):
        cell = record["settings"]["sparsity"], (record["method"], record["settings"]["scope"])
        made.setdefault(cell, {})[record["seed"]] = record
    timed = records_of(f"{FOLDER}/milliseconds.ndjson")
    if not made or not timed:
        return None
    # The fastest turn of each run: what other programs do meanwhile is no cost of the network.
    fastest = {(m["run"], m["batch"]): min(m["turns_ms"]) for m in timed[-1]["measured"]}
    rows = [
        [percent(sparsity), name, *_cells(made[sparsity, method], made[sparsity, GLOBAL], fastest)]
        for sparsity in sorted({sparsity for sparsity, _ in made})
        for method, name in NAMES.items()
    ]
    head = ["sparsity", "ranked by", "held out", "test", "test: difference to FGGP [95 % interval]"]
    head += [text for batch in BATCHES for text in (f"batch {batch}, ms", "× faster")]
    seeds = listed(sorted({str(seed) for own in made.values() for seed in own}))
    return f"{markdown(head, rows)}\n\n*Seeds {seeds}.* {made_by(timed[-1])}"


def _cells(own: dict[int, Json], plain: dict[int, Json], fastest: dict[tuple[str, int], float]) -> list[str]:
    """One row. All cells have the same seeds."""
    assert own.keys() == plain.keys()
    held_out, test = ([r[f"{split}_accuracy"] for r in own.values()] for split in ("val", "test"))
    found = paired(*({seed: r["test_accuracy"] for seed, r in runs.items()} for runs in (own, plain)))
    other = own is not plain and found is not None
    texts = [mean_std(summarise(held_out)), mean_std(summarise(test))]
    texts.append(f"{signed(found.mean)} [{interval_of(found)}]" if other and found is not None else "")
    for batch in BATCHES:
        mine, theirs = (fmean(fastest[r["run"], batch] for r in runs.values()) for runs in (own, plain))
        texts += [milliseconds(mine), f"{theirs / mine:.2f}" if other else ""]
    return texts


def first_runs() -> str | None:
    """The first runs of ResNet-20, one a line."""
    made, timed = (records_of(f"{FOLDER}/resnet20/{name}") for name in ("records.jsonl", "milliseconds.ndjson"))
    if not made or not timed:
        return None
    fastest = {(m["run"], m["batch"]): min(m["turns_ms"]) for m in timed[-1]["measured"]}
    rows = [
        [
            NAMES[r["method"], r["settings"]["scope"]],
            percent(r["settings"]["sparsity"]),
            str(r["seed"]),
            *(f"{r[f'{split}_accuracy']:.2f}" for split in ("val", "test")),
            *(milliseconds(fastest[r["run"], batch]) for batch in BATCHES),
        ]
        for r in sorted(made, key=lambda r: (r["seed"], -r["test_accuracy"]))
    ]
    head = [
        "ResNet-20, ranked by",
        "sparsity",
        "seed",
        "held out",
        "test",
        *(f"batch {batch}, ms" for batch in BATCHES),
    ]
    return f"{markdown(head, rows)}\n\n{made_by(timed[-1])}"
