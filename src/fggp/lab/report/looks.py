"""One colour and one mark for each method, the same in every table and picture, in light and in dark."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.colors import to_hex, to_rgb

from fggp.lab.report.tables import Row
from fggp.lab.training.pictures import COLOURS

PALETTE = (*COLOURS, "#882255", "#999933", "#332288", "#44AA99", "#8C564B", "#5C6670")
"""Okabe & Ito's, then from Paul Tol's muted scheme: told apart by the colour-blind too, as far as so many can be."""
MARKS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖", "p": "⬟", "<": "◀", "*": "★", ">": "▶"}
"""Matplotlib's markers, and the characters that look like them."""

INK, FAINT, FRAME, GRID, PAPER = "#1F2430", "#5F6775", "#AEB5C0", "#E4E7EC", "#FFFFFF"


@dataclass(frozen=True)
class Look:
    """How a row is drawn.

    Args:
        number: of the row; its CSS variable is ``--s<number>``.
        colour: on white.
        dark: the same on black: lighter.
        marker: Matplotlib's.
    """

    number: int
    colour: str
    dark: str
    marker: str

    @property
    def mark(self) -> str:
        """The marker as a character."""
        return MARKS[self.marker]


def looks(rows: Sequence[Row]) -> dict[str, Look]:
    """Give each label a look.

    Args:
        rows: of all tables, in the order in which colours are handed out; one method's share a hue.
    """
    methods = list(dict.fromkeys(row.method for row in rows))
    by_label = {row.label: row.method for row in rows}
    found = {}
    for number, (name, method) in enumerate(by_label.items()):
        own = [other for other, its in by_label.items() if its == method]
        colour = _shade(PALETTE[methods.index(method) % len(PALETTE)], own.index(name), len(own))
        # Rows of one method differ by their marks even where shades are close.
        marker = list(MARKS)[(methods.index(method) + own.index(name)) % len(MARKS)]
        found[name] = Look(number, colour, _mix(colour, "white", 0.3), marker)
    return found


def _shade(colour: str, place: int, count: int) -> str:
    """The colour for an only row; from darker to lighter over several."""
    if count == 1:
        return colour
    position = place / (count - 1)
    return _mix(colour, "black", 0.45 * (1 - 2 * position)) if position < 0.5 else _mix(colour, "white", position - 0.5)


def _mix(colour: str, other: str, share: float) -> str:
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(to_rgb(colour), to_rgb(other), strict=True))
    return to_hex((red, green, blue))
