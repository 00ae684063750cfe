"""The report as one HTML page with its pictures inside: it needs no network and no other file."""

import base64
import re
from importlib.resources import files
from pathlib import Path

from markdown_it import MarkdownIt

# A browser loads nothing for a page with this policy, whatever a record's text may hold.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>Pruning methods compared</title>
<style>
{style}</style>
</head>
<body>
<main>
{report}<details>
<summary>All runs</summary>
{runs}</details>
</main>
</body>
</html>
"""


def render(report: str, runs: str, folder: Path) -> str:
    """Return the page.

    Args:
        report: Markdown.
        runs: Markdown, shown on request only.
        folder: with the SVG file of every picture that the report names.
    """
    markdown = MarkdownIt("commonmark", {"html": False, "xhtmlOut": False}).enable("table")
    parts = [
        re.sub("<table>.*?</table>", r'<div class="scroll">\g<0></div>', markdown.render(text), flags=re.DOTALL)
        for text in (report, runs)
    ]
    # Text is escaped and holds no quotes, so these are the pictures.
    parts = [
        re.sub(r'src="([\w-]+)\.png"', lambda found: f'src="{_embedded(folder, found[1])}"', part) for part in parts
    ]
    style = (files("fggp.lab.report") / "page.css").read_text("utf-8")
    return PAGE.format(policy=POLICY, style=style, report=parts[0], runs=parts[1])


def _embedded(folder: Path, name: str) -> str:
    svg = (folder / f"{name}.svg").read_bytes()
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
