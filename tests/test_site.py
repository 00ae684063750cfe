"""The pages of docs/: each is in the navigation, no link or anchor is broken, and the API reference is complete.

`make site` finds more, with Sphinx. This runs without it.
"""

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

import fggp

pytest.importorskip("markdown_it")
from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(path for pattern in ("*.md", "*.ipynb") for path in DOCS.rglob(pattern))
OTHERS = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md", "web/README.md")
]


def text_of(path: Path) -> str:
    """The Markdown of a page or a notebook."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def tokens_of(path: Path) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").parse(text_of(path))


def links_of(tokens: list[Token]) -> list[str]:
    """The targets of the links and pictures that are no addresses of other sites."""
    inside = [child for token in tokens for child in token.children or []]
    targets = [str(token.attrGet("href") or token.attrGet("src") or "") for token in inside]
    return [target for target in targets if target and not re.match(r"[a-z]+:", target)]


def anchors_of(tokens: list[Token]) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    found: set[str] = set()
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            text = "".join(child.content for child in content.children or [])
            anchor = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            copies = (f"{anchor}-{n}" if n else anchor for n in range(99))
            found.add(next(copy for copy in copies if copy not in found))
    return found


def load_navigation():
    specification = importlib.util.spec_from_file_location("navigation", DOCS / "navigation.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tokens():
    return {path: tokens_of(path) for path in (*PAGES, *OTHERS)}


def test_every_page_is_in_the_navigation_once():
    sections = load_navigation().sections((DOCS / "index.md").read_text(encoding="utf-8"))
    listed = sorted(name for _, entries in sections for _, name in entries)
    pages = sorted(path.relative_to(DOCS).with_suffix("").as_posix() for path in PAGES)
    assert sorted([*listed, "index"]) == pages, "docs/index.md lists every page, as the first link of an item of a list"


def test_navigation_reads_the_first_link_of_each_item():
    text = (
        "# T\n- [no](section.md)\n## One\n- [A](a.md): see [b](b.md).\n- [C](../c.md)\n## Two\n- [`D`](sub/d.ipynb)\n"
    )
    assert load_navigation().sections(text) == [("One", [("A", "a")]), ("Two", [("D", "sub/d")])]


def test_links_and_anchors_lead_somewhere(tokens):
    anchors = {path: anchors_of(found) for path, found in tokens.items()}
    broken = []
    for path, found in tokens.items():
        for link in links_of(found):
            target, _, anchor = link.partition("#")
            file = (path.parent / target).resolve() if target else path
            if not file.exists() or (anchor and file in anchors and anchor not in anchors[file]):
                broken.append(f"{path.relative_to(ROOT)}: {link}")
    assert broken == []


def test_a_broken_anchor_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# What `make` does: 1,000 steps – at once\n\n## Again\n\n## Again\n\n[x](#again-1) ![y](y.png)\n")
    parsed = tokens_of(page)
    assert anchors_of(parsed) == {"what-make-does-1000-steps--at-once", "again", "again-1"}
    assert links_of(parsed) == ["#again-1", "y.png"]


def test_the_reference_has_every_public_name():
    described = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "api").glob("*.md"))
    names = re.findall(r"^\.\. auto\w+:: (\S+)$", described, re.M)
    assert len(names) == len(set(names))
    assert {f"fggp.{name}" for name in fggp.__all__} - set(names) == set()
