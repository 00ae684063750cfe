"""`fggp demo`: dense, GMP and FGGP on handwritten digits, over several seeds, and one network shipped; offline."""

import json
import multiprocessing
import os
import signal
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, median, stdev

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import fggp
from fggp.lab.bench.worker import time_runs
from fggp.lab.export.export import dense_bytes
from fggp.lab.export.trained import load_network
from fggp.lab.training.data import load_data
from fggp.lab.training.record import epoch_line, grouped, label, make_record
from fggp.lab.training.run_folder import Json
from fggp.lab.training.settings import DemoSettings, TrainSettings
from fggp.lab.training.trainer import Trainer

EPOCHS = 20
GRID = (("dense", None), ("gmp", 0.95), ("fggp", 0.95), ("gmp", 0.98), ("fggp", 0.98))
"""Method and sparsity of each row of the table."""

SHIPPED_SEED = 0
IMAGE_SIZE = 8
BATCHES = (1, 32)
TURNS = 7
TURN_SECONDS = 0.05

NEXT = """
Next, train on your own pictures (PATH/train and PATH/test, each with a folder per class), then ship what was trained:
  fggp train --data folder:PATH --sparsity 0.9
  fggp export RUN_FOLDER
  fggp bench RUN_FOLDER
or put one line into your own training loop:
  pruner = fggp.Pruner(model, optimizer, sparsity=0.9, begin=0, end=10_000, every=300)"""


def demo(options: DemoSettings, console: Console) -> list[Json]:
    """Run the demo, show it, and return its records."""
    from fggp.lab.training.pictures import draw_comparison, draw_curves  # matplotlib takes a second to import

    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        records = _run_all(
            [(method, sparsity, seed) for seed in range(options.seeds) for method, sparsity in GRID],
            Path(folder),
            console,
        )
        shipped = options.out / "fggp.safetensors"
        ship_table, remarks = _ship(Path(folder), records, shipped)
    runs_file = options.out / "runs.jsonl"
    runs_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    title = f"digits, {records[0]['model']}, {options.seeds} seeds"
    pictures = [
        draw_comparison(options.out / "accuracy.png", title, records),
        draw_curves(options.out / "curves.png", title, records),
    ]
    console.print(_table(title, records))
    console.print(ship_table, highlight=False)
    for remark in remarks:
        console.print(remark, highlight=False, soft_wrap=True)
    files = (("pictures", pictures[0]), ("", pictures[1]), ("records", runs_file), ("shipped", shipped))
    for what, file in files:
        console.print(f"{what:10}{file}", highlight=False, soft_wrap=True)
    console.print(NEXT, highlight=False, soft_wrap=True)
    return records


def _run_all(runs: Sequence[tuple[str, float | None, int]], folder: Path, console: Console) -> list[Json]:
    """Run everything, several at a time, leave state dicts in a folder, and return the records in ``runs``' order."""
    console.print(f"training {len(runs)} small networks, about a minute on two cores", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Networks this small train fastest on one thread each. Fresh interpreters, not forks: torch has threads already.
    pool = ProcessPoolExecutor(
        min(os.cpu_count() or 1, len(runs)), multiprocessing.get_context("spawn"), _prepare_worker
    )
    with pool, Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        methods, sparsities, seeds = zip(*runs, strict=True)
        records = pool.map(_run, methods, sparsities, seeds, [EPOCHS] * len(runs), [folder] * len(runs))
        return list(progress.track(records, total=len(runs), description="training"))


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and stops handing out runs


def _run(method: str, sparsity: float | None, seed: int, epochs: int, folder: Path) -> Json:
    """Train once, all in memory; leave the state dict of what may be shipped."""
    start = time.monotonic()
    settings = TrainSettings(
        method=method, sparsity=sparsity, seed=seed, epochs=epochs, precision="fp32", device="cpu"
    ).resolve()
    trainer = Trainer(settings, load_data(settings, Console(quiet=True)))
    lines = [epoch_line(trainer, epoch, trainer.train_epoch(epoch, lambda tally: None)) for epoch in range(epochs)]
    if seed == SHIPPED_SEED:
        torch.save(trainer.model.state_dict(), _state_file(folder, method, settings.sparsity))
    return make_record(settings.out.name, trainer, lines, time.monotonic() - start)


def _state_file(folder: Path, method: str, sparsity: float) -> Path:
    return folder / f"{method}-{sparsity:g}.pt"


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


def _ship(folder: Path, records: Sequence[Json], shipped: Path) -> tuple[Table, list[str]]:
    """Write the sparsest FGGP network's small file, time it beside the dense one, and tabulate the two.

    Returns:
        The table, and what fggp.compile has to say.
    """
    name = records[0]["model"]
    sparsity = max(share for method, share in grouped(records) if method == "fggp")
    dense, sparse = (
        load_network(_state_file(folder, method, share), name, (IMAGE_SIZE,))
        for method, share in (("dense", 0.0), ("fggp", sparsity))
    )
    fggp.save(sparse.model, shipped)
    sizes = dense_bytes(dense.model), shipped.stat().st_size
    with warnings.catch_warnings(record=True) as caught, _one_thread(), torch.inference_mode():
        warnings.simplefilter("always")
        compiled = fggp.compile(sparse.model, sparse.images(BATCHES[-1]))
        times: dict[tuple[int, bool], list[float]] = {}
        for _ in range(TURNS):
            for batch in BATCHES:
                images = dense.images(batch)
                for ours, network in ((False, dense.model), (True, compiled)):
                    turn = time_runs(lambda network=network, images=images: network(images), TURN_SECONDS)
                    times.setdefault((batch, ours), []).append(turn["seconds"])
    ms = {key: 1e3 * median(own) for key, own in times.items()}
    remarks = [str(each.message) for each in caught if issubclass(each.category, UserWarning)]
    return _ship_table(f"FGGP {100 * sparsity:g} %", sizes, ms), remarks


def _ship_table(name: str, sizes: tuple[int, int], ms: Mapping[tuple[int, bool], float]) -> Table:
    """Tabulate bytes before and after, and milliseconds by batch size and whether it is after."""
    table = Table(
        "",
        "file, bytes",
        *(f"ms, batch {batch}" for batch in BATCHES),
        title=f"shipped, seed {SHIPPED_SEED}: file, and time on one thread",
        title_justify="left",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    table.add_row("dense, PyTorch", f"{sizes[0]:,}", *(f"{ms[batch, False]:.3f}" for batch in BATCHES))
    table.add_row(f"{name}, fggp.compile", f"{sizes[1]:,}", *(f"{ms[batch, True]:.3f}" for batch in BATCHES))
    factors = [f"{ms[batch, False] / ms[batch, True]:.1f}×" for batch in BATCHES]
    table.add_row("smaller, faster", f"{sizes[0] / sizes[1]:.1f}×", *factors)
    return table


@contextmanager
def _one_thread() -> Iterator[None]:
    """Networks this small run fastest on one thread, and PyTorch's threads cannot be in anyone's way."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
