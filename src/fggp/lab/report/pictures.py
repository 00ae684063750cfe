"""The pictures of a report: accuracy, ranks, differences. Each is drawn only where there is data for it."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from fggp.lab.report import pictures_of_training as training
from fggp.lab.report.canvas import ACROSS, Canvas
from fggp.lab.report.findings import Contest, accuracies, dense_accuracy, differences
from fggp.lab.report.looks import FAINT, INK, PAPER
from fggp.lab.report.scale import WIDE, accuracy_scale
from fggp.lab.report.statistics import summarise
from fggp.lab.report.tables import Table, percent
from fggp.lab.report.wording import interval_of, mean_std, signed
from fggp.lab.training.pictures import GREY


def draw(
    canvas: Canvas, tables: Sequence[Table], contest: Contest | None, baselines: Mapping[int, str]
) -> Iterator[None]:
    """Draw all there is, and yield after each kind of picture of each table."""
    # A sweep of rates has a picture of its own; in the others it would be a thicket.
    main = [table.without_sweeps(baselines.get(number, "")) for number, table in enumerate(tables)]
    for number, table in enumerate(tables):
        canvas.table = number
        same = [other for other in main if other.subject == table.subject]
        if same[0] is main[number]:
            accuracy(canvas, same)
            yield
        if number in baselines:
            difference(canvas, main[number], baselines[number])
            yield
        training.rates(canvas, table)
        yield
        for kind in (training.curves, training.density):
            kind(canvas, main[number])
            yield
    canvas.table = None
    if contest is not None and len(contest.settings) > 1:
        ranks(canvas, contest)
    yield


def accuracy(canvas: Canvas, tables: Sequence[Table]) -> None:
    """Draw accuracy against sparsity, a panel for each start.

    Args:
        tables: of one subject.
    """
    tables = [table for table in tables if table.rows]
    if not tables:
        return
    caption = f"Mean {canvas.by} accuracy over the seeds; bars are ± one standard deviation."
    if tables[0].dense:
        caption += " The grey line is dense training, its band ± one standard deviation."
    if max(len(table.sparsities) for table in tables) == 1:
        _accuracy_dots(canvas, tables, f"{caption} Small dots are single runs.")
        return
    rows = list({row.label: row for table in tables for row in table.rows}.values())
    width = 3.6 * min(len(tables), ACROSS) + 1.9
    height = max(3.3, 0.24 * len(rows) + 0.8) * math.ceil(len(tables) / ACROSS)
    with canvas.picture("accuracy", tables[0].subject, caption, width, height) as figure:
        panels = canvas.panels(figure, len(tables), sharey=True)
        for axes, table in zip(panels, tables, strict=True):
            _accuracy_lines(canvas, axes, table)
            axes.set(title=table.beginning, xlabel="sparsity")
        for axes in panels[::ACROSS]:
            axes.set_ylabel(f"{canvas.by} accuracy")
        accuracy_scale(panels, "y")
        canvas.legend(figure, rows, dense=bool(tables[0].dense))


def _accuracy_lines(canvas: Canvas, axes: Axes, table: Table) -> None:
    _dense_band(canvas, axes, table)
    # Equal steps where the weights left shrink by equal factors.
    place = {sparsity: -math.log10(max(1 - sparsity, 1e-4)) for sparsity in table.sparsities}
    gaps = np.diff(sorted(place.values()))
    step = 0.28 * float(gaps.min(initial=1.0)) / max(len(table.rows), 4)
    for number, row in enumerate(table.rows):
        look = canvas.looks[row.label]
        shift = (number - (len(table.rows) - 1) / 2) * step
        summaries = {sparsity: summarise([*accuracies(cell).values()]) for sparsity, cell in row.cells.items()}
        axes.plot(
            [place[sparsity] + shift for sparsity in summaries],
            [summary.mean for summary in summaries.values()],
            color=look.colour,
            linewidth=1.3,
            gid=canvas.gid(row.label),
        )
        for sparsity, summary in summaries.items():
            tip = f"{row.label} at {percent(sparsity)}: {mean_std(summary)} %, {_seeds(summary.count)}"
            canvas.point(axes, place[sparsity] + shift, summary.mean, summary.std, look, canvas.gid(row.label, tip))
    axes.set_xticks(list(place.values()), [percent(sparsity) for sparsity in place])
    axes.grid(False, axis="x")


def _accuracy_dots(canvas: Canvas, tables: Sequence[Table], caption: str) -> None:
    """One sparsity a table: methods below each other, the single runs beside their mean."""
    height = sum(0.3 * len(table.rows) + 0.95 for table in tables)
    with canvas.picture("accuracy", tables[0].subject, caption, 6.6, height) as figure:
        ratios = [len(table.rows) + 1.4 for table in tables]
        panels = figure.subplots(len(tables), 1, squeeze=False, sharex=True, height_ratios=ratios)[:, 0]
        for axes, table in zip(panels, tables, strict=True):
            _dense_band(canvas, axes, table, upright=True)
            for number, row in enumerate(table.rows):
                look = canvas.looks[row.label]
                values = [*accuracies(row.cells[table.sparsities[0]]).values()]
                summary = summarise(values)
                tip = f"{row.label}: {mean_std(summary)} %, {_seeds(summary.count)}"
                single = [number + 0.22] * len(values)
                if len(values) > 1:
                    gid = canvas.gid(row.label)
                    axes.plot(values, single, "o", color=look.colour, alpha=0.45, ms=3.5, mew=0, gid=gid)
                gid = canvas.gid(row.label, tip)
                canvas.point(axes, summary.mean, number - 0.08, summary.std, look, gid, across=True)
            axes.set_yticks(range(len(table.rows)), [row.label for row in table.rows], color=INK)
            axes.set_ylim(len(table.rows) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.grid(False, axis="y")
            axes.set_title(f"{percent(table.sparsities[0])} sparsity, {table.beginning}")
        panels[-1].set_xlabel(f"{canvas.by} accuracy")
        accuracy_scale(list(panels), "x")


def _dense_band(canvas: Canvas, axes: Axes, table: Table, upright: bool = False) -> None:
    for number in range(len(table.dense)):
        dense = dense_accuracy(table, number)
        (axes.axvline if upright else axes.axhline)(dense.mean, color=GREY, linewidth=1.2, zorder=1)
        if dense.std is not None:
            span = axes.axvspan if upright else axes.axhspan
            span(dense.mean - dense.std, dense.mean + dense.std, color=GREY, alpha=0.18, linewidth=0, zorder=0)


def ranks(canvas: Canvas, contest: Contest) -> None:
    """Draw each method's average rank, and its rank in each setting."""
    count = len(contest.average)
    caption = f"Average rank, 1 is best; small dots are the ranks in the {len(contest.settings)} settings."
    with canvas.picture("ranks", "Ranks", caption, 6.6, 0.3 * count + 0.85) as figure:
        axes = figure.subplots()
        for number, (name, average) in enumerate(contest.average.items()):
            look, gid = canvas.looks[name], canvas.gid(name)
            bar = axes.plot(
                [1, average], [number] * 2, color=look.colour, alpha=0.3, linewidth=4, solid_capstyle="butt"
            )
            bar[0].set_gid(gid)
            places, often = np.unique(contest.ranks[name], return_counts=True)
            sizes = 14 * often * min(1.0, 8 / len(contest.settings)) + 4
            axes.scatter(places, [number] * len(places), s=sizes, color=look.colour, alpha=0.4, linewidths=0, gid=gid)
            tip = f"{name}: average rank {average:.2f}"
            canvas.point(axes, average, number, None, look, canvas.gid(name, tip))
            axes.text(1.02, number, f"{average:.2f}", transform=axes.get_yaxis_transform(), va="center", color=INK)
        axes.set_yticks(range(count), list(contest.average), color=INK)
        axes.set_ylim(count - 0.4, -0.6)
        axes.set_xlim(0.8, count + 0.2)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.set_xlabel("rank")


