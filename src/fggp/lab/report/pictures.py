"""The pictures of a report. Each is drawn only where there is data for it."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from fggp.lab.report.findings import Contest, dense_accuracy, differences, on_shared_seeds, summary_of
from fggp.lab.report.runs import ACCURACY_KEYS, Split
from fggp.lab.report.statistics import Summary, summarise
from fggp.lab.report.style import (
    BACKGROUND,
    FAINT,
    GRID,
    PANELS_PER_LINE,
    TEXT,
    PictureFolder,
    format_accuracy_axis,
    panels,
)
from fggp.lab.report.tables import Cell, Row, Table, percent
from fggp.lab.training.pictures import GREY

LINEAR_POINTS_MAX = 12.0
"""Differences above this many points make their axis logarithmic beyond ± 1 point."""
NAMED_LAYERS_MAX = 30
"""Layers that an axis has room to name."""
Curve = tuple[Sequence[float], Any, Any]
"""Epochs, and arrays of means and standard deviations."""


def draw_all(
    folder: PictureFolder, tables: Sequence[Table], contest: Contest | None, baselines: Mapping[int, str]
) -> None:
    """Draw every picture that the records have data for."""
    # A sweep of rates has a picture of its own and would crowd the others.
    without_sweeps = [table.without_sweeps(baselines.get(number, "")) for number, table in enumerate(tables)]
    compared = [on_shared_seeds(table) for table in without_sweeps]
    for number, table in enumerate(compared):
        folder.table = number
        same_subject = [other for other in compared if other.subject == table.subject and other.rows]
        if same_subject and same_subject[0] is table:
            _draw_accuracy(folder, same_subject)
        if number in baselines:
            # Each pair is compared on all seeds that the two have.
            _draw_differences(folder, without_sweeps[number], baselines[number])
        for sweep in tables[number].sweeps:
            _draw_rates(folder, table, on_shared_seeds(replace(table, rows=sweep)).rows)
        _draw_curves(folder, table)
        _draw_densities(folder, table)
    folder.table = None
    if contest is not None and len(contest.settings) > 1:
        _draw_ranks(folder, contest)


def _lines(panel_count: int) -> int:
    return math.ceil(panel_count / PANELS_PER_LINE)


def _sparsity_panels(
    figure: Figure, sparsities: Sequence[float], ylabel: str, **options: Any
) -> Iterator[tuple[Axes, float]]:
    """Give a panel for each sparsity, and the sparsity; the options are those of `panels`."""
    titles = [f"{percent(sparsity)} sparsity" for sparsity in sparsities]
    return zip(panels(figure, titles, ylabel, **options), sparsities, strict=True)


def _draw_accuracy(folder: PictureFolder, tables: Sequence[Table]) -> None:
    """Draw accuracy against sparsity, a panel for each start; the tables are of one subject."""
    caption = f"Mean {folder.by} accuracy over the seeds that the methods share; bars are ± one standard deviation."
    if tables[0].dense:
        caption += " The grey line is dense training, its band ± one standard deviation."
    show_runs = max(len(table.sparsities) for table in tables) == 1
    if show_runs:
        caption += " Small dots are single runs."
    width = 3.6 * min(len(tables), PANELS_PER_LINE) + 1.9
    height = max(3.3, 0.24 * max(len(table.rows) for table in tables) + 0.8) * _lines(len(tables))
    with folder.draw("accuracy", tables[0].subject, caption, width, height) as figure:
        axes = panels(figure, [table.start_name for table in tables], f"{folder.by} accuracy")
        for panel, table in zip(axes, tables, strict=True):
            _accuracy_panel(folder, panel, table, show_runs)
        format_accuracy_axis(figure)


def _accuracy_panel(folder: PictureFolder, axes: Axes, table: Table, show_runs: bool) -> None:
    # Equal steps where the number of kept weights shrinks by equal factors.
    place = {sparsity: -math.log10(max(1 - sparsity, 1e-4)) for sparsity in table.sparsities}
    step = 0.28 * float(np.diff(list(place.values())).min(initial=1.0)) / max(len(table.rows), 4)
    for number, row in enumerate(table.rows):
        look = folder.looks[row.label]
        shift = (number - (len(table.rows) - 1) / 2) * step
        means = {place[sparsity] + shift: summary_of(cell) for sparsity, cell in row.cells.items()}
        _plot_means(axes, means, row.label, look.colour, marker=look.marker, ms=5.5, mec=BACKGROUND, mew=0.6)
        for sparsity, cell in row.cells.items() if show_runs else ():
            x = [place[sparsity] + shift + 0.35 * step] * len(cell)
            axes.plot(x, [run.accuracy for run in cell.values()], "o", color=look.colour, alpha=0.45, ms=3.5, mew=0)
    for number, row in enumerate(table.dense):
        dense = dense_accuracy(table, number)
        std = dense.std or 0.0
        axes.axhline(dense.mean, color=GREY, linewidth=1.2, zorder=1, label=row.label)
        axes.axhspan(dense.mean - std, dense.mean + std, color=GREY, alpha=0.18, linewidth=0, zorder=0)
    axes.set_xticks(list(place.values()), [percent(sparsity) for sparsity in place])
    if len(place) == 1:
        axes.set_xlim(min(place.values()) - 0.25, max(place.values()) + 0.25)
    axes.grid(False, axis="x")
    axes.set_xlabel("sparsity")


def _plot_means(axes: Axes, means: Mapping[float, Summary], label: str, colour: str, **style: Any) -> None:
    """Draw means by x with bars of one standard deviation."""
    values, stds = [each.mean for each in means.values()], [each.std or 0.0 for each in means.values()]
    axes.errorbar([*means], values, stds, color=colour, label=label, lw=1.3, elinewidth=1.2, capsize=2.5, **style)


def _draw_ranks(folder: PictureFolder, contest: Contest) -> None:
    """Draw each method's average rank, and its rank in each setting."""
    count = len(contest.average)
    caption = f"Average rank, 1 is best; small dots are the ranks in the {len(contest.settings)} settings."
    with folder.draw("ranks", "Ranks", caption, 6.6, 0.3 * count + 0.85) as figure:
        axes = figure.subplots()
        for number, (name, average) in enumerate(contest.average.items()):
            look = folder.looks[name]
            axes.plot([1, average], [number] * 2, color=look.colour, alpha=0.3, linewidth=4, solid_capstyle="butt")
            ranks, counts = np.unique(contest.ranks[name], return_counts=True)
            sizes = 14 * counts * min(1.0, 8 / len(contest.settings)) + 4
            axes.scatter(ranks, [number] * len(ranks), s=sizes, color=look.colour, alpha=0.4, linewidths=0)
            axes.plot(average, number, marker=look.marker, color=look.colour, ms=5.5, mec=BACKGROUND, mew=0.6)
            axes.text(1.02, number, f"{average:.2f}", transform=axes.get_yaxis_transform(), va="center", color=TEXT)
        _list_methods(axes, list(contest.average))
        axes.set(xlim=(0.8, count + 0.2), xlabel="rank")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _list_methods(axes: Axes, names: Sequence[str]) -> None:
    """Name methods along the y axis, from top to bottom."""
    axes.set_yticks(range(len(names)), names, color=TEXT)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")


