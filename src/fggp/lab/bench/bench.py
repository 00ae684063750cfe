"""`fggp bench`: size and speed of a network, dense and pruned, on all engines of this machine, side by side."""

import copy
import json
import platform
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

import fggp
from fggp.lab.base.errors import UsageError
from fggp.lab.bench.engines import Engine, Job, Measurement, engines, measure
from fggp.lab.bench.tables import show
from fggp.lab.export.export import dense_bytes, small_bytes
from fggp.lab.export.onnx_file import relative_difference, write_onnx
from fggp.lab.export.trained import Network, load_network, square, weights, weights_left
from fggp.lab.training import models
from fggp.lab.training.record import device_name, source_commit
from fggp.lab.training.run_folder import Json
from fggp.lab.training.settings import _by_rule, _check

SPARSITIES = (0.9, 0.95, 0.98)
# torch.compile takes a minute or more to make a network ready, and needs a C++ compiler.
ON_REQUEST = ("torch.compile",)
# A turn is long enough for a hundred runs of what takes milliseconds.
TURN_SECONDS = 0.3
# Sides of the images that the lab's own networks are made for; torchvision's and timm's are mostly for 224.
SIDES = {"digits-cnn": 8, "resnet20": 32, "resnet50": 32, "vgg19": 32}
INPUT = "images"


@dataclass(frozen=True)
class BenchSettings:
    """Measure a pruned network beside the dense one: its files, its speed and its memory, on every engine there is.

    $ fggp bench fggp-runs/RUN                              a finished run of fggp train
    $ fggp bench vgg19 --sparsity 0.9 0.98                  a network by name: random weights, pruned by magnitude
    $ fggp bench resnet50 --batch 1 --threads 1

    Engines are PyTorch, ONNX Runtime and OpenVINO where they are installed, fggp.compile, and on request torch.compile.
    Each runs in a process of its own, all in float32, in turns; what is shown is the median of the turns. A run's
    dense network is its own with random values for its zeros. Leaves a picture, and a line with all figures in
    bench.ndjson.
    """

    source: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN_FOLDER|NAME")]
    """The folder of a finished run of fggp train, or the name of a network as fggp train takes it."""
    sparsity: Annotated[tuple[float, ...] | None, _by_rule("0.9 0.95 0.98", "SHARE …")] = None
    """For a network by name: shares of each layer's weights that are pruned."""
    batch: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT …")] = (1, 32)
    """Images at once."""
    image_size: Annotated[tuple[int, ...] | None, _by_rule("what the network is for", "PIXELS")] = None
    """Height and width of the images, one number for both."""
    threads: Annotated[int | None, _by_rule("as many as PyTorch takes", "INT")] = None
    """Threads of each engine."""
    engines: Annotated[tuple[str, ...] | None, _by_rule("all there are but torch.compile", "NAME …")] = None
    """Which to measure: pytorch, torch.compile, onnxruntime, openvino, fggp."""
    rounds: int = 9
    """Turns of each engine, of a third of a second."""
    out: Path = Path("fggp-bench")
    """Where the picture and the record go."""

    def __post_init__(self) -> None:
        for sparsity in self.sparsity or ():
            _check("sparsity", sparsity, 0 < sparsity < 1, "in (0, 1)")
        _check("sparsity", self.sparsity, self.sparsity != (), "at least one share")
        _check("batch", self.batch, len(self.batch) > 0 and min(self.batch) >= 1, "at least 1")
        _check("threads", self.threads, self.threads is None or self.threads >= 1, "at least 1")
        _check("rounds", self.rounds, self.rounds >= 1, "at least 1")

    def chosen_engines(self) -> list[Engine]:
        """Return the engines to measure.

        Raises:
            UsageError: one was asked for that there is not, or is not installed.
        """
        known = engines()
        if self.engines is None:
            return [engine for name, engine in known.items() if not engine.missing and name not in ON_REQUEST]
        for name in self.engines:
            _check("engines", name, name in known, f"of {', '.join(known)}")
            if known[name].missing:
                raise UsageError(f"engines has {name!r}, which cannot be used: {known[name].missing}")
        return [known[name] for name in dict.fromkeys(self.engines)]


