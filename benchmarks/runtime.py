"""fggp.compile compared with other engines, in twelve cells (two networks, three sparsities, two batches).

    python benchmarks/runtime.py --deepsparse deepsparse-venv/bin/python      the twelve cells
    python benchmarks/runtime.py --more                                       torchvision's networks, an encoder
    python benchmarks/runtime.py --show                                       prints and draws the last records

Engines run in processes of their own, in turns (`fggp.lab.bench.engines`). Figures are medians of the turns' medians;
compare their ratios, not their absolute values. The twelve cells are the lab's CIFAR forms. All networks have random
weights and random batch norms, and each layer is pruned by magnitude to the same sparsity.
`benchmarks/deepsparse_worker.py` says how to install DeepSparse.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

import fggp
from common import RESULTS, append, conditions, read
from fggp.lab.bench.engines import Engine, Job, Measurement, engines, measure
from fggp.lab.bench.networks import magnitude_pruned, with_random_norms
from fggp.lab.export.onnx_file import write_onnx
from fggp.lab.training import models

RECORDS = RESULTS / "runtime.ndjson"
UNFINISHED = RESULTS / "runtime-unfinished.json"
"""What a run has measured so far, so that it goes on from there if it is ended."""
SPARSITIES = (0.9, 0.95, 0.98)
BATCHES = (1, 32)
LABELS = {
    "pytorch": "PyTorch",
    "torch.compile": "torch.compile",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "deepsparse": "DeepSparse 1.8",
    "fggp": "fggp",
    "fggp-runtime": "fggp-runtime",
}
CELLS = "runtime, cells"
WORKER = Path(__file__).with_name("deepsparse_worker.py")


def cells() -> Iterator[tuple[str, nn.Module, float, list[Tensor]]]:
    """Name, pruned network, sparsity, input: the twelve cells."""
    for name in ("vgg19", "resnet50"):
        torch.manual_seed(0)
        dense = with_random_norms(models.create(name, classes=10)).eval()
        for sparsity in SPARSITIES:
            pruned = magnitude_pruned(dense, sparsity)
            for batch in BATCHES:
                yield f"{name} (CIFAR form)", pruned, sparsity, [torch.randn(batch, 3, 32, 32)]


SHIPPED = (
    *("mobilenet_v2", "efficientnet_b0", "resnet50", "mobilenet_v3_small", "mobilenet_v3_large", "mnasnet1_0"),
    *("shufflenet_v2_x1_0", "regnet_y_400mf", "googlenet", "densenet121", "convnext_tiny", "swin_t", "vit_b_16"),
)
"""torchvision's networks that people put on devices, and larger ones."""


def more() -> Iterator[tuple[str, nn.Module, float, list[Tensor]]]:
    """Networks of other sizes and kinds, for images of 224×224 pixels; and an encoder of a text network."""
    for name in SHIPPED:
        torch.manual_seed(0)
        given = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        dense = with_random_norms(torchvision.models.get_model(name, weights=None, **given)).eval()
        if name == "vit_b_16":
            nn.init.normal_(dense.heads.head.weight, std=0.02)  # torchvision initialises it to zero
        for sparsity in (0.9, 0.95):
            pruned = magnitude_pruned(dense, sparsity)
            for batch in (1, 8) if name in ("mobilenet_v2", "resnet50", "vit_b_16") else (1,):
                yield name, pruned, sparsity, [torch.randn(batch, 3, 224, 224)]
    torch.manual_seed(0)
    bert = magnitude_pruned(bert_size().eval(), 0.95)
    yield "encoder of BERT-base's size, 128 tokens", bert, 0.95, [torch.randn(1, 128, 768)]


