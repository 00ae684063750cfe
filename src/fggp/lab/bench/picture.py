"""The picture of a benchmark: files and times, dense and pruned, by engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from fggp.lab.base import Json
from fggp.lab.training.pictures import BLUE, GREY, new_figure

FILE_LABELS = {
    "dense": "dense",
    "onnx": "ONNX",
    "network": "network\nfile",
    "small": "small\nfp32",
    "small_bf16": "small\nbf16",
}
Range = tuple[float | None, Sequence[float] | None]
"""A value and its quartiles; None where there is none."""


def draw_bench(file: Path, record: Json) -> Path:
    """Draw a record of `fggp bench`: a panel of file sizes, and a panel of times for each batch size.

    Args:
        file: the picture to write.
        record: the measurements.

    Returns:
        ``file``.
    """
    variants = [variant["name"] for variant in record["variants"]]
    batches = list(dict.fromkeys(line["batch"] for line in record["measured"]))
    engines = list(dict.fromkeys(line["label"] for line in record["measured"]))
    kinds = [kind for kind in FILE_LABELS if kind in record["variants"][0]["bytes"]]
    widths = [max(3.0, 0.21 * len(variants) * len(each) + 0.8) for each in (kinds, *(engines for _ in batches))]
    with new_figure(file, sum(widths), 3.4) as figure:
        sizes, *panels = figure.subplots(1, 1 + len(batches), width_ratios=widths, squeeze=False)[0]
        megabytes: list[list[Range]] = [
            [(variant["bytes"][kind] / 1e6, None) for kind in kinds] for variant in record["variants"]
        ]
        _bars(sizes, [FILE_LABELS[kind] for kind in kinds], variants, megabytes)
        sizes.set_title("files, MB")
        for axes, batch in zip(panels, batches, strict=True):
            found = {(line["label"], line["variant"]): line for line in record["measured"] if line["batch"] == batch}
            lines = [[found[engine, variant] for engine in engines] for variant in variants]
            times = [[(line.get("median_ms"), line.get("quartiles_ms")) for line in row] for row in lines]
            names = [engine.replace(" ", "\n").replace(".compile", "\n.compile") for engine in engines]
            _bars(axes, names, variants, times)
            axes.set_title(f"batch {batch}: ms a run")
            if "PyTorch" in engines and (dense := times[0][engines.index("PyTorch")][0]):
                axes.axhline(dense, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        handles, labels = sizes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(variants))
        image = "×".join(map(str, record["image"]))
        threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
        title = f"{record['title']}, images {image}; {record['device']}, {threads}, {record['precision']}"
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return file


def _bars(axes: Axes, groups: Sequence[str], variants: Sequence[str], rows: Sequence[Sequence[Range]]) -> None:
    """Draw groups of bars on a logarithmic scale, labelled with their values, and lines between their quartiles."""
    known = [value for row in rows for value, _ in row if value] or [1.0]
    low, high = min(known), max(known)
    # Space below the smallest bar, so that it can be seen, and above the largest for its label.
    bottom, top = low / (high / low) ** 0.25 / 1.5, high * (high / low) ** 0.2 * 1.5
    width = 0.84 / len(variants)
    for number, (variant, row, colour) in enumerate(zip(variants, rows, _colours(len(variants)), strict=True)):
        places = [group - 0.42 + (number + 0.5) * width for group in range(len(groups))]
        heights = [value or bottom for value, _ in row]
        ends = [quartiles or (height, height) for height, (_, quartiles) in zip(heights, row, strict=True)]
        below = [max(0.0, height - end[0]) for height, end in zip(heights, ends, strict=True)]
        above = [max(0.0, end[1] - height) for height, end in zip(heights, ends, strict=True)]
        error: dict[str, Any] = {"yerr": [below, above], "error_kw": {"elinewidth": 0.8}}
        bars = axes.bar(places, heights, 0.92 * width, color=colour, label=variant, **error)
        labels = [_three_digits(value) for value, _ in row]
        box = {"facecolor": "white", "linewidth": 0, "pad": 0.5}
        axes.bar_label(bars, labels, padding=3, rotation=90, fontsize=7, bbox=box)
    axes.set_yscale("log")
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")


def _colours(count: int) -> list[Any]:
    """Return grey for dense, then blues, the darker the sparser."""
    if count <= 2:
        return [GREY, BLUE][:count]
    return [GREY, *(matplotlib.colormaps["Blues"](0.45 + 0.5 * i / (count - 2)) for i in range(count - 1))]


def _three_digits(value: float | None) -> str:
    if not value:
        return "failed"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
