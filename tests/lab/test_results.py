"""The figures in the documents are those of the records."""

import runpy
import sys
from pathlib import Path

TABLES = Path(__file__).parents[2] / "experiments" / "tables.py"


def test_the_tables_in_the_documents_are_what_the_records_give(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tables.py", "--check"])
    main = runpy.run_path(str(TABLES))["main"]
    assert main() == 0, capsys.readouterr().out


def test_a_figure_that_was_typed_by_hand_is_found():
    module = runpy.run_path(str(TABLES))
    page = (TABLES.parents[1] / "docs" / "results.md").read_text()
    for name in module["TABLES"]:
        _, table, _ = page.partition(f"<!-- table: {name} -->")[2].partition("<!-- end -->")[0].partition("| ---")
        assert table, name
    digit = page.index("±", page.index("<!-- table: study -->")) - 2
    assert page[digit].isdigit()
    typed = page[:digit] + str((int(page[digit]) + 1) % 10) + page[digit + 1 :]
    assert module["written"](typed) == page