def _draw_differences(folder: PictureFolder, table: Table, baseline: str) -> None:
    """Draw the paired differences to a baseline with their confidence intervals, a panel for each sparsity."""
    found = differences(table, baseline)
    columns = [sparsity for sparsity in table.sparsities if any(sparsity in own for own in found.values())]
    if not columns:
        return
    caption = (
        f"{folder.by.capitalize()} accuracy minus that of {baseline} on the same seeds: mean and 95 % confidence "
        "interval. Hollow: the interval holds zero, so the two cannot be told apart, or there is none."
    )
    wide = max(abs(difference.mean) for own in found.values() for difference in own.values()) > LINEAR_POINTS_MAX
    if wide:
        caption += " Beyond ± 1 point the axis is logarithmic."
    width = 2.3 * min(len(columns), PANELS_PER_LINE) + (4.3 if len(columns) == 1 else 1.4)
    height = _lines(len(columns)) * (0.28 * len(found) + 0.95)
    with folder.draw("differences", table.title, caption, width, height) as figure:
        for axes, sparsity in _sparsity_panels(figure, columns, ""):
            axes.axvline(0, color=folder.looks[baseline].colour, linewidth=1.4)
            for number, (name, own) in enumerate(found.items()):
                if sparsity not in own:
                    continue
                difference, look = own[sparsity], folder.looks[name]
                if difference.low is not None and difference.high is not None:
                    axes.hlines(number, difference.low, difference.high, color=look.colour, linewidth=1.6)
                fill = look.colour if difference.verdict in ("higher", "lower") else BACKGROUND
                axes.plot(difference.mean, number, marker=look.marker, ms=6, mec=look.colour, mfc=fill, mew=1.3)
            _list_methods(axes, list(found))
            if wide:
                low, high = axes.dataLim.x0, axes.dataLim.x1
                axes.set_xscale("symlog", linthresh=1)
                axes.set_xlim(1.25 * min(low, -0.4), 1.25 * max(high, 0.4))
                axes.xaxis.set_major_locator(FixedLocator([-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100]))
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:+g}".replace("-", "−") if x else "0"))
        figure.supxlabel(f"percent points more than {baseline}", fontsize=9, color=FAINT)


