import json

import pytest
from rich.console import Console

import fggp
from fggp import native
from fggp.lab.bench.networks import magnitude_pruned
from fggp.lab.demo import demo
from fggp.lab.demo.settings import DemoSettings
from fggp.lab.export.trained import Network, weights
from fggp.lab.training.models import create


def fixed(model):
    """Parameters that are never pruned."""
    return sum(p.numel() for p in model.parameters()) - sum(w.numel() for w in weights(model))


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(demo, "TURNS", 1)
    monkeypatch.setattr(demo, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "SPARSITIES", (0.95,))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one worker: starting them is what takes the time


def test_demo(tmp_path, capsys):
    records = demo.demo(DemoSettings(seeds=2, out=tmp_path), Console(width=120))
    assert [(record["method"], record["seed"]) for record in records] == [
        (method, seed) for seed in (0, 1) for method in ("dense", "gmp", "fggp")
    ]
    assert [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == records
    files = {file.name for file in tmp_path.iterdir()}
    assert files >= {"runs.jsonl", "report.html", "report.md", "accuracy.png", "curves.png"}
    assert files >= {"fggp.safetensors", "digits.html"}
    model = create("digits-cnn", 10, 1)
    fggp.load(tmp_path / "fggp.safetensors", model)
    assert sum(int(weight.count_nonzero()) for weight in weights(model)) == records[2]["parameters_left"] - fixed(model)
    size = (tmp_path / "fggp.safetensors").stat().st_size
    output = capsys.readouterr().out
    for shown in (
        "GMP",
        "FGGP",
        "95 %",
        "±",
        "report.html",
        "runs.jsonl",
        "fggp train --data folder:",
        "fggp export RUN_FOLDER",
        f"{size:,}",
        "ms, batch 1",
        "ms, batch 32",
        "FGGP 95 %, fggp.compile",
        str(tmp_path / "digits.html"),
    ):
        assert shown in output


def test_without_kernels_it_ships_and_says_so(tmp_path, monkeypatch):
    def missing():
        raise native.KernelsMissingError("no kernels here")

    monkeypatch.setattr(native, "load", missing)
    networks = [
        Network(magnitude_pruned(create("digits-cnn", 10, 1), sparsity).eval(), "digits-cnn", "a test", 1, (8, 8))
        for sparsity in (0.0, 0.95)
    ]
    table, remarks = demo._ship(*networks, 0.95, tmp_path / "fggp.safetensors")
    assert len(table.rows) == 3
    assert len(remarks) == 1
    assert "no kernels here" in remarks[0]
    fggp.load(tmp_path / "fggp.safetensors", create("digits-cnn", 10, 1))
