"""A picture's SVG made part of a page: it takes the page's font and colours, also in the dark, and has tips."""

import re
from collections.abc import Iterable
from html import escape

from fggp.lab.report.canvas import Picture
from fggp.lab.report.looks import FAINT, FRAME, GRID, INK, PAPER, Look
from fggp.lab.training.pictures import GREY

COLOURS = {INK: "ink", FAINT: "faint", FRAME: "frame", GRID: "grid", PAPER: "paper", GREY: "dense", "#000000": "ink"}
"""The page's variable for each colour that is no method's own."""


def inline(picture: Picture, looks: Iterable[Look]) -> str:
    """Return the picture as an SVG element."""
    svg = picture.svg.read_text("utf-8")
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<title>.*?</title>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: (?P<style>[^;\"']*?)'[^;\"]*", r"font: \g<style>var(--font)", svg)
    variables = {colour.lower(): name for colour, name in COLOURS.items()}
    variables |= {look.colour.lower(): f"s{look.number}" for look in looks}
    svg = re.sub(
        r"#[0-9a-f]{6}\b",
        lambda found: f"var(--{variables[found[0]]})" if found[0] in variables else found[0],
        svg,
    )
    svg = re.sub(r"(\d\.\d\d)\d+", r"\1", svg)  # a hundredth of a point is as fine as can be seen
    # The page has headings of its own.
    svg = re.sub(r'<g id="heading">.*?</g>', "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="series-(\d+)(?:-tip-(\d+))?">', lambda found: _group(found, picture), svg)
    # Names inside of one picture must not be those of another.
    for attribute in ('id="', 'href="#', "url(#"):
        svg = svg.replace(attribute, f"{attribute}{picture.png.stem}-")
    return _opening(svg, picture)


def _group(found: re.Match[str], picture: Picture) -> str:
    number, tip = found.groups()
    title = "" if tip is None else f"<title>{escape(picture.tips[int(tip)])}</title>"
    return f'<g class="series" data-series="{number}">{title}'


def _opening(svg: str, picture: Picture) -> str:
    """The element's own tag: as wide as the page lets it be, and with a name for those who cannot see it."""
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert box is not None, "Matplotlib's SVG always has a viewBox"
    tag = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'{box[0]} aria-label="{escape(picture.title)}">'
    )
    return tag + svg[svg.index(">") + 1 :]
