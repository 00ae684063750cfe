"""Pictures of runs. Accuracies are percent; colours are those of Okabe & Ito, safe for colour-blind readers."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from fggp.lab.base import Json

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#8A8A8A"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
STYLE: dict[Any, Any] = {
    "figure.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def draw_run(
    folder: Path, title: str, epochs: Sequence[Json], updates: Sequence[Json], init_sparsity: float
) -> list[Path]:
    """Draw a run from its metrics: accuracy.png, and if masks changed sparsity.png and density.png.

    Args:
        folder: of the pictures.
        title: names the run.
        epochs: metrics lines of kind "epoch".
        updates: metrics lines of kind "update".
        init_sparsity: sparsity at the start.

    Returns:
        The files written.
    """
    files = [folder / "accuracy.png"]
    with new_figure(files[0], 7.2, 2.9) as figure:
        _accuracy(figure, title, epochs, updates)
    if updates:
        files += [folder / "sparsity.png", folder / "density.png"]
        with new_figure(files[1], 5.2, 2.9) as figure:
            _sparsity(figure.subplots(), title, epochs, updates, init_sparsity)
        with new_figure(files[2], 7.2, max(1.8, 0.75 + 0.16 * len(updates[0]["densities"]))) as figure:
            _density(figure, title, updates)
    return files


@contextmanager
def new_figure(file: Path, width: float, height: float) -> Iterator[Figure]:
    """Return a context that gives an empty figure in the lab's style and saves it to a file.

    Args:
        file: the picture.
        width, height: in inches.
    """
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(file)


def _accuracy(figure: Figure, title: str, epochs: Sequence[Json], updates: Sequence[Json]) -> None:
    accuracy, loss = figure.subplots(1, 2, width_ratios=(3, 2))
    for key, colour, name in (("train", GREY, "training"), ("val", BLUE, "validation"), ("test", ORANGE, "test")):
        known = [(line["epoch"], line[f"{key}_accuracy"]) for line in epochs if line[f"{key}_accuracy"] is not None]
        if known:
            marker = "o" if len(known) == 1 else ""
            accuracy.plot(*zip(*known, strict=True), color=colour, label=f"{name} {known[-1][1]:.2f} %", marker=marker)
    marker = "o" if len(epochs) == 1 else ""
    loss.plot([line["epoch"] for line in epochs], [line["train_loss"] for line in epochs], color=GREY, marker=marker)
    accuracy.set(title=title, xlabel="epoch", ylabel="accuracy")
    accuracy.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    loss.set(title="training loss", xlabel="epoch", ylabel="cross-entropy")
    loss.set_ylim(bottom=0)
    if updates:
        steps_per_epoch = epochs[0]["step"] / epochs[0]["epoch"]
        first, last = (updates[i]["step"] / steps_per_epoch for i in (0, -1))
        for axes in (accuracy, loss):
            axes.axvspan(first, last, color="#F3F3F3", zorder=0, linewidth=0)
        accuracy.text(
            (first + last) / 2, 0.02, "pruning", transform=accuracy.get_xaxis_transform(), ha="center", color=GREY
        )
    accuracy.legend(loc="lower right")


def _sparsity(axes: Axes, title: str, epochs: Sequence[Json], updates: Sequence[Json], init_sparsity: float) -> None:
    start = {"step": 0, "target": init_sparsity, "sparsity": init_sparsity}
    points = [start, *sorted([*epochs, *updates], key=lambda line: line["step"])]
    steps = [line["step"] for line in points]
    axes.plot(steps, [100 * line["target"] for line in points], color=GREY, linestyle="--", label="schedule")
    axes.step(
        steps,
        [100 * line["sparsity"] for line in points],
        where="post",
        color=BLUE,
        label=f"measured, {100 * points[-1]['sparsity']:.2f} % in the end",
    )
    axes.set(title=title, xlabel="optimizer step", ylabel="sparsity", xlim=(0, None), ylim=(0, 102))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter(decimals=0))
    axes.legend(loc="lower right")


def _density(figure: Figure, title: str, updates: Sequence[Json]) -> None:
    axes = figure.subplots()
    layers = list(updates[0]["densities"])
    share = np.array([[line["densities"][layer] for line in updates] for layer in layers])
    lowest = min(0.1, share[share > 0].min(initial=1.0))
    colours = matplotlib.colormaps["viridis"].with_extremes(bad="black")
    steps = [line["step"] for line in updates]
    image = axes.pcolormesh(
        np.arange(len(updates) + 1),
        np.arange(len(layers) + 1),
        np.ma.masked_equal(share, 0),
        norm=LogNorm(lowest, 1),
        cmap=colours,
    )
    axes.grid(False)
    axes.invert_yaxis()
    shown = np.unique(np.linspace(0, len(updates) - 1, min(8, len(updates))).round().astype(int))
    axes.set_xticks(shown + 0.5, [f"{steps[i]:,}" for i in shown])
    axes.set_yticks(np.arange(len(layers)) + 0.5, [layer.removesuffix(".weight") for layer in layers], fontsize=7)
    axes.tick_params(length=0)
    axes.set(title=f"{title}: share of weights kept", xlabel="mask update at step")
    bar = figure.colorbar(image, ax=axes, pad=0.015, fraction=0.04)
    ticks = [tick for tick in (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001) if tick >= lowest]
    bar.set_ticks(ticks, labels=[f"{100 * tick:g} %" for tick in ticks], minor=False)
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
