"""The picture of a budget: accuracy against size and time, of everything that was tried."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from fggp.lab.budget.trials import Trial
from fggp.lab.budget.wishes import Wishes, percent
from fggp.lab.training.pictures import BLUE, GREEN, GREY, ORANGE, new_figure


def draw_budget(
    file: Path, title: str, trials: Sequence[Trial], chosen: Trial | None, wishes: Wishes, batch: int
) -> Path:
    """Draw validation accuracies, with the 95 % intervals of their differences to dense networks.

    Args:
        file: the picture.
        title: names the network and the data.
        trials: dense networks first.
        chosen: one of them; None if none meets the limits.
        wishes: the limits, drawn as lines.
        batch: images at once.
    """
    dense, *pruned = trials
    sizes = [trial.cost.bytes / 1e3 for trial in trials]
    times = [trial.cost.ms for trial in trials]
    size_limit = None if wishes.bytes is None else wishes.bytes / 1e3
    with new_figure(file, 7.6, 3.2) as figure:
        panels: tuple[Axes, Axes] = figure.subplots(1, 2, sharey=True)
        for axes, values, limit, label in (
            (panels[0], sizes, size_limit, "small file, kB"),
            (panels[1], times, wishes.ms, f"fggp.compile, ms for a batch of {batch}"),
        ):
            _scatter(axes, trials, values, chosen)
            if limit is not None:
                axes.axvline(limit, color=ORANGE, linestyle="--", linewidth=1)
            if wishes.drop is not None:
                reference = pruned[0].estimate.accuracy + pruned[0].estimate.drop if pruned else dense.estimate.accuracy
                axes.axhline(reference - wishes.drop, color=ORANGE, linestyle="--", linewidth=1)
            axes.set(xscale="log", xlabel=label)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(NullLocator())
        panels[0].set(title=title, ylabel="validation accuracy")
        panels[0].yaxis.set_major_formatter(PercentFormatter(decimals=1))
    return file


def _scatter(axes: Axes, trials: Sequence[Trial], values: Sequence[float], chosen: Trial | None) -> None:
    for trial, value in zip(trials, values, strict=True):
        colour = GREEN if trial is chosen else BLUE if trial.sparsity else GREY
        accuracy, noise = trial.estimate.accuracy, trial.estimate.noise if trial.sparsity else 0.0
        interval = [[noise], [min(noise, 100 - accuracy)]]
        size = 9 if trial is chosen else 5
        axes.errorbar([value], [accuracy], yerr=interval, fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.5)
        axes.plot([value], [accuracy], "o", color=colour, markersize=size)
        text = percent(trial.sparsity) if trial.sparsity else "dense"
        axes.annotate(text, (value, accuracy), xytext=(5, 5), textcoords="offset points", fontsize=7.5, color=colour)