def _draw_curves(folder: PictureFolder, table: Table) -> None:
    """Draw mean accuracy and its spread over the epochs, a panel for each sparsity."""
    by = followed_split(table)
    curves = {(row.label, s): curve_of(cell, by) for row in table.rows for s, cell in row.cells.items()}
    columns = [s for s in table.sparsities if any(curves.get((row.label, s)) for row in table.rows)]
    if not columns:
        return
    caption = f"{by.capitalize()} accuracy over training: mean over the seeds, and ± one standard deviation."
    phase = _pruning_phase(table)
    if phase:
        caption += " Weights are pruned where the ground is shaded."
    width = (5.2 if len(columns) == 1 else 2.9 * min(len(columns), PANELS_PER_LINE)) + 1.8
    height = max(2.9 * _lines(len(columns)), 0.2 * len(table.rows) + 0.8)
    with folder.draw("curves", table.title, caption, width, height) as figure:
        for axes, sparsity in _sparsity_panels(figure, columns, f"{by} accuracy"):
            if phase:
                axes.axvspan(*phase, color=GRID, alpha=0.55, linewidth=0, zorder=0)
            lines = [
                (row.label, curves.get((row.label, sparsity)), folder.looks[row.label].colour) for row in table.rows
            ]
            lines += [(row.label, curve_of(row.cells[0.0], by), GREY) for row in table.dense]
            for label, curve, colour in lines:
                if curve is None:
                    continue
                epochs, mean, std = curve
                if colour != GREY:
                    axes.fill_between(epochs, mean - std, mean + std, color=colour, alpha=0.13, linewidth=0)
                # A line through one epoch would not be seen.
                marker = "o" if len(epochs) == 1 else ""
                axes.plot(epochs, mean, color=colour, linewidth=1.4, marker=marker, ms=4, label=label)
            axes.set_xlabel("epoch")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        format_accuracy_axis(figure)


def followed_split(table: Table) -> Split:
    """Return the split that most runs were evaluated on during training; validation where both are equally many."""
    names = [name for row in (*table.dense, *table.rows) for run in row.runs for name in run.curve]
    return "test" if names.count(ACCURACY_KEYS["test"]) > names.count(ACCURACY_KEYS["validation"]) else "validation"


def curve_of(cell: Cell, by: Split) -> Curve | None:
    """Return epochs, mean and standard deviation over the runs whose curve has the commonest epochs."""
    key = ACCURACY_KEYS[by]
    curves = [(tuple(run.curve["epoch"]), run.curve[key]) for run in cell.values() if key in run.curve]
    if not curves:
        return None
    all_epochs = [epochs for epochs, _ in curves]
    commonest = max(all_epochs, key=all_epochs.count)
    values = np.array([accuracy for epochs, accuracy in curves if epochs == commonest])
    return commonest, values.mean(0), values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(commonest))


def _pruning_phase(table: Table) -> tuple[float, float] | None:
    """Return the first and last epoch of pruning, where all runs that become sparser agree on them."""
    runs = [run for row in table.rows for run in row.runs if not run.sparse_throughout]
    phases = {(run.settings.get("prune_begin"), run.settings.get("prune_end")) for run in runs}
    begin, end = phases.pop() if len(phases) == 1 else (None, None)
    return (float(begin), float(end)) if begin is not None and end is not None else None


