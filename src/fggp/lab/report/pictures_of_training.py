"""The pictures of what happened in training: curves, what a rate does, and the densities of layers in the end."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from fggp.lab.report.canvas import ACROSS, Canvas
from fggp.lab.report.looks import GRID, PAPER, Look
from fggp.lab.report.runs import ACCURACIES, By
from fggp.lab.report.scale import accuracy_scale
from fggp.lab.report.statistics import summarise
from fggp.lab.report.tables import Cell, Row, Table, percent
from fggp.lab.training.pictures import GREY


def curves(canvas: Canvas, table: Table) -> None:
    """Draw accuracy over the epochs, mean and spread, a panel for each sparsity."""
    by = _followed(table)
    columns = [s for s in table.sparsities if any(_curve(row.cells.get(s, {}), by) for row in table.rows)]
    if not columns:
        return
    caption = f"{by.capitalize()} accuracy over training: mean over the seeds, and ± one standard deviation."
    phase = _pruning_phase(table)
    if phase:
        caption += " Weights are pruned where the ground is shaded."
    rows = [row for row in table.rows if any(_curve(cell, by) for cell in row.cells.values())]
    dense = [_curve(row.cells[0.0], by) for row in table.dense]
    height = 2.9 * math.ceil(len(columns) / ACROSS)
    width = (5.2 if len(columns) == 1 else 2.9 * min(len(columns), ACROSS)) + 1.8
    with canvas.picture("curves", table.title, caption, width, max(height, 0.2 * len(rows) + 0.8)) as figure:
        panels = canvas.panels(figure, len(columns), sharey=True)
        for axes, sparsity in zip(panels, columns, strict=True):
            if phase:
                axes.axvspan(*phase, color=GRID, alpha=0.55, linewidth=0, zorder=0)
            for curve in filter(None, dense):
                axes.plot(curve.epochs, curve.mean, color=GREY)
            for row in rows:
                own = _curve(row.cells.get(sparsity, {}), by)
                if own is None:
                    continue
                colour, gid = canvas.looks[row.label].colour, canvas.gid(row.label)
                low, high = own.mean - own.std, own.mean + own.std
                axes.fill_between(own.epochs, low, high, color=colour, alpha=0.13, linewidth=0, gid=gid)
                axes.plot(own.epochs, own.mean, color=colour, linewidth=1.4, gid=gid, **_dot(own.epochs))
            axes.set(title=f"{percent(sparsity)} sparsity", xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for axes in panels[::ACROSS]:
            axes.set_ylabel(f"{by} accuracy")
        accuracy_scale(panels, "y")
        canvas.legend(figure, rows, dense=any(dense), marks=False)


def density(canvas: Canvas, table: Table) -> None:
    """Draw the share of each layer's weights that is left in the end, a panel for each sparsity."""
    columns = [s for s in table.sparsities if any(_densities(row.cells.get(s, {})) for row in table.rows)]
    if not columns:
        return
    rows = [row for row in table.rows if any(_densities(cell) for cell in row.cells.values())]
    layers = list(dict.fromkeys(layer for row in rows for cell in row.cells.values() for layer in _densities(cell)))
    caption = (
        "Share of each layer's weights that is left in the end, mean over the seeds; layers from input to output. "
        "Dashed: the share of all weights. A layer of which nothing is left has no point."
    )
    across = 1 if len(layers) > 12 else min(len(columns), ACROSS)
    down = math.ceil(len(columns) / across)
    width = (7.4 if across == 1 else 2.9 * across) + 1.8
    names = 0.055 * max(map(len, layers)) if len(layers) <= 30 else 0.2
    height = down * 2.2 + names
    with canvas.picture("density", table.title, caption, width, max(height, 0.2 * len(rows) + 0.8)) as figure:
        panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).flatten()
        for spare in panels[len(columns) :]:
            spare.set_visible(False)
        for axes, sparsity in zip(panels, columns, strict=False):
            axes.axhline(1 - sparsity, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
            for row in rows:
                own = _densities(row.cells.get(sparsity, {}))
                look = canvas.looks[row.label]
                where = [number for number, layer in enumerate(layers) if own.get(layer, 0) > 0]
                share = [own[layers[number]] for number in where]
                style = {"marker": look.marker if len(layers) <= 30 else "", "markersize": 4.0}
                axes.plot(
                    where,
                    share,
                    color=look.colour,
                    linewidth=1.1,
                    mec=PAPER,
                    mew=0.4,
                    gid=canvas.gid(row.label),
                    **style,
                )
            axes.set_yscale("log")
            axes.set_title(f"{percent(sparsity)} sparsity")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g} %"))
            axes.yaxis.set_minor_formatter("")
            if len(layers) <= 30:
                shown = [layer.removesuffix(".weight") for layer in layers]
                axes.set_xticks(range(len(layers)), shown, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
            else:
                axes.set_xlabel("layer")
        for axes in panels[::across]:
            axes.set_ylabel("weights left")
        canvas.legend(figure, rows, marks=len(layers) <= 30)


def rates(canvas: Canvas, table: Table) -> None:
    """Draw accuracy against the rate of each method that was run with three or more, a panel for each sparsity."""
    for sweep in table.sweeps:
        _rate(canvas, table, sweep)


def _rate(canvas: Canvas, table: Table, sweep: Sequence[Row]) -> None:
    everywhere = sorted({sparsity for row in sweep for sparsity in row.cells})
    columns = [sparsity for sparsity in everywhere if sum(sparsity in row.cells for row in sweep) >= 3]
    if not columns:
        return
    look = canvas.looks[sweep[len(sweep) // 2].label]
    caption = (
        "Accuracy against the rate, mean over the seeds ± one standard deviation. A rate is to be chosen by "
        "validation accuracy (filled, circled where it is highest); test accuracy is hollow."
    )
    name = sweep[0].label.partition(" (")[0]
    width = (4.6 if len(columns) == 1 else 2.7 * min(len(columns), ACROSS)) + 1.6
    height = 2.8 * math.ceil(len(columns) / ACROSS)
    with canvas.picture("rate", f"{name} · {table.title}", caption, width, height) as figure:
        panels = canvas.panels(figure, len(columns))
        for axes, sparsity in zip(panels, columns, strict=True):
            _rate_panel(canvas, axes, [(row, row.cells[sparsity]) for row in sweep if sparsity in row.cells], look)
            axes.set(title=f"{percent(sparsity)} sparsity", xlabel="rate r")
        for axes in panels[::ACROSS]:
            axes.set_ylabel("accuracy")
        accuracy_scale(panels, "y")
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right upper", alignment="left")


def _rate_panel(canvas: Canvas, axes: Axes, points: Sequence[tuple[Row, Cell]], look: Look) -> None:
    measured: dict[str, list[tuple[float, float, float]]] = {"test": [], "validation": []}
    for row, cell in points:
        test = summarise([run.test_accuracy for run in cell.values()])
        measured["test"].append((row.rate or 0.0, test.mean, test.std or 0.0))
        held_out = [run.val_accuracy for run in cell.values() if run.val_accuracy is not None]
        if len(held_out) == len(cell):
            val = summarise(held_out)
            measured["validation"].append((row.rate or 0.0, val.mean, val.std or 0.0))
    for kind, values in measured.items():
        if not values:
            continue
        rate, mean, std = zip(*values, strict=True)
        colour = GREY if kind == "test" else look.colour
        face = PAPER if kind == "test" else colour
        axes.errorbar(
            rate, mean, std, color=colour, marker="o", ms=5, mfc=face, elinewidth=1, capsize=2.5, lw=1.2, label=kind
        )
        if kind == "validation":
            best = int(np.argmax(mean))
            axes.plot(rate[best], mean[best], "o", ms=11, mfc="none", mec=colour, mew=1.2)


@dataclass(frozen=True)
class _Curve:
    epochs: Sequence[float]
    mean: np.ndarray
    std: np.ndarray


def _followed(table: Table) -> By:
    """Which accuracy most runs were followed by while they trained; held-out images, where it is as many."""
    known = [name for row in (*table.dense, *table.rows) for run in row.runs for name in run.curve]
    return "test" if known.count(ACCURACIES["test"]) > known.count(ACCURACIES["validation"]) else "validation"


def _curve(cell: Cell, by: By) -> _Curve | None:
    """Mean and spread over the runs that have a curve of the commonest epochs."""
    curves = [
        {"epoch": run.curve["epoch"], "accuracy": run.curve[ACCURACIES[by]]}
        for run in cell.values()
        if ACCURACIES[by] in run.curve
    ]
    if not curves:
        return None
    epochs = [tuple(curve["epoch"]) for curve in curves]
    usual = max(epochs, key=epochs.count)
    values = np.array([curve["accuracy"] for curve, own in zip(curves, epochs, strict=True) if own == usual])
    return _Curve(usual, values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(usual)))


def _dot(epochs: Sequence[float]) -> dict[str, Any]:
    """A single epoch is a dot: it would be no line."""
    return {"marker": "o", "markersize": 4} if len(epochs) == 1 else {}


def _densities(cell: Cell) -> dict[str, float]:
    """Mean over the runs, by layer; empty where none is known or nothing is left."""
    found = [run.densities for run in cell.values() if any(run.densities.values())]
    return {layer: fmean(own[layer] for own in found if layer in own) for own in found for layer in own}


def _pruning_phase(table: Table) -> tuple[float, float] | None:
    """First and last epoch of pruning where all runs that start denser than they end agree on them."""
    phases = {
        (run.settings.get("prune_begin"), run.settings.get("prune_end"))
        for row in table.rows
        for run in row.runs
        if not run.constant
    }
    begin, end = phases.pop() if len(phases) == 1 else (None, None)
    return (float(begin), float(end)) if begin is not None and end is not None else None
