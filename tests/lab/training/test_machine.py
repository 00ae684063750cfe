"""The facts that a measurement is recorded with."""

import subprocess

import pytest

from fggp.lab.base import machine


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A repository of one module, which takes the place of the lab's, and of one record."""

    def git(*words):
        user = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", "-C", tmp_path, *user, *words], check=True, capture_output=True)

    module = tmp_path / "src" / "machine.py"
    for file in (module, tmp_path / "results" / "runs.ndjson"):
        file.parent.mkdir()
        file.write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    monkeypatch.setattr(machine, "__file__", str(module))
    return tmp_path


def test_a_record_that_was_added_is_no_other_code(clone):
    before = machine.source_commit()
    assert len(before) == 40
    (clone / "results" / "runs.ndjson").write_text("1\n2\n")
    assert machine.source_commit() == before


@pytest.mark.parametrize("stage", [False, True])
def test_changed_code_is_no_commit(clone, stage):
    before = machine.source_commit()
    (clone / "src" / "machine.py").write_text("2\n")
    if stage:
        subprocess.run(["git", "-C", clone, "add", "."], check=True)
    assert machine.source_commit() == f"{before}-dirty"


def test_outside_of_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "machine.py"))
    assert machine.source_commit() is None
