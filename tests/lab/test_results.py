"""The figures in the documents are those of the records."""

import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLES = ROOT / "experiments" / "tables.py"


def test_the_tables_in_the_documents_are_what_the_records_give(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    main = runpy.run_path(str(TABLES))["main"]
    assert main() == 0, capsys.readouterr().out


def test_every_table_is_in_a_document_and_every_mark_names_a_table():
    module = runpy.run_path(str(TABLES))
    pages = "".join((ROOT / page).read_text() for page in module["PAGES"])
    found = dict(re.findall(r"<!-- table: (.*?) -->(.*?)<!-- end -->", pages, re.DOTALL))
    assert found.keys() == module["TABLES"].keys()
    assert all("| ---" in table for table in found.values())


def test_a_figure_that_was_typed_by_hand_is_found():
    module = runpy.run_path(str(TABLES))
    for name, mark in {"README.md": "summary", "docs/results.md": "study"}.items():
        page = (ROOT / name).read_text()
        digit = page.index("±", page.index(f"<!-- table: {mark} -->")) - 2
        assert page[digit].isdigit()
        typed = page[:digit] + str((int(page[digit]) + 1) % 10) + page[digit + 1 :]
        assert module["with_tables"](typed) == page