def difference(canvas: Canvas, table: Table, baseline: str) -> None:
    """Draw the paired differences to a baseline with their confidence intervals, a panel for each sparsity."""
    found = differences(table, baseline)
    columns = [sparsity for sparsity in table.sparsities if any(sparsity in own for own in found.values())]
    if not columns:
        return
    caption = (
        f"{canvas.by.capitalize()} accuracy minus that of {baseline} on the same seeds: mean and 95 % confidence "
        "interval. Hollow: the interval holds zero, so the two cannot be told apart, or there is none."
    )
    wide = max(abs(difference.mean) for own in found.values() for difference in own.values()) > WIDE
    if wide:
        caption += " Beyond ± 1 point the axis is logarithmic."
    rows = math.ceil(len(columns) / ACROSS)
    width = 2.3 * min(len(columns), ACROSS) + (4.3 if len(columns) == 1 else 1.4)
    with canvas.picture("differences", table.title, caption, width, rows * (0.28 * len(found) + 0.95)) as figure:
        panels = canvas.panels(figure, len(columns), sharey=True)
        for axes, sparsity in zip(panels, columns, strict=True):
            axes.axvline(0, color=canvas.looks[baseline].colour, linewidth=1.4, gid=canvas.gid(baseline))
            for number, (name, own) in enumerate(found.items()):
                if sparsity not in own:
                    continue
                difference, look = own[sparsity], canvas.looks[name]
                tip = (
                    f"{name} at {percent(sparsity)}: {signed(difference.mean)} ({interval_of(difference)}), "
                    f"{_pairs(difference.pairs)}"
                )
                gid = canvas.gid(name, tip)
                if difference.low is not None and difference.high is not None:
                    axes.plot(
                        [difference.low, difference.high], [number] * 2, color=look.colour, linewidth=1.6, gid=gid
                    )
                certain = difference.verdict in ("higher", "lower")
                axes.plot(
                    difference.mean,
                    number,
                    marker=look.marker,
                    markersize=6,
                    markeredgecolor=look.colour,
                    markerfacecolor=look.colour if certain else PAPER,
                    markeredgewidth=1.3,
                    gid=gid,
                )
            axes.set_title(f"{percent(sparsity)} sparsity")
            axes.set_yticks(range(len(found)), list(found), color=INK)
            axes.set_ylim(len(found) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.grid(False, axis="y")
            if wide:
                low, high = axes.dataLim.x0, axes.dataLim.x1
                axes.set_xscale("symlog", linthresh=1)
                axes.set_xlim(1.25 * min(low, -0.4), 1.25 * max(high, 0.4))
                axes.xaxis.set_major_locator(FixedLocator([-100, -30, -10, -3, -1, 0, 1, 3, 10, 30, 100]))
                axes.xaxis.set_minor_locator(NullLocator())
            else:
                axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
            axes.xaxis.set_major_formatter(FuncFormatter(_signed_tick))
        figure.supxlabel(f"percent points more than {baseline}", fontsize=9, color=FAINT)


def _signed_tick(value: float, _: object) -> str:
    return f"{value:+g}".replace("-", "−") if value else "0"


def _seeds(count: int) -> str:
    return f"{count} seed{'s' * (count != 1)}"


def _pairs(count: int) -> str:
    return f"{count} pair{'s' * (count != 1)}"
