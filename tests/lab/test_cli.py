import importlib.util
import json

import pytest

import fggp
from fggp.lab import cli


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fggp {fggp.__version__}\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["--method", "foo"], "method is 'foo'; it must be one of dense, fggp, gmp"),
        (["--sparsity", "1.5"], "sparsity is 1.5; it must be in [0, 1)"),
        (["--data", "folder:/nowhere"], "must hold train/ and test/"),
        (["--model", "resnet-20"], "close matches: resnet20"),
    ],
)
def test_a_wrong_choice_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", *command]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("fggp: ")
    assert output.err.count("\n") == 1
    assert message in output.err
    assert output.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", [[], ["trian"], ["train", "--epcohs", "3"], ["train", "--epochs", "many"], ["demo", "--seeds", "0"]]
)
def test_a_command_line_that_cannot_be_read_exits_with_2(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(command)
    assert exit_.value.code == 2
    assert "--help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "taught"),
    [(["--help"], ["fggp demo", "fggp train"]), (["train", "--help"], ["fggp train --data folder:PATH", "--sparsity"])],
)
def test_help_teaches(command, taught, capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main(command)
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(line in text for line in taught)


def test_train(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--epochs", "1", "--sparsity", "0.5", "--device", "cpu"]) == 0
    record = json.loads((tmp_path / "fggp-runs" / "digits-digits-cnn-fggp-0.5-seed0" / "record.json").read_text())
    assert record["sparsity"] == pytest.approx(0.5, abs=1e-4)
    assert "record.json" in capsys.readouterr().out


def test_missing_extras_are_named(monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(cli, "find_spec", lambda name: None if name in ("rich", "timm") else found(name))
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "fggp: the command line needs rich, timm: pip install 'fggp[lab]'\n"


def test_interrupted(monkeypatch, capsys):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fggp.lab.training.train.train", interrupt)
    assert cli.main(["train"]) == 130
    assert "--resume" in capsys.readouterr().err
