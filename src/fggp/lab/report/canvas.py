"""What all pictures of a report share: their style and files, panels, legends and marks."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fggp.lab.report.looks import FAINT, FRAME, GRID, INK, PAPER, Look
from fggp.lab.report.runs import By
from fggp.lab.report.tables import Row
from fggp.lab.training.pictures import GREY, STYLE

REPORT_STYLE: dict[Any, Any] = {
    **STYLE,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.titlecolor", "legend.labelcolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), FAINT),
    "axes.edgecolor": FRAME,
    "axes.labelcolor": FAINT,
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "grid.color": GRID,
    "savefig.dpi": 200,
    "legend.fontsize": 8.5,
    "legend.handletextpad": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "fggp",
}
ACROSS = 3
"""Panels side by side."""


@dataclass(frozen=True)
class Picture:
    """A picture on disk.

    Args:
        kind: what it shows: accuracy, ranks, differences, curves, rate or density.
        title: what it is of.
        caption: how to read it.
        png, svg: its files.
        width: in inches.
        table: number of the table that it belongs to; None if to all.
        tips: what the page shows over its marks, by the number that their SVG groups carry.
    """

    kind: str
    title: str
    caption: str
    png: Path
    svg: Path
    width: float
    table: int | None
    tips: Sequence[str]


class Canvas:
    """A folder to draw into.

    Args:
        folder: where pictures go.
        looks: of every row, by label.
        by: which accuracy they show.
    """

    def __init__(self, folder: Path, looks: Mapping[str, Look], by: By = "test") -> None:
        self.folder = folder
        self.by = by
        self.looks = looks
        self.pictures: list[Picture] = []
        self.table: int | None = None
        self._tips: list[str] = []

    @contextmanager
    def picture(self, kind: str, title: str, caption: str, width: float, height: float) -> Iterator[Figure]:
        """Give a figure to draw on, of a size in inches; write its files when that is done."""
        self._tips = []
        number = sum(picture.kind == kind for picture in self.pictures) + 1
        name = kind if number == 1 else f"{kind}-{number}"
        # The legend, if there is one, begins as high as the title: they must not meet.
        lines = textwrap.wrap(title.replace(" ·", "\N{NO-BREAK SPACE}·"), max(30, round(13 * (width - 1.8))))
        with matplotlib.rc_context(REPORT_STYLE):
            figure = Figure(figsize=(width, height + 0.1 + 0.2 * len(lines)), layout="constrained")
            FigureCanvasAgg(figure)
            heading = figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10, fontweight="bold")
            heading.set_gid("heading")
            yield figure
            figure.draw_without_rendering()
            figure.set_layout_engine("none")  # laid out once is enough for both files
            png, svg = (self.folder / f"{name}.{ending}" for ending in ("png", "svg"))
            figure.savefig(png, metadata={"Software": None})
            figure.savefig(svg, metadata={"Date": None, "Creator": None})
        self.pictures.append(Picture(kind, title, caption, png, svg, width, self.table, self._tips))

    def gid(self, label: str, tip: str = "") -> str:
        """Name an SVG group after the row that it belongs to and, if it has a tip, after that."""
        if not tip:
            return f"series-{self.looks[label].number}"
        self._tips.append(tip)
        return f"series-{self.looks[label].number}-tip-{len(self._tips) - 1}"

    def panels(self, figure: Figure, count: int, **options: Any) -> list[Axes]:
        """Give a figure panels, line by line."""
        across = min(count, ACROSS)
        axes = figure.subplots(math.ceil(count / across), across, squeeze=False, **options).flatten()
        for spare in axes[count:]:
            spare.set_visible(False)
        return list(axes[:count])

    def legend(self, figure: Figure, rows: Sequence[Row], dense: bool = False, marks: bool = True) -> None:
        """Say at the right side of a figure which row is which, and by ``marks`` how its points look."""
        handles = []
        for row in rows:
            look = self.looks[row.label]
            marker = look.marker if marks else ""
            handles.append(Line2D([], [], color=look.colour, marker=marker, markersize=5, label=row.label))
        if dense:
            handles.append(Line2D([], [], color=GREY, label="dense"))
        legend = figure.legend(handles=handles, loc="outside right upper", alignment="left")
        for row, handle, text in zip(rows, legend.legend_handles, legend.get_texts(), strict=False):
            for part in (handle, text):
                if part is not None:
                    part.set_gid(self.gid(row.label))

    def point(
        self, axes: Axes, x: float, y: float, std: float | None, look: Look, gid: str, across: bool = False
    ) -> None:
        """Draw a mean with its deviation, which lies ``across`` where methods are below each other."""
        error = {"xerr" if across else "yerr": std} if std is not None else {}
        drawn = axes.errorbar(
            x,
            y,
            **error,  # type: ignore[arg-type]
            color=look.colour,
            marker=look.marker,
            markersize=5.5,
            markeredgecolor=PAPER,
            markeredgewidth=0.6,
            elinewidth=1.2,
            capsize=2.5,
            linestyle="",
        )
        for part in drawn.get_children():
            part.set_gid(gid)
