"""An axis of accuracies that shows good and bad ones alike."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

WIDE = 12.0
"""Percent points of accuracy from which on an axis is not linear."""


def accuracy_scale(panels: Sequence[Axes], which: str) -> None:
    """Format an axis of accuracies; stretch it towards 100 % where good and bad ones would not both be readable."""
    bounds = [getattr(axes.dataLim, f"interval{which}") for axes in panels]
    low, high = (float(value) for value in (min(b[0] for b in bounds), max(b[1] for b in bounds)))
    forward, inverse = _stretched(high) if high - low > WIDE else (lambda value: value, lambda value: value)
    margin = 0.05 * max(forward(high) - forward(low), 1e-3)
    low, high = max(0.0, float(inverse(forward(low) - margin))), min(100.0, float(inverse(forward(high) + margin)))
    for axes in panels:
        axis = getattr(axes, f"{which}axis")
        if high - low > WIDE:
            getattr(axes, f"set_{which}scale")("function", functions=(forward, inverse))
            axis.set_major_locator(FixedLocator(_stretched_ticks(low, high, forward)))
            axis.set_minor_locator(NullLocator())
        getattr(axes, f"set_{which}lim")(low, high)
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} %"))


def _stretched(highest: float) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Logarithm of the distance to a little above the top, and its inverse."""
    top = 100 + max(0.3, (100 - highest) / 4)
    return (lambda value: -np.log10(np.maximum(top - value, 1e-3))), (lambda value: top - 10.0**-value)


def _stretched_ticks(low: float, high: float, forward: Callable[[Any], Any]) -> list[float]:
    ticks: list[float] = []
    total = float(forward(high) - forward(low))
    for tick in sorted({*range(0, 90, 10), 85, 90, 92, 94, 95, 96, 97, 98, 99, 100}, reverse=True):
        if low <= tick <= high and (not ticks or float(forward(ticks[-1]) - forward(tick)) > 0.07 * total):
            ticks.append(float(tick))
    return ticks
