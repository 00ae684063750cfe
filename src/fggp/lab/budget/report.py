"""The answer of `fggp budget`: a record, a table and a picture."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean

import torch
from rich.console import Console
from rich.table import Table

import fggp
from fggp.atomic import atomic_write
from fggp.lab.base import Json
from fggp.lab.base.machine import device_name, source_commit
from fggp.lab.budget.estimate import noise_of_one_run, validation_accuracies
from fggp.lab.budget.prediction import Prediction
from fggp.lab.budget.settings import BudgetSettings
from fggp.lab.budget.trials import Trial, Trials
from fggp.lab.budget.wishes import Wishes, bytes_text, ms_text, percent

COLUMNS = ("sparsity", "runs", "accuracy", "below dense", "file", "time", "meets")


@dataclass(frozen=True)
class Answer:
    """What was found.

    Attributes:
        settings: of the command.
        wishes: its limits.
        trials: everything that was tried.
        prediction: of time and size.
        chosen: the trial that meets the limits; None if none does.
        start_test: test accuracy of the trained weights, if they are what the networks are compared with.
    """

    settings: BudgetSettings
    wishes: Wishes
    trials: Trials
    prediction: Prediction
    chosen: Trial | None
    start_test: float | None

    def in_order(self) -> list[Trial]:
        """Return the trials, dense networks first."""
        return sorted(self.trials.tried.values(), key=lambda trial: trial.sparsity)


def write_report(answer: Answer, folder: Path) -> Json:
    """Write budget.json, budget.md and budget.png, and return the record."""
    from fggp.lab.budget.picture import draw_budget  # matplotlib takes a second to import

    record = make_record(answer)
    with atomic_write(folder / "budget.json") as file:
        file.write(json.dumps(record, indent=1).encode() + b"\n")
    title = f"{record['model']} on {record['data']}: {answer.wishes}"
    trials = answer.in_order()
    draw_budget(folder / "budget.png", title, trials, answer.chosen, answer.wishes, answer.settings.batch)
    lines = [f"# {title}", "", *_markdown(COLUMNS, _rows(answer)), "", *_conclusion(record), "", "![](budget.png)", ""]
    with atomic_write(folder / "budget.md") as file:
        file.write("\n".join(lines).encode())
    return record


def make_record(answer: Answer) -> Json:
    """Return the answer as JSON.

    Returns:
        Accuracies and drops are percent and percent points. ``tried`` has every trial, dense networks first, and
        ``predicted`` what random masks cost. ``chosen`` is None if nothing met the limits. ``test_drop`` is that of the
        chosen network below the mean of the dense ones (or the trained weights, if these were better on validation
        images), and ``expected`` the drop on validation images with ``test_noise``, half of a 95 % interval.
    """
    first = answer.trials.dense.records[0]
    images, chosen = first["images"], answer.chosen
    record: Json = {
        "wishes": asdict(answer.wishes),
        "model": first["model"],
        "data": first["data"],
        "method": answer.settings.method,
        "batch": answer.settings.batch,
        "threads": answer.trials.meter.threads,
        "images": images,
        "tried": [_trial_json(trial, answer.wishes) for trial in answer.in_order()],
        "predicted": {f"{level:g}": asdict(cost) for level, cost in answer.prediction.known().items()},
        "chosen": None,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(torch.device("cpu")),
        "versions": {"fggp": fggp.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "commit": source_commit(),
    }
    if chosen is not None:
        dense = answer.trials.dense.records
        reference = fmean(r["test_accuracy"] for r in dense) if answer.start_test is None else answer.start_test
        counts = images["val"], images["test"]
        accuracies = validation_accuracies(dense), validation_accuracies(chosen.records)
        record["chosen"] = {
            **_trial_json(chosen, answer.wishes),
            "run": chosen.best["run"],
            "test_accuracy": chosen.best["test_accuracy"],
            "dense_test_accuracy": reference,
            "test_drop": reference - chosen.best["test_accuracy"],
            "expected": chosen.estimate.drop,
            "test_noise": noise_of_one_run(*accuracies, counts),
        }
    return record


def _trial_json(trial: Trial, wishes: Wishes) -> Json:
    return {
        "sparsity": trial.sparsity,
        "runs": [record["run"] for record in trial.records],
        "val_accuracy": trial.estimate.accuracy,
        "val_drop": trial.estimate.drop,
        "noise": trial.estimate.noise,
        "bytes": trial.cost.bytes,
        "ms": trial.cost.ms,
        "meets": trial.meets(wishes),
    }


def _rows(answer: Answer) -> list[tuple[str, ...]]:
    return [
        (
            percent(trial.sparsity) if trial.sparsity else "dense",
            str(trial.estimate.runs),
            f"{trial.estimate.accuracy:.2f} %",
            f"{trial.estimate.drop:.2f} ± {trial.estimate.noise:.2f}" if trial.sparsity else "",
            bytes_text(trial.cost.bytes),
            ms_text(trial.cost.ms),
            "chosen" if trial is answer.chosen else "yes" if trial.meets(answer.wishes) else "no",
        )
        for trial in answer.in_order()
    ]


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)]


def _conclusion(record: Json) -> list[str]:
    chosen = record["chosen"]
    alone = all(len(trial["runs"]) == 1 for trial in record["tried"])
    remarks = ["With one run of each, ± covers the number of images, and not what other seeds change."] if alone else []
    if chosen is None:
        return ["Nothing that was tried meets the limits.", *remarks]
    return [
        f"Chosen: {percent(chosen['sparsity'])}, {bytes_text(chosen['bytes'])}, {ms_text(chosen['ms'])} for a batch of "
        f"{record['batch']} on {record['threads']} threads.",
        f"Test accuracy, never chosen by: {chosen['test_accuracy']:.2f} %, dense "
        f"{chosen['dense_test_accuracy']:.2f} %, so {chosen['test_drop']:.2f} points below; "
        f"{chosen['expected']:.2f} ± {chosen['test_noise']:.2f} were to be expected from "
        f"{record['images']['val']} validation and {record['images']['test']} test images.",
        *remarks,
    ]


def print_answer(answer: Answer, record: Json, folder: Path, console: Console) -> None:
    """Show the table, the answer, and where its files are."""
    table = Table(*COLUMNS)
    for column in table.columns[1:]:
        column.justify = "right"
    for row, trial in zip(_rows(answer), answer.in_order(), strict=True):
        table.add_row(*row, style="bold" if trial is answer.chosen else None)
    console.print(table, highlight=False)
    for line in _conclusion(record):
        console.print(line, highlight=False, soft_wrap=True)
    for what, name in (
        ("network", "small.safetensors"),
        ("", "net.fggp"),
        ("table", "budget.md"),
        ("picture", "budget.png"),
    ):
        if (folder / name).exists():
            console.print(f"{what:10}{folder / name}", highlight=False, soft_wrap=True)
