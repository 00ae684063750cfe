"""The look that all pictures of a report share: colours, markers, files, panels and legends."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from fggp.lab.report.runs import Split
from fggp.lab.report.tables import Row
from fggp.lab.training.pictures import COLOURS, STYLE

TEXT, FAINT, GRID, BACKGROUND = "#1F2430", "#5F6775", "#E4E7EC", "#FFFFFF"
REPORT_STYLE: dict[Any, Any] = {
    **STYLE,
    **dict.fromkeys(("text.color", "axes.titlecolor", "legend.labelcolor"), TEXT),
    **dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), FAINT),
    "axes.edgecolor": "#AEB5C0",
    "grid.color": GRID,
    "savefig.dpi": 200,
    "legend.fontsize": 8.5,
    "legend.handletextpad": 0.5,
    "svg.hashsalt": "fggp",  # the same records make the same file
}
PALETTE = (*COLOURS, "#882255", "#999933", "#332288", "#44AA99", "#8C564B", "#5C6670")
"""Okabe & Ito's colours, then some of Paul Tol's muted scheme, for the colour-blind too."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "*", ">")
PANELS_PER_LINE = 3
STRETCHED_RANGE = 25.0
"""Percent points of accuracy from which on an axis is stretched towards 100 %."""


@dataclass(frozen=True)
class Look:
    """Colour and marker of a row in every picture."""

    colour: str
    marker: str


@dataclass(frozen=True)
class Picture:
    """A picture on disk, as PNG and SVG.

    Args:
        kind: accuracy, ranks, differences, curves, rate or density.
        name: of its files, without the ending.
        title, caption: what it shows, and how to read it.
        table: number of its table; None if it is of all tables.
    """

    kind: str
    name: str
    title: str
    caption: str
    table: int | None


@dataclass
class PictureFolder:
    """Where a report's pictures are drawn.

    Args:
        path: the folder.
        looks: of every row, by label.
        by: the split whose accuracy the pictures show.
        table: number of the table that is drawn; None while pictures of all tables are drawn.
        pictures: those drawn so far.
    """

    path: Path
    looks: Mapping[str, Look]
    by: Split = "test"
    table: int | None = None
    pictures: list[Picture] = field(default_factory=list)

    @contextmanager
    def draw(self, kind: str, title: str, caption: str, width: float, height: float) -> Iterator[Figure]:
        """Give a figure of a size in inches to draw on, then add a legend of all labels and write the files."""
        number = sum(picture.kind == kind for picture in self.pictures) + 1
        name = kind if number == 1 else f"{kind}-{number}"
        # The legend begins at the height of the title, which therefore must stay left of it.
        lines = textwrap.wrap(title.replace(" ·", "\N{NO-BREAK SPACE}·"), max(30, round(13 * (width - 1.8))))
        with matplotlib.rc_context(REPORT_STYLE):
            figure = Figure(figsize=(width, height + 0.1 + 0.2 * len(lines)), layout="constrained")
            FigureCanvasAgg(figure)
            figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10, fontweight="bold")
            yield figure
            named: dict[str, Artist] = {}
            for axes in figure.axes:
                handles, labels = axes.get_legend_handles_labels()
                named |= zip(labels, handles, strict=True)
            if named:
                figure.legend([*named.values()], [*named], loc="outside right upper", alignment="left")
            figure.savefig(self.path / f"{name}.png", metadata={"Software": None})
            figure.savefig(self.path / f"{name}.svg", metadata={"Date": None, "Creator": None})
        self.pictures.append(Picture(kind, name, title, caption, self.table))


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Choose a colour and marker for each label: a hue for each method, shades of it for its rows."""
    methods = list(dict.fromkeys(row.method for row in rows))
    found = {}
    for method_number, method in enumerate(methods):
        labels = list(dict.fromkeys(row.label for row in rows if row.method == method))
        for number, label in enumerate(labels):
            colour = _shade(PALETTE[method_number % len(PALETTE)], number, len(labels))
            # Markers tell one method's rows apart where their shades are close.
            found[label] = Look(colour, MARKERS[(method_number + number) % len(MARKERS)])
    return found


def _shade(colour: str, number: int, count: int) -> str:
    """Return a colour's shade for one of several rows, from darker to lighter."""
    position = number / (count - 1) if count > 1 else 0.5
    other, share = ("black", 0.45 * (1 - 2 * position)) if position < 0.5 else ("white", position - 0.5)
    red, green, blue = (1 - share) * np.array(to_rgb(colour)) + share * np.array(to_rgb(other))
    return to_hex((red, green, blue))


def panels(
    figure: Figure, titles: Sequence[str], ylabel: str, per_line: int = PANELS_PER_LINE, sharex: bool = False
) -> list[Axes]:
    """Split a figure into a panel for each title, line by line, with one y axis for all."""
    columns = min(len(titles), per_line)
    axes = figure.subplots(
        math.ceil(len(titles) / columns), columns, squeeze=False, sharex=sharex, sharey=True
    ).flatten()
    for unused in axes[len(titles) :]:
        unused.set_visible(False)
    for panel, title in zip(axes, titles, strict=False):
        panel.set_title(title)
    for panel in axes[::columns]:
        panel.set_ylabel(ylabel)
    return list(axes[: len(titles)])


def format_accuracy_axis(figure: Figure) -> None:
    """Format the y axis as percent; stretch it towards 100 % where low accuracies would crowd the high ones."""
    low = min(axes.dataLim.y0 for axes in figure.axes if axes.get_visible())
    high = max(axes.dataLim.y1 for axes in figure.axes if axes.get_visible())
    for axes in figure.axes:
        if high - low > STRETCHED_RANGE and high > 85:
            stretch = (lambda value: -np.log10(np.maximum(102 - value, 1e-3))), (lambda value: 102 - 10.0**-value)
            axes.set_yscale("function", functions=stretch)
            axes.yaxis.set_major_locator(FixedLocator([0, 30, 50, 60, 70, 80, 90, 95, 98, 100]))
        axes.yaxis.set_major_formatter("{x:g} %")
    bottom, top = figure.axes[0].get_ylim()
    figure.axes[0].set_ylim(max(bottom, 0.0), min(top, 100.0))
