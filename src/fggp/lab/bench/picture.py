"""The picture of a benchmark: files and times, dense and pruned, by engine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullFormatter

from fggp.lab.training.pictures import BLUE, GREY, _figure

Json = dict[str, Any]

FILES = {"dense": "dense", "onnx": "ONNX", "small": "small\nfp32", "small_bf16": "small\nbf16"}


def draw_bench(file: Path, record: Json) -> Path:
    """Draw a record of `fggp.lab.bench.bench.bench`: a panel of file sizes, and one of times for each batch size.

    Args:
        file: the picture to write.
        record: what was measured.

    Returns:
        ``file``.
    """
    variants = [variant["name"] for variant in record["variants"]]
    batches = list(dict.fromkeys(line["batch"] for line in record["measured"]))
    engines = list(dict.fromkeys(line["label"] for line in record["measured"]))
    kinds = [kind for kind in FILES if kind in record["variants"][0]["bytes"]]
    colours = _colours(len(variants))
    widths = [max(3.0, 0.21 * len(variants) * len(each) + 0.8) for each in (kinds, *(engines for _ in batches))]
    with _figure(file, sum(widths), 3.4) as figure:
        sizes, *panels = figure.subplots(1, 1 + len(batches), width_ratios=widths, squeeze=False)[0]
        heights = [[variant["bytes"][kind] / 1e6 for kind in kinds] for variant in record["variants"]]
        _bars(sizes, [FILES[kind] for kind in kinds], variants, heights, colours)
        sizes.set(title="files, MB")
        for axes, batch in zip(panels, batches, strict=True):
            found = {(line["label"], line["variant"]): line for line in record["measured"] if line["batch"] == batch}
            lines = [[found[engine, variant] for engine in engines] for variant in variants]
            times = [[line.get("median_ms") for line in row] for row in lines]
            ranges = [[line.get("quartiles_ms") for line in row] for row in lines]
            _bars(axes, [_broken(engine) for engine in engines], variants, times, colours, ranges)
            axes.set(title=f"batch {batch}: ms a run")
            if "PyTorch" in engines and (dense := times[0][engines.index("PyTorch")]):
                axes.axhline(dense, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        handles, labels = sizes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(variants))
        figure.suptitle(_title(record), x=0.01, ha="left", fontsize=10)
    return file


def _title(record: Json) -> str:
    image = "×".join(map(str, record["image"]))
    threads = "1 thread" if record["threads"] == 1 else f"{record['threads']} threads"
    return f"{record['title']}, images {image}; {record['device']}, {threads}, {record['precision']}"


def _colours(count: int) -> list[Any]:
    """Grey for dense; the sparser, the darker a blue."""
    blues = matplotlib.colormaps["Blues"]
    if count <= 2:
        return [GREY, BLUE][:count]
    return [GREY, *(blues(0.45 + 0.5 * i / (count - 2)) for i in range(count - 1))]


def _broken(engine: str) -> str:
    """A name on two lines, where it has two parts."""
    return engine.replace(" ", "\n").replace(".compile", "\n.compile")


def _bars(
    axes: Axes,
    groups: Sequence[str],
    variants: Sequence[str],
    heights: Sequence[Sequence[float | None]],
    colours: Sequence[Any],
    ranges: Sequence[Sequence[Sequence[float] | None]] | None = None,
) -> None:
    """Draw groups of bars on a logarithmic scale, with their figures on top, and lines over their ranges."""
    width = 0.84 / len(variants)
    known = [height for row in heights for height in row if height]
    for number, (variant, row) in enumerate(zip(variants, heights, strict=True)):
        places = [group - 0.42 + (number + 0.5) * width for group in range(len(groups))]
        axes.bar(places, [height or 0 for height in row], 0.92 * width, color=colours[number], label=variant)
        for group, (place, height) in enumerate(zip(places, row, strict=True)):
            top = height or min(known, default=1)
            if ranges is not None and (own := ranges[number][group]):
                axes.vlines(place, own[0], own[1], color="black", linewidth=0.8)
                top = own[1]
            axes.annotate(
                _figures(height),
                (place, top),
                (0, 3),
                textcoords="offset points",
                ha="center",
                va="bottom",
                rotation=90,
                bbox={"facecolor": "white", "linewidth": 0, "pad": 0.5},
                fontsize=7,
            )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter(NullFormatter())
    if known:
        low, high = min(known), max(known)
        # Room below the smallest bar, so that it is one, and above the largest for its figure.
        axes.set_ylim(low / (high / low) ** 0.25 / 1.5, high * (high / low) ** 0.2 * 1.5)
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.grid(False, axis="x")


def _figures(height: float | None) -> str:
    """Three digits."""
    if not height:
        return "failed"
    return f"{height:,.0f}" if height >= 100 else f"{height:.3g}"