@dataclass(frozen=True)
class Variant:
    """One of the networks measured.

    Attributes:
        name: what tables call it: dense, or how sparse it is.
        model: the network.
        left: prunable weights that are not zero.
        of: all prunable weights.
        bytes: of its files: dense, small, small_bf16, and onnx where one was written.
    """

    name: str
    model: nn.Module
    left: int
    of: int
    bytes: dict[str, int]


def bench(settings: BenchSettings, console: Console) -> Json:
    """Measure, show and write down.

    Returns:
        The record, one line of bench.ndjson. Times are in milliseconds: of each turn, their median and quartiles;
        ``difference`` is the distance of an output from PyTorch's, relative to that one's size.

    Raises:
        UsageError: something asked for is not there, or does not go together.
    """
    from fggp.lab.bench.picture import draw_bench  # matplotlib takes a second to import

    chosen = settings.chosen_engines()
    network, variants = _variants(settings)
    threads = settings.threads or torch.get_num_threads()
    _say_what_is_left_out(settings, console)
    with tempfile.TemporaryDirectory() as folder:
        files = _write_models(variants, network, chosen, Path(folder), console)
        chosen = [engine for engine in chosen if (variants[0].name, engine.file) in files]
        measured = _measure_all(settings, network, variants, chosen, files, threads, Path(folder), console)
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


# What is measured


def _variants(settings: BenchSettings) -> tuple[Network, list[Variant]]:
    """The network, and it dense and pruned, dense first."""
    if Path(settings.source).is_dir():
        if settings.sparsity is not None:
            given = " ".join(map(str, settings.sparsity))
            raise UsageError(f"sparsity is {given!r}; it must be left out for a run, which has its own")
        network = load_network(Path(settings.source), image_size=settings.image_size)
        if network.image_size is None:
            raise UsageError(f"{settings.source} does not tell the size of its images; add --image-size PIXELS")
        left, of = weights_left(network.model)
        pruned = [] if left == of else [(f"{1 - left / of:.4g}", network.model)]
        dense = refilled(network.model) if pruned else network.model
    else:
        network = _untrained(settings.source, settings.image_size)
        dense = network.model
        pruned = [(f"{s:.4g}", magnitude_pruned(dense, s)) for s in dict.fromkeys(settings.sparsity or SPARSITIES)]
    named = [("dense", dense), *((f"{100 * float(share):.4g} % sparse", model) for share, model in pruned)]
    try:
        with torch.no_grad():
            dense(network.images(2))
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = "×".join(map(str, network.images(1).shape[1:]))
        raise UsageError(
            f"{network.name!r} cannot take images of {shape}, choose another --image-size: "
            f"{str(error).partition(chr(10))[0]}"
        ) from error
    return network, [Variant(name, model, *weights_left(model), _sizes(model)) for name, model in named]


def _untrained(name: str, image_size: tuple[int, ...] | None) -> Network:
    channels = 1 if name == "digits-cnn" else 3
    torch.manual_seed(0)
    try:
        model = models.create(name, classes=10 if name in models.OURS else 1000, in_channels=channels)
    except UsageError as error:
        raise UsageError(f"source is {name!r}, which is no folder; as the name of a network: {error}") from error
    side = SIDES.get(name, 224)
    return Network(with_random_norms(model).eval(), name, name, channels, square(image_size) or (side, side))


@torch.no_grad()
def with_random_norms(model: nn.Module) -> nn.Module:
    """Give a network's batch norms statistics and weights as if it were trained: fresh, they do nothing."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
    return model


@torch.no_grad()
def magnitude_pruned(model: nn.Module, sparsity: float) -> nn.Module:
    """Return a copy in which each layer's smallest weights are zero, to the same share of every layer."""
    model = copy.deepcopy(model)
    for weight in weights(model):
        flat = weight.reshape(-1)
        flat[flat.abs().topk(round(sparsity * len(flat)), largest=False).indices] = 0
        weight.copy_(flat.view_as(weight))
    return model


