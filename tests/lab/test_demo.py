import json

from rich.console import Console

from fggp.lab import demo
from fggp.lab.settings import DemoSettings


def test_demo(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "EPOCHS", 2)
    monkeypatch.setattr(demo, "GRID", (("dense", None), ("gmp", 0.95), ("fggp", 0.95)))
    monkeypatch.setattr("os.cpu_count", lambda: 1)  # one worker: starting them is what takes the time
    records = demo.demo(DemoSettings(seeds=2, out=tmp_path), Console(width=120))
    assert [(record["method"], record["seed"]) for record in records] == [
        (method, seed) for seed in (0, 1) for method in ("dense", "gmp", "fggp")
    ]
    assert [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == records
    assert {file.name for file in tmp_path.iterdir()} == {"runs.jsonl", "accuracy.png", "curves.png"}
    output = capsys.readouterr().out
    for shown in (
        "GMP",
        "FGGP",
        "95.00 %",
        "±",
        "accuracy.png",
        "curves.png",
        "runs.jsonl",
        "fggp train --data folder:",
    ):
        assert shown in output
