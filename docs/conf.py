"""The site made of docs/, by Sphinx: `make site`.

The pages are plain Markdown that GitHub shows too. So nothing in them is written for Sphinx alone, except for the list
of names on the pages of docs/api. What Sphinx needs beyond that is made here: the navigation, from the links of
index.md, and the addresses of files of the repository that are no pages.
"""

import os
import re
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

HERE = Path(__file__).parent
ROOT = HERE.parent
sys.path[:0] = [str(HERE), str(ROOT / "runtime" / "src")]

from navigation import sections  # noqa: E402

import fggp  # noqa: E402

project = "fggp"
author = "The fggp developers"
copyright = author
version = release = fggp.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
root_doc = "index"
exclude_patterns = ["requirements.in"]

myst_heading_anchors = 4  # the anchors that GitHub gives to headings
myst_url_schemes = ["http", "https", "mailto", "file"]
nb_execution_mode = "off"  # the notebooks are shown as they are committed; tests/test_notebooks.py executes them
nb_number_source_lines = False

default_role = "py:obj"  # single backticks in docstrings are names
highlight_language = "text"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True}
autodoc_mock_imports = ["fggp_runtime.library"]  # it opens the C library, which `make runtime` compiles
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"fggp {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False


def address(path: Path) -> str:
    """Return the address of a file or folder of the repository that is no page.

    In GitHub's CI it is that of the commit that is built, elsewhere that of the file on this machine.
    """
    if "GITHUB_REPOSITORY" not in os.environ:
        return path.as_uri()
    repository = f"{os.environ['GITHUB_SERVER_URL']}/{os.environ['GITHUB_REPOSITORY']}"
    kind = "tree" if path.is_dir() else "blob"
    return f"{repository}/{kind}/{os.environ['GITHUB_SHA']}/{path.relative_to(ROOT).as_posix()}"


def link_to_the_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Give links to files and folders that are no pages their addresses."""

    def with_address(link: re.Match[str]) -> str:
        path = (HERE / page).parent.joinpath(link["path"]).resolve()
        if path.is_relative_to(HERE):
            return link[0]
        if not path.exists():
            getLogger(__name__).warning("%s links to %s, which does not exist", page, link["path"])
        return f"{link['text']}({address(path)}{link['anchor']})"

    pattern = r"(?P<text>(?<!!)\[[^]]*\])\((?P<path>\.\./[^)#\s]*)(?P<anchor>[^)]*)\)"
    source[0] = re.sub(pattern, with_address, source[0])


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Append the navigation to the first page: the sections of links that it shows."""
    if page != root_doc:
        return
    for caption, entries in sections(source[0]):
        lines = [f"{title} <{target}>" for title, target in entries]
        source[0] += "\n".join(["", "```{toctree}", ":hidden:", f":caption: {caption}", "", *lines, "```", ""])


def escape_bars(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Keep the bars of |θ| in docstrings from meaning a substitution."""
    for number, line in enumerate(lines):
        outside_and_inside = line.split("``")
        outside_and_inside[::2] = [text.replace("|", r"\|") for text in outside_and_inside[::2]]
        lines[number] = "``".join(outside_and_inside)


def setup(app: Sphinx) -> None:
    """Connect what this file adds to Sphinx."""
    app.connect("source-read", add_navigation)
    app.connect("source-read", link_to_the_repository)
    app.connect("autodoc-process-docstring", escape_bars)