@torch.no_grad()
def refilled(model: nn.Module) -> nn.Module:
    """Return a copy without zeros: random values in their places, as large as the layer's other ones are."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for weight in weights(model):
        zero = weight == 0
        kept = weight[~zero]
        size = float(kept.square().mean().sqrt()) if len(kept) else 0.01
        # A dense network of the same output size as the sparse one: more terms, each smaller.
        size *= (len(kept) / weight.numel()) ** 0.5 if len(kept) else 1.0
        weight[zero] = size * torch.randn(int(zero.sum()), generator=generator)
    return model


def _sizes(model: nn.Module) -> dict[str, int]:
    return {
        "dense": dense_bytes(model),
        "small": small_bytes(model),
        "small_bf16": small_bytes(model, torch.bfloat16),
    }


def _say_what_is_left_out(settings: BenchSettings, console: Console) -> None:
    if settings.engines is None:
        for engine in engines().values():
            if engine.missing:
                console.print(f"without {engine.label}: {engine.missing}", highlight=False, soft_wrap=True)


# Measuring


def _write_models(
    variants: Sequence[Variant], network: Network, chosen: Sequence[Engine], folder: Path, console: Console
) -> dict[tuple[str, str], Path]:
    """Write each variant's model files; return them by variant and kind, without ONNX where that cannot be written."""
    files = {}
    onnx = [engine for engine in chosen if engine.file == "onnx"]
    for number, variant in enumerate(variants):
        file = files[variant.name, "torch"] = folder / f"{number}.pt"
        torch.save(variant.model, file)
        if onnx:
            file = folder / f"{number}.onnx"
            try:
                with console.status(f"writing ONNX, {variant.name}"):
                    write_onnx(variant.model, {INPUT: network.images(2)}, file)
            except UsageError as error:
                if len(onnx) == len(chosen):
                    raise
                without = " and ".join(engine.label for engine in onnx)
                console.print(f"without {without}: {error}", highlight=False, soft_wrap=True)
                onnx = []
            else:
                files[variant.name, "onnx"] = file
                variant.bytes["onnx"] = file.stat().st_size
    return files


def _measure_all(
    settings: BenchSettings,
    network: Network,
    variants: Sequence[Variant],
    chosen: Sequence[Engine],
    files: Mapping[tuple[str, str], Path],
    threads: int,
    folder: Path,
    console: Console,
) -> list[Json]:
    """One batch size after the other; in each, all engines and variants in turns."""
    measured = []
    pairs = [(engine, variant) for engine in chosen for variant in variants]
    batches = list(dict.fromkeys(settings.batch))
    with _progress(console, len(batches) * len(pairs) * (1 + settings.rounds)) as progress:
        for batch in batches:
            inputs = {INPUT: network.images(batch)}
            inputs_file = folder / f"inputs-{batch}.npz"
            arrays: dict[str, Any] = {name: x.numpy() for name, x in inputs.items()}
            np.savez(inputs_file, **arrays)
            jobs = [Job(engine, files[variant.name, engine.file], inputs_file) for engine, variant in pairs]

            def on_turn(doing: str, job: Job, batch: int = batch) -> None:
                progress.update(progress.task_ids[0], description=f"batch {batch}: {doing} {job.engine.label}")
                progress.advance(progress.task_ids[0])

            done = measure(jobs, threads, settings.rounds, TURN_SECONDS, on_turn)
            expected = {variant.name: _output(variant.model, inputs) for variant in variants}
            for (_, variant), measurement in zip(pairs, done, strict=True):
                measured.append(_line(measurement, variant, batch, expected[variant.name]))
    return measured


@contextmanager
def _progress(console: Console, total: int) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        progress.add_task("", total=total)
        yield progress


@torch.no_grad()
def _output(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    output: Tensor = model(*inputs.values())
    return output


def _line(m: Measurement, variant: Variant, batch: int, expected: Tensor) -> Json:
    line: Json = {"engine": m.job.engine.name, "label": m.job.engine.label, "variant": variant.name, "batch": batch}
    if m.error or m.output is None or not m.seconds:
        return {**line, "error": m.error}
    return {
        **line,
        "ms": [_rounded(1e3 * seconds) for seconds in m.seconds],
        "median_ms": _rounded(1e3 * m.median),
        "quartiles_ms": [_rounded(1e3 * seconds) for seconds in m.quartiles],
        "runs": m.runs,
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
            **{name: version for name, version in versions.items() if name in ("onnxruntime", "openvino")},
        },
        "commit": source_commit(),
        "variants": [
            {
                "name": variant.name,
                "sparsity": 1 - variant.left / max(1, variant.of),
                "weights": variant.of,
                "weights_left": variant.left,
                "parameters": sum(parameter.numel() for parameter in variant.model.parameters()),
                "bytes": variant.bytes,
            }
            for variant in variants
        ],
        "measured": measured,
    }
