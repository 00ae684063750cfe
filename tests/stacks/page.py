"""What docs/stacks.md shows, to be run by the tests: code blocks, and lines that it adds to other people's scripts."""

import re
import textwrap
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "stacks.md"


def section(heading):
    """The text below a heading of the second level."""
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)[1]


def code(heading):
    """The Python block of a section."""
    return re.search(r"^```python\n(.*?)^```", section(heading), re.M | re.S)[1]


def added_lines(heading):
    """The added lines of a section's diff: a list of blocks of consecutive lines, each without its indentation."""
    diff = re.search(r"^```diff\n(.*?)^```", section(heading), re.M | re.S)[1]
    blocks = re.findall(r"(?:^\+.*\n)+", diff, re.M)
    return [textwrap.dedent(re.sub(r"^\+", "", block, flags=re.M)) for block in blocks]
