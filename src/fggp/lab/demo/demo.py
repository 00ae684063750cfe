"""`fggp demo`: dense, GMP and FGGP on handwritten digits, over several seeds; offline."""

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import fggp
from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.bench.worker import time_runs
from fggp.lab.demo.settings import DemoSettings
from fggp.lab.export.export import dense_bytes, write_page
from fggp.lab.export.trained import Network, load_network
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.grid import run_grid
from fggp.lab.grid.plan import plan_runs
from fggp.lab.report.report import report
from fggp.lab.report.settings import ReportSettings

EPOCHS = 20
SPARSITIES = (0.95, 0.98)
SHIPPED_SEED = 0
BATCHES = (1, 32)
TURNS = 7
TURN_SECONDS = 0.05

NEXT = """
Next, train on your own pictures (PATH/train and PATH/test, each with a folder per class), then write the small file:
  fggp train --data folder:PATH --sparsity 0.9
  fggp export RUN_FOLDER
  fggp bench RUN_FOLDER
or put one line into your own training loop:
  pruner = fggp.Pruner(model, optimizer, sparsity=0.9, begin=0, end=10_000, every=300)"""


def demo(options: DemoSettings, console: Console) -> list[Json]:
    """Run the demo, show it, and return its records."""
    options.out.mkdir(parents=True, exist_ok=True)
    runs_file, shipped = options.out / "runs.jsonl", options.out / "fggp.safetensors"
    page = options.out / "digits.html"
    with tempfile.TemporaryDirectory() as temporary:
        records = _train_all(options.seeds, Path(temporary), console)
        dense, sparse, sparsity = _networks_to_ship(records, Path(temporary))
        ship_table, remarks = _ship(dense, sparse, sparsity, shipped)
        write_page(sparse, page)
    runs_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    report(ReportSettings((runs_file,), out=options.out), console)
    for file, content in ((runs_file, "records"), (shipped, "network")):
        console.print(f"{content:10}{file}\n", highlight=False, soft_wrap=True)
    console.print(ship_table, highlight=False)
    for remark in remarks:
        console.print(remark, highlight=False, soft_wrap=True)
    console.print("\nDraw a digit, and the pruned network recognises it. Open in a browser:", highlight=False)
    console.print(f"  {page.resolve()}", highlight=False, soft_wrap=True)
    console.print(NEXT, highlight=False, soft_wrap=True)
    return records


def _train_all(seeds: int, folder: Path, console: Console) -> list[Json]:
    """Train all networks as a grid in a folder, and return their records in the order of the runs."""
    common: dict[str, list[Any]] = {
        "seed": [*range(seeds)],
        "epochs": [EPOCHS],
        "precision": ["fp32"],
        "device": ["cpu"],
    }
    pruned = [{**common, "method": ["gmp", "fggp"], "sparsity": [sparsity]} for sparsity in SPARSITIES]
    runs = plan_runs([("", table) for table in ({**common, "method": ["dense"]}, *pruned)])
    console.print(f"training {len(runs)} small networks, about a minute on two cores", highlight=False)
    grid = GridFolder(folder)
    # Networks this small train fastest on one thread each.
    result = run_grid(grid, runs, os.cpu_count() or 1, console)
    if not result.complete:
        raise UsageError(f"a run of the demo failed: {'; '.join(result.failed.values())}")
    return [grid.records[name] for name in grid.name_runs(runs)]


def _networks_to_ship(records: Sequence[Json], folder: Path) -> tuple[Network, Network, float]:
    """Load the dense and the sparsest FGGP network of one seed; return its sparsity too."""
    of_seed = [record for record in records if record["seed"] == SHIPPED_SEED]
    dense = next(record for record in of_seed if record["method"] == "dense")
    sparse = max(
        (record for record in of_seed if record["method"] == "fggp"), key=lambda record: record["settings"]["sparsity"]
    )
    networks = (load_network(folder / "runs" / record["run"]) for record in (dense, sparse))
    return *networks, sparse["settings"]["sparsity"]


def _ship(dense: Network, sparse: Network, sparsity: float, shipped: Path) -> tuple[Table, list[str]]:
    """Write a network's small file, time it beside the dense one, and tabulate the two.

    Returns:
        The table, and the warnings of fggp.compile.
    """
    fggp.save(sparse.model, shipped)
    sizes = dense_bytes(dense.model), shipped.stat().st_size
    with warnings.catch_warnings(record=True) as caught, _one_thread(), torch.inference_mode():
        warnings.simplefilter("always")
        compiled = fggp.compile(sparse.model, sparse.images(BATCHES[-1]))
        times: dict[tuple[int, bool], list[float]] = {}
        for _ in range(TURNS):
            for batch in BATCHES:
                images = dense.images(batch)
                for is_compiled, network in ((False, dense.model), (True, compiled)):
                    turn = time_runs(lambda network=network, images=images: network(images), TURN_SECONDS)
                    times.setdefault((batch, is_compiled), []).append(turn["seconds"])
    milliseconds = {key: 1e3 * median(values) for key, values in times.items()}
    remarks = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return _ship_table(f"FGGP {100 * sparsity:g} %", sizes, milliseconds), remarks


def _ship_table(name: str, sizes: tuple[int, int], ms: Mapping[tuple[int, bool], float]) -> Table:
    """Tabulate bytes of the dense and the small file, and milliseconds by batch size and whether fggp compiled."""
    table = Table(
        "",
        "file, bytes",
        *(f"ms, batch {batch}" for batch in BATCHES),
        title=f"seed {SHIPPED_SEED}: file, and time on one thread",
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
    """Use one thread, on which networks this small run fastest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
