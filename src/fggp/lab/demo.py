"""`fggp demo`: dense, GMP and FGGP on handwritten digits, over several seeds, in about a minute and offline."""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import fmean, stdev

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fggp.lab.data import load_data
from fggp.lab.record import epoch_line, grouped, label, make_record
from fggp.lab.run_folder import Json
from fggp.lab.settings import DemoSettings, TrainSettings
from fggp.lab.trainer import Trainer

EPOCHS = 20
GRID = (("dense", None), ("gmp", 0.95), ("fggp", 0.95), ("gmp", 0.98), ("fggp", 0.98))
"""Method and sparsity of each row of the table."""

NEXT = """
Next, train on your own pictures (PATH/train and PATH/test, each with a folder per class):
  fggp train --data folder:PATH --sparsity 0.9
or put one line into your own training loop:
  pruner = fggp.Pruner(model, optimizer, sparsity=0.9, begin=0, end=10_000, every=300)"""


def demo(options: DemoSettings, console: Console) -> list[Json]:
    """Run the demo, show it, and return its records."""
    from fggp.lab.pictures import draw_comparison, draw_curves  # matplotlib takes a second to import

    options.out.mkdir(parents=True, exist_ok=True)
    records = _run_all(
        [(method, sparsity, seed) for seed in range(options.seeds) for method, sparsity in GRID], console
    )
    runs_file = options.out / "runs.jsonl"
    runs_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    title = f"digits, {records[0]['model']}, {options.seeds} seeds"
    pictures = [
        draw_comparison(options.out / "accuracy.png", title, records),
        draw_curves(options.out / "curves.png", title, records),
    ]
    console.print(_table(title, records))
    for what, file in (("pictures", pictures[0]), ("", pictures[1]), ("records", runs_file)):
        console.print(f"{what:10}{file}", highlight=False, soft_wrap=True)
    console.print(NEXT, highlight=False, soft_wrap=True)
    return records


def _run_all(runs: Sequence[tuple[str, float | None, int]], console: Console) -> list[Json]:
    """Run everything, several at a time, and return the records in the order of ``runs``."""
    console.print(f"training {len(runs)} small networks, about a minute on two cores", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Networks this small train fastest on one thread each. Fresh interpreters, not forks: torch has threads already.
    pool = ProcessPoolExecutor(
        min(os.cpu_count() or 1, len(runs)), multiprocessing.get_context("spawn"), _prepare_worker
    )
    with pool, Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        methods, sparsities, seeds = zip(*runs, strict=True)
        records = pool.map(_run, methods, sparsities, seeds, [EPOCHS] * len(runs))
        return list(progress.track(records, total=len(runs), description="training"))


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and stops handing out runs


def _run(method: str, sparsity: float | None, seed: int, epochs: int) -> Json:
    """Train once, all in memory."""
    start = time.monotonic()
    settings = TrainSettings(
        method=method, sparsity=sparsity, seed=seed, epochs=epochs, precision="fp32", device="cpu"
    ).resolve()
    trainer = Trainer(settings, load_data(settings, Console(quiet=True)))
    lines = [epoch_line(trainer, epoch, trainer.train_epoch(epoch, lambda tally: None)) for epoch in range(epochs)]
    return make_record(settings.out.name, trainer, lines, time.monotonic() - start)


def _table(title: str, records: Sequence[Json]) -> Table:
    table = Table("method", "sparsity", "parameters left", "test accuracy, %", title=title, title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for (method, _), own in grouped(records).items():
        accuracy = [record["test_accuracy"] for record in own]
        spread = f" ± {stdev(accuracy):.2f}" if len(accuracy) > 1 else ""
        table.add_row(
            label(method),
            f"{100 * own[0]['sparsity']:.2f} %",
            f"{own[0]['parameters_left']:,} of {own[0]['parameters']:,}",
            f"{fmean(accuracy):.2f}{spread}",
        )
    return table