def _draw_densities(folder: PictureFolder, table: Table) -> None:
    """Draw the share of each layer's weights that is kept after training, a panel for each sparsity."""
    found = {(row.label, s): _densities(cell) for row in table.rows for s, cell in row.cells.items()}
    columns = [s for s in table.sparsities if any(found.get((row.label, s)) for row in table.rows)]
    if not columns:
        return
    layers = list(dict.fromkeys(layer for own in found.values() for layer in own))
    named = len(layers) <= NAMED_LAYERS_MAX
    caption = (
        "Share of each layer's weights that is kept after training, mean over the seeds; layers from input to output. "
        "Dashed: the share of all weights. A layer without a kept weight has no point."
    )
    per_line = 1 if len(layers) > 12 else PANELS_PER_LINE
    width = (7.4 if per_line == 1 else 2.9 * min(len(columns), per_line)) + 1.8
    height = 2.2 * math.ceil(len(columns) / per_line) + (0.055 * max(map(len, layers)) if named else 0.2)
    with folder.draw("density", table.title, caption, width, max(height, 0.2 * len(table.rows) + 0.8)) as figure:
        thin: Any = {"lw": 1.1, "ms": 4 if named else 0, "mec": BACKGROUND, "mew": 0.4}
        for axes, sparsity in _sparsity_panels(figure, columns, "kept weights", per_line=per_line, sharex=True):
            axes.axhline(1 - sparsity, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)))
            for row in table.rows:
                look, own = folder.looks[row.label], found.get((row.label, sparsity), {})
                kept = {number: own[layer] for number, layer in enumerate(layers) if own.get(layer, 0) > 0}
                if kept:
                    axes.plot([*kept], [*kept.values()], color=look.colour, label=row.label, **thin, marker=look.marker)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=" %"))
            axes.yaxis.set_minor_formatter("")
            names = [layer.removesuffix(".weight") for layer in layers] if named else []
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", fontsize=7)
            axes.set_xlabel("" if named else "layer")


def _densities(cell: Cell) -> dict[str, float]:
    """Return the mean over the runs by layer; empty where no density is known or above zero."""
    known = [run.densities for run in cell.values() if any(run.densities.values())]
    layers = dict.fromkeys(layer for own in known for layer in own)
    return {layer: fmean(own[layer] for own in known if layer in own) for layer in layers}


def _draw_rates(folder: PictureFolder, table: Table, sweep: Sequence[Row]) -> None:
    """Draw accuracy against the rate of a method that was run with three or more, a panel for each sparsity."""
    sparsities = sorted({sparsity for row in sweep for sparsity in row.cells})
    columns = [sparsity for sparsity in sparsities if sum(sparsity in row.cells for row in sweep) >= 3]
    if not columns:
        return
    colour = folder.looks[sweep[len(sweep) // 2].label].colour
    caption = (
        "Accuracy against the rate, mean over the seeds that the rates share ± one standard deviation. A rate is to be "
        "chosen by validation accuracy (filled, circled where it is highest); test accuracy is hollow."
    )
    title = f"{sweep[0].label.partition(' (')[0]} · {table.title}"
    width = (4.6 if len(columns) == 1 else 2.7 * min(len(columns), PANELS_PER_LINE)) + 1.6
    with folder.draw("rate", title, caption, width, 2.8 * _lines(len(columns))) as figure:
        for axes, sparsity in _sparsity_panels(figure, columns, "accuracy"):
            test, validation = {}, {}
            for row in sweep:
                runs, rate = row.cells.get(sparsity, {}).values(), row.rate or 0.0
                held_out = [run.val_accuracy for run in runs if run.val_accuracy is not None]
                if runs:
                    test[rate] = summarise([run.test_accuracy for run in runs])
                if held_out and len(held_out) == len(runs):
                    validation[rate] = summarise(held_out)
            _plot_means(axes, test, "test", GREY, marker="o", ms=5, mfc=BACKGROUND)
            if validation:
                _plot_means(axes, validation, "validation", colour, marker="o", ms=5)
                best = max(validation, key=lambda rate: validation[rate].mean)
                axes.plot(best, validation[best].mean, "o", ms=11, mfc="none", mec=colour, mew=1.2)
            axes.set_xlabel("rate r")
        format_accuracy_axis(figure)