def bert_size() -> nn.Module:
    """Twelve encoder layers of BERT-base's size, without embeddings, which are not pruned."""
    layer = nn.TransformerEncoderLayer(768, 12, 3072, dropout=0.0, activation="gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 12, enable_nested_tensor=False)
    for parameter in encoder.parameters():  # PyTorch initialises the layers as copies of one
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return encoder


def deepsparse(python: str) -> Engine:
    return Engine("deepsparse", "DeepSparse", "deepsparse", (python, str(WORKER)))


def write(model: nn.Module, inputs: list[Tensor], kind: str, folder: Path) -> Path:
    path = folder / f"model.{kind}"
    if kind == "torch":
        torch.save(model, path)
    elif kind == "onnx":
        write_onnx(model, {"x": inputs[0]}, path)
    elif kind == "network":
        fggp.compile(model, inputs[0]).save(path)
    else:
        # DeepSparse reads ONNX of 2023, with the batch size in the file.
        torch.onnx.export(
            model, tuple(inputs), str(path), dynamo=False, opset_version=13, input_names=["x"], output_names=["y"]
        )
    return path


def line(
    m: Measurement, name: str, sparsity: float, batch: int, expected: Tensor, model: nn.Module
) -> dict[str, object]:
    given = {"model": name, "sparsity": sparsity, "batch": batch, "engine": m.job.engine.name}
    if m.error:
        return {**given, "error": m.error}
    assert m.output is not None
    off = torch.from_numpy(m.output) - expected
    low, high = m.quartiles
    return {
        **given,
        "version": m.version,
        "ms": round(m.median * 1e3, 4),
        "quartiles_ms": [round(low * 1e3, 4), round(high * 1e3, 4)],
        "turns_ms": [round(s * 1e3, 4) for s in m.seconds],
        "turns_left_out": m.left_out,
        "runs": m.runs,
        "load_seconds": round(m.load_seconds or 0, 3),
        "peak_bytes": m.peak_bytes,
        "base_bytes": m.base_bytes,
        "difference": float(off.norm() / expected.norm()),
        "note": m.note,
    }


def run(options: argparse.Namespace) -> dict[str, Any]:
    wanted = engines()
    chosen = [wanted[name] for name in ("pytorch", "torch.compile", "onnxruntime", "openvino", "fggp", "fggp-runtime")]
    if options.skip:
        chosen = [engine for engine in chosen if engine.name not in options.skip]
    if options.deepsparse:
        chosen.insert(-1, deepsparse(options.deepsparse))
    record: dict[str, Any] = {
        "benchmark": "runtime, more" if options.more else CELLS,
        "command": command(options),
        **conditions(),
        "threads": options.threads,
        "rounds": options.rounds,
        "turn_seconds": options.seconds,
        "measured": [],
    }
    lines = record["measured"] = measured_before(record, UNFINISHED)
    known = {(each["model"], each["sparsity"], each["batch"]) for each in lines}
    for name, model, sparsity, inputs in more() if options.more else cells():
        batch = len(inputs[0])
        if (name, sparsity, batch) in known:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            kinds = {kind: write(copy.deepcopy(model), inputs, kind, folder) for kind in {e.file for e in chosen}}
            np.savez(folder / "inputs.npz", x=inputs[0].numpy())
            jobs = [Job(engine, kinds[engine.file], folder / "inputs.npz") for engine in chosen]
            measured = measure(jobs, options.threads, options.rounds, options.seconds)
        with torch.no_grad():
            expected = model(*inputs)
        here = [line(m, name, sparsity, batch, expected, model) for m in measured]
        lines += here
        UNFINISHED.write_text(json.dumps(record))
        print(name, f"{sparsity:.0%}", batch, {each["engine"]: each.get("ms") for each in here}, flush=True)
    return record


def measured_before(record: dict[str, Any], unfinished: Path) -> list[dict[str, Any]]:
    """The cells that a run with the same command on the same day, code and machine measured before it was ended."""
    before = json.loads(unfinished.read_text()) if unfinished.exists() else {}
    cells: list[dict[str, Any]] = before.pop("measured", [])
    same = before == {key: value for key, value in record.items() if key != "measured"}
    return cells if same else []


def command(options: argparse.Namespace) -> str:
    """The command line that repeats this run."""
    parts = ["python benchmarks/runtime.py"]
    parts += ["--more"] * options.more + ["--deepsparse PYTHON"] * bool(options.deepsparse)
    parts += [f"--skip {' '.join(options.skip)}"] * bool(options.skip)
    return " ".join((*parts, f"--threads {options.threads} --rounds {options.rounds} --seconds {options.seconds}"))


def table(record: dict) -> Iterator[str]:
    """Markdown: every cell's milliseconds, and the factors by which PyTorch and DeepSparse are slower than fggp."""
    names = list(dict.fromkeys(each["engine"] for each in record["measured"]))
    against = [name for name in ("pytorch", "deepsparse") if name in names]
    heads = ["", "sparsity", "batch", *(f"{LABELS[name]}, ms" for name in names), *(f"× {LABELS[n]}" for n in against)]
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for cell in dict.fromkeys((each["model"], each["sparsity"], each["batch"]) for each in record["measured"]):
        own = {e["engine"]: e for e in record["measured"] if (e["model"], e["sparsity"], e["batch"]) == cell}
        texts = [f"{own[name]['ms']:.3g}" if "ms" in own[name] else "–" for name in names]
        texts[names.index("fggp")] = f"**{texts[names.index('fggp')]}**"
        factors = [f"{factor(own['fggp'], own[name]):.1f}" if "ms" in own[name] else "–" for name in against]
        yield f"| {cell[0]} | {cell[1]:.0%} | {cell[2]} | {' | '.join(texts + factors)} |"


def factor(ours: dict, theirs: dict) -> float:
    """The factor by which the other engine is slower: the median of the turns' ratios, since machines change speed."""
    return statistics.median(b / a for a, b in zip(ours["turns_ms"], theirs["turns_ms"], strict=True))


def draw(record: dict) -> Path:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    # Without fggp-runtime, which takes as long as fggp.
    colours = dict(zip(LABELS, ("#b8b8b8", "#9a9a9a", "#8fb3d9", "#5b86b8", "#e0a458", "#b3245a"), strict=False))
    lines = [each for each in record["measured"] if "ms" in each]
    names = list(dict.fromkeys(each["model"] for each in lines))
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    axes = figure.subplots(len(BATCHES), len(names), squeeze=False)
    for column, name in enumerate(names):
        for i, batch in enumerate(BATCHES):
            ax = axes[i, column]
            here = [each for each in lines if each["model"] == name and each["batch"] == batch]
            present = [engine for engine in colours if any(each["engine"] == engine for each in here)]
            width = 0.8 / len(present)
            for k, engine in enumerate(present):
                own = {each["sparsity"]: each["ms"] for each in here if each["engine"] == engine}
                at = [s + (k - (len(present) - 1) / 2) * width for s in range(len(SPARSITIES))]
                heights = [own.get(sparsity, np.nan) for sparsity in SPARSITIES]
                bars = ax.bar(at, heights, 0.92 * width, color=colours[engine], label=LABELS[engine])
                if engine in ("fggp", "deepsparse"):
                    ax.bar_label(bars, [f"{h:.3g}" for h in heights], padding=2, fontsize=7)
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.margins(y=0.12)
            ax.set_xticks(range(len(SPARSITIES)), [f"{sparsity:.0%} sparse" for sparsity in SPARSITIES])
            ax.set_title(f"{name}, batch {batch}", fontsize=10, loc="left")
            ax.set_ylabel("ms a batch")
            ax.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    path = RESULTS / "runtime.png"
    figure.savefig(path, dpi=130)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deepsparse", metavar="PYTHON", help="interpreter of a virtual environment with DeepSparse")
    parser.add_argument("--more", action="store_true", help="larger networks instead of the twelve cells")
    parser.add_argument("--skip", nargs="*", default=[], help="engines to leave out")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn")
    parser.add_argument("--show", action="store_true", help="measure nothing; show the last records")
    options = parser.parse_args()
    if not options.show:
        append(run(options), RECORDS)
        UNFINISHED.unlink()
    last = {record["benchmark"]: record for record in read(RECORDS)}
    for record in last.values():
        print("\n".join(table(record)))
    if CELLS in last:
        print(draw(last[CELLS]))


if __name__ == "__main__":
    main()
