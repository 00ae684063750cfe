"""`fggp bench`: size and speed of a network, dense and pruned, on all engines of this machine."""

import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

import fggp
from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.base.machine import device_name, source_commit
from fggp.lab.bench.engines import Engine, Job, Measurement, choose, engines, measure
from fggp.lab.bench.networks import Variant, make_variants
from fggp.lab.bench.settings import BenchSettings
from fggp.lab.bench.tables import show
from fggp.lab.export.export import described
from fggp.lab.export.onnx_file import relative_difference, write_onnx
from fggp.lab.export.trained import Network
from fggp.ship.network.write import write

TURN_SECONDS = 0.3
"""Enough for a hundred runs of a network that takes milliseconds."""
INPUT = "images"


def bench(settings: BenchSettings, console: Console) -> Json:
    """Measure, show and write down.

    Returns:
        The record, one line of bench.ndjson. Times are in milliseconds: of each turn, their median and quartiles.
        ``difference`` is the distance of an output from PyTorch's, relative to the size of PyTorch's. ``precision``
        is that of all engines but those whose outputs are inexact by design.

    Raises:
        UsageError: something that was asked for does not exist, or the options do not fit together.
    """
    from fggp.lab.bench.picture import draw_bench  # matplotlib takes a second to import

    chosen = choose(settings.engines)
    network, variants = make_variants(settings)
    threads = settings.threads or torch.get_num_threads()
    for engine in engines().values() if settings.engines is None else ():
        if engine.missing:
            console.print(f"without {engine.label}: {engine.missing}", highlight=False, soft_wrap=True)
    with tempfile.TemporaryDirectory() as folder:
        files = _write_models(variants, network, chosen, Path(folder), console)
        pairs = [(e, variant) for e in chosen for variant in variants if (variants[0].name, e.file) in files]
        measured = []
        batches = list(dict.fromkeys(settings.batch))
        columns = TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(compact=True), TextColumn("left")
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task("", total=len(batches) * len(pairs) * (1 + settings.rounds))
            for batch in batches:

                def on_turn(doing: str, job: Job, batch: int = batch) -> None:
                    progress.update(
                        task, advance=doing != "timing again", description=f"batch {batch}: {doing} {job.engine.label}"
                    )

                images = network.images(batch)
                inputs = Path(folder) / f"inputs-{batch}.npz"
                arrays: Json = {INPUT: images.numpy()}
                np.savez(inputs, **arrays)
                jobs = [Job(engine, files[variant.name, engine.file], inputs) for engine, variant in pairs]
                done = measure(jobs, threads, settings.rounds, TURN_SECONDS, on_turn)
                with torch.no_grad():
                    expected = {variant.name: variant.model(images) for variant in variants}
                for (_, variant), measurement in zip(pairs, done, strict=True):
                    line = {"variant": variant.name, "batch": batch}
                    measured.append(_measured_line(measurement, line, expected[variant.name]))
    record = _record(settings, network, variants, measured, threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    records = settings.out / "bench.ndjson"
    with records.open("a") as file:
        file.write(json.dumps(record) + "\n")
    stem = Path(settings.source).resolve().name if Path(settings.source).is_dir() else settings.source
    picture = draw_bench(settings.out / f"{stem.replace(':', '-').replace('/', '-')}.png", record)
    show(record, console)
    for what, path in (("picture", picture), ("record", records)):
        console.print(f"{what:10}{path}", highlight=False, soft_wrap=True)
    return record


def _write_models(
    variants: Sequence[Variant], network: Network, chosen: Sequence[Engine], folder: Path, console: Console
) -> Mapping[tuple[str, str], Path]:
    """Write each variant's model files; return them by variant and kind, without the kinds that cannot be written."""
    files = {}
    refused: set[str] = set()
    for number, variant in enumerate(variants):
        file = files[variant.name, "torch"] = folder / f"{number}.pt"
        torch.save(variant.model, file)
        for kind in dict.fromkeys(engine.file for engine in chosen if engine.file != "torch"):
            if kind in refused:
                continue
            file = folder / f"{number}.{kind}"
            readers = [engine for engine in chosen if engine.file == kind]
            try:
                with console.status(f"writing {kind}, {variant.name}"):
                    _write_model(variant.model, network.images(2), kind, file)
            except UsageError as error:
                if len(readers) == len(chosen):
                    raise
                without = " and ".join(engine.label for engine in readers)
                console.print(f"without {without}: {error}", highlight=False, soft_wrap=True)
                refused.add(kind)
            else:
                files[variant.name, kind] = file
                variant.bytes[kind] = file.stat().st_size
    return files


def _write_model(model: nn.Module, images: torch.Tensor, kind: str, file: Path) -> None:
    if kind == "onnx":
        write_onnx(model, {INPUT: images}, file)
    else:
        description = described(model, images)
        write(file, description.network, description.tensors, {})


def _measured_line(m: Measurement, where: Json, expected: torch.Tensor) -> Json:
    line = {"engine": m.job.engine.name, "label": m.job.engine.label, **where}
    if m.error or m.output is None or not m.seconds:
        return {**line, "error": m.error}
    return {
        **line,
        "ms": [_rounded(1e3 * seconds) for seconds in m.seconds],
        "median_ms": _rounded(1e3 * m.median),
        "quartiles_ms": [_rounded(1e3 * seconds) for seconds in m.quartiles],
        "runs": m.runs,
        "turns_left_out": m.left_out,
        "difference": relative_difference(torch.from_numpy(m.output), expected),
        "load_seconds": m.load_seconds and _rounded(m.load_seconds),
        "base_bytes": m.base_bytes,
        "peak_bytes": m.peak_bytes,
        "version": m.version,
        "note": m.note,
    }


def _rounded(x: float) -> float:
    return float(f"{x:.4g}")


def _record(
    settings: BenchSettings, network: Network, variants: Sequence[Variant], measured: list[Json], threads: int
) -> Json:
    versions = {line["engine"]: line["version"] for line in measured if "version" in line}
    assert network.image_size is not None
    return {
        "benchmark": "bench",
        "title": network.title,
        "model": network.name,
        "image": [network.channels, *network.image_size],
        "threads": threads,
        "rounds": settings.rounds,
        "turn_seconds": TURN_SECONDS,
        "precision": "fp32",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "device": device_name(torch.device("cpu")),
        "versions": {
            "fggp": fggp.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            **{
                name: version
                for name, version in versions.items()
                if name in ("onnxruntime", "openvino", "openvino-int8")
            },
        },
        "commit": source_commit(),
        "variants": [
            {
                "name": variant.name,
                "sparsity": 1 - variant.nonzero / max(1, variant.weights),
                "weights": variant.weights,
                "weights_left": variant.nonzero,
                "parameters": sum(parameter.numel() for parameter in variant.model.parameters()),
                "bytes": variant.bytes,
            }
            for variant in variants
        ],
        "measured": measured,
    }
