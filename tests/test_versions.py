"""The version stands in fggp/__init__.py; other files that have to repeat it agree."""

import json
import re
from pathlib import Path

import fggp

ROOT = Path(__file__).parent.parent


def test_the_citation():
    assert re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1] == fggp.__version__


def test_the_npm_package():
    assert json.loads((ROOT / "web" / "package.json").read_text())["version"] == fggp.__version__


def test_the_zig_that_compiles_the_browsers_module_compiles_the_wheels():
    versions = {
        re.search(r"^ziglang==(.+)$", (ROOT / file).read_text(), re.M)[1]
        for file in ("web/requirements.in", "requirements/wheels.in")
    }
    assert len(versions) == 1
