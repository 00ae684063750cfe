"""The navigation of the site: the sections of links on the first page, docs/index.md."""

import re
from pathlib import PurePosixPath


def sections(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return each section of the first page with its pages, as (title, name) pairs, in their order.

    A page is the first link of an item of a list. Links out of docs/ do not count.

    Args:
        text: the Markdown of docs/index.md.
    """
    found: list[tuple[str, list[tuple[str, str]]]] = []
    for line in text.splitlines():
        if line.startswith("## "):
            found.append((line.removeprefix("## ").strip(), []))
        elif found and (link := re.match(r"- \[([^]]+)\]\((\w[^)#:]*)\.(md|ipynb)\)", line)):
            title, name = link[1], PurePosixPath(link[2])
            found[-1][1].append((title.replace("`", ""), str(name)))
    return [section for section in found if section[1]]
