"""Methods of one's own, from a file."""

import json

import pytest
from rich.console import Console

import fggp
from fggp.lab.base.errors import UsageError
from fggp.lab.cli import main
from fggp.lab.training import methods
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.train import train

OWN = """
from dataclasses import dataclass
from fggp import FGGP, Method, StaticERK, TopK
from fggp.scores import magnitude

@dataclass(frozen=True)
class Rated(FGGP):
    name = "rated"
    rate: float = 0.25

@dataclass(frozen=True)
class Timed(Method):
    name = "timed"
    total_steps: int

    def chain(self, now):
        assert now.step <= self.total_steps
        return [TopK(magnitude, now.excess)]

@dataclass(frozen=True)
class Sparse(Timed):
    name = "sparse"
    constant = True

class Once(StaticERK):
    name = "once"

class Unnamed(FGGP): ...

@dataclass(frozen=True)
class Asking(Timed):
    name = "asking"
    colour: str

number = 3
"""


@pytest.fixture
def file(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(OWN)
    return file


def settings(method, out=None, **others):
    return TrainSettings(method=method, out=out, epochs=2, device="cpu", **others)


def test_a_run_of_ones_own_method_is_recorded_by_its_name_and_resumed(file, tmp_path):
    record = train(settings(f"{file}:Rated", tmp_path / "run"), Console(quiet=True))
    assert record["method"] == "rated"
    assert record["settings"]["method"] == "own.py:Rated"
    assert record["settings"]["rate"] == 0.25
    (tmp_path / "run" / "record.json").unlink()  # as if it had been killed in the end
    again = train(settings(f"{file}:Rated", tmp_path / "run", resume=True), Console(quiet=True))
    assert again["test_accuracy"] == record["test_accuracy"]
    with pytest.raises(UsageError, match="method"):
        train(settings(f"{file}:Timed", tmp_path / "run", resume=True), Console(quiet=True))


def test_a_grid_runs_them_beside_others(file, tmp_path):
    out = tmp_path / "grid"
    command = ["grid", "--method", "gmp", f"{file}:Rated", f"{file}:Timed", "--rate", "0.3", "--epochs", "1"]
    assert main([*command, "--out", str(out), "--device", "cpu", "--jobs", "2"]) == 0
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert {r["method"]: r["settings"]["rate"] for r in records} == {"gmp": None, "rated": 0.3, "timed": None}
    assert {folder.name for folder in (out / "runs").iterdir()} >= {"Rated-0.95-seed0", "gmp-0.95-seed0"}


def test_what_a_method_says_of_itself_is_heeded(file):
    assert settings(f"{file}:Sparse").resolve().init_sparsity == 0.95
    assert methods.acts_once(f"{file}:Once")
    assert methods.own_rate(f"{file}:Rated") == 0.25
    assert settings(f"{file}:Rated").resolve().out.name == "digits-digits-cnn-rated-0.95-seed0"
    with pytest.raises(UsageError, match="rate"):
        settings(f"{file}:Timed", rate=0.5).resolve()


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (OWN, "Missing", r"no subclass.*its classes are Rated, Timed, Sparse, Once, Unnamed, Asking$"),
        (OWN, "number", "number is no subclass"),
        (OWN, "Unnamed", "has the name 'fggp': set `name"),
        ("import nothing_of_this_name", "Own", "cannot be run: ModuleNotFoundError: No module named 'nothing_of_this"),
        ("def", "Own", "cannot be run: SyntaxError"),
        (None, "Own", "does not exist"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_in_a_line(tmp_path, content, name, message):
    file = tmp_path / "own.py"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UsageError, match=message):
        settings(f"{file}:{name}").resolve()


def test_what_a_run_cannot_offer_is_named(file, tmp_path):
    with pytest.raises(UsageError, match="needs colour; give it a default"):
        train(settings(f"{file}:Asking", tmp_path / "run"), Console(quiet=True))


def test_two_files_of_one_name_in_one_grid_are_refused(file, tmp_path, capsys):
    other = tmp_path / "other" / "own.py"
    other.parent.mkdir()
    other.write_text(OWN)
    command = ["grid", "--method", f"{file}:Rated", f"{other}:Rated", "--out", str(tmp_path / "grid")]
    assert main([*command, "--epochs", "1", "--dry-run"]) == 2
    assert "rename one of the files" in " ".join(capsys.readouterr().err.split())


def test_help_lists_all_methods_of_the_library():
    assert ["dense", *fggp.methods.REGISTRY] == list(methods.METHODS)
