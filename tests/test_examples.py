"""Every script of examples/ runs, without files left behind, and prints what it promises."""

import re
import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "examples"
SCRIPTS = {path.name: path for path in sorted(FOLDER.glob("*.py"))}


@pytest.fixture
def printed(tmp_path, monkeypatch, capsys):
    # In this process: importing PyTorch and scikit-learn takes longer than some scripts do.
    def run(name: str) -> str:
        monkeypatch.chdir(tmp_path)
        runpy.run_path(str(SCRIPTS[name]), run_name="__main__")
        assert list(tmp_path.iterdir()) == []
        return capsys.readouterr().out

    return run


def test_the_readme_lists_every_script():
    assert set(re.findall(r"\]\((\w+\.py)\)", (FOLDER / "README.md").read_text())) == set(SCRIPTS)


@pytest.mark.parametrize("path", SCRIPTS.values(), ids=SCRIPTS)
def test_scripts_are_short(path):
    assert len(path.read_text().splitlines()) < 80


def test_prune_while_training(printed):
    output = printed("prune_while_training.py")
    assert "27,512 of 28,960 weights are zero (95.00%)" in output  # 28,960 - round(0.05 * 28,960)
    assert float(re.search(r"test accuracy: ([\d.]+)%", output)[1]) > 90


def test_ship_small_and_fast(printed):
    output = printed("ship_small_and_fast.py")
    assert "loaded weights equal the saved ones bit for bit: True" in output
    assert float(re.search(r"([\d.]+) times smaller", output)[1]) > 10
    assert float(re.search(r"largest difference of an output: (\S+)", output)[1]) < 1e-3


def test_own_method(printed):
    output = printed("own_method.py")
    lines = re.findall(r"^(\S+): (.*); 97\.00% of the weights are zero$", output, re.M)
    assert [name for name, _ in lines] == ["fggp", "gradient-then-product"]
    assert all(float(accuracy) > 80 for _, listed in lines for accuracy in re.findall(r"([\d.]+)%", listed))


def test_from_trained_weights(printed):
    output = printed("from_trained_weights.py")
    assert "95.00% of the weights are zero" in output
    trained, pruned = map(float, re.findall(r": +([\d.]+) %", output))
    assert trained > 90
    assert pruned > trained - 5
