"""Runs whose layers skip their pruned weights: `fggp train --accelerate`."""

import json
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import fggp
from fggp import native
from fggp.lab.base.errors import UsageError
from fggp.lab.grid.plan import plan_runs, read_tables, run_names
from fggp.lab.report.runs import parse
from fggp.lab.report.tables import tabulate
from fggp.lab.training import models
from fggp.lab.training import settings as settings_module
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.train import train

EPOCHS = 4
TIMES = ("images_per_second", "wall_seconds", "date", "commit")


def digits(out: Path, **settings) -> TrainSettings:
    defaults = {"epochs": EPOCHS, "sparsity": 0.9, "accelerate": True, "device": "cpu", "precision": "fp32"}
    return TrainSettings(out=out, **{**defaults, **settings})


@pytest.fixture
def skipping(monkeypatch):
    """Layers skip their pruned weights from the first on, whether that is faster here or not."""
    accelerate = fggp.Pruner.accelerate
    monkeypatch.setattr(fggp.Pruner, "accelerate", lambda pruner: accelerate(pruner, below=1.0))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def test_an_accelerated_run_is_the_dense_one_but_for_rounding(tmp_path, console, skipping):
    accelerated = train(digits(tmp_path / "accelerated", epochs=1), console)
    plain = train(digits(tmp_path / "plain", epochs=1, accelerate=False), console)
    assert (accelerated["execution"], plain["execution"]) == ("accelerated", "eager")
    assert accelerated["settings"]["accelerate"] is True
    assert "accelerate" not in plain["settings"]
    assert accelerated["curve"]["train_loss"] == pytest.approx(plain["curve"]["train_loss"], rel=1e-2)
    assert accelerated["sparsity"] == plain["sparsity"]
    ours, others = weights(tmp_path / "accelerated"), weights(tmp_path / "plain")
    assert {name: w.shape for name, w in ours.items()} == {name: w.shape for name, w in others.items()}
    assert any(not torch.equal(w, others[name]) for name, w in ours.items()), "the layers were computed densely"


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_same_settings_same_bits(tmp_path, console, skipping, optimizer):
    for name in "ab":
        train(digits(tmp_path / name, epochs=2, optimizer=optimizer), console)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()


def test_a_resumed_run_has_the_bits_of_the_unbroken_one(tmp_path, console, monkeypatch):
    """Although what is skipped depends on times: those measured before the run was interrupted count."""
    unbroken, resumed = tmp_path / "unbroken", tmp_path / "resumed"
    save = RunFolder.save_checkpoint

    def save_and_copy(folder, state):
        save(folder, state)
        if state["epochs"] == 2 and not resumed.exists():
            shutil.copytree(folder.path, resumed)

    monkeypatch.setattr(RunFolder, "save_checkpoint", save_and_copy)
    train(digits(unbroken), console)
    train(digits(resumed, resume=True), console)
    assert (resumed / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    states = [RunFolder(folder).load_checkpoint()["trainer"]["pruner"] for folder in (unbroken, resumed)]
    assert states[0]["measured"] == states[1]["measured"]
    assert states[0]["measured"]["times"], "nothing was measured"
    lines = [
        [
            {name: value for name, value in json.loads(line).items() if name not in TIMES}
            for line in (folder / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (unbroken, resumed)
    ]
    assert lines[0] == lines[1]


def test_a_run_is_not_resumed_with_another_execution(tmp_path, console):
    train(digits(tmp_path / "run", epochs=1), console)
    with pytest.raises(UsageError, match="accelerate is None, the run's is True"):
        train(digits(tmp_path / "run", epochs=1, accelerate=False, resume=True), console)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"method": "dense"}, "left out for method 'dense'"),
        *(
            ({"method": method}, f"left out for method '{method}', which regrows")
            for method in ("granet", "rigl", "set")
        ),
        ({"device": "auto"}, "left out on device 'cuda': .*--device cpu"),
        ({"device": "cuda:0"}, "left out on device 'cuda:0'"),
    ],
)
def test_what_cannot_be_accelerated_is_refused(options, why, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match=f"^accelerate is True; it must be {why}"):
        TrainSettings(**{"device": "cpu", "precision": "fp32", **options}, accelerate=True).resolve()


@pytest.mark.parametrize("fsdp", [False, True])
def test_several_processes_are_refused(fsdp, monkeypatch):
    monkeypatch.setattr(settings_module, "launched", lambda: True)
    with pytest.raises(UsageError, match=r"^accelerate is True; it must be left out under torchrun"):
        TrainSettings(device="cpu", fsdp=fsdp, accelerate=True).resolve()


@pytest.mark.parametrize("method", ["snip", "erk-static", "gmp", "random"])
def test_methods_that_never_regrow(tmp_path, console, skipping, method):
    record = train(digits(tmp_path / "run", epochs=1, method=method), console)
    assert record["execution"] == "accelerated"
    assert record["sparsity"] == pytest.approx(0.9, abs=1e-3)


def test_without_kernels(tmp_path, console, monkeypatch):
    def load():
        raise native.KernelsMissingError("fggp was installed without its kernels")

    monkeypatch.setattr(native, "load", load)
    with pytest.raises(UsageError, match="without its kernels"):
        train(digits(tmp_path / "run"), console)
    assert not (tmp_path / "run" / "settings.json").exists()


def test_nothing_to_accelerate(tmp_path, console, monkeypatch):
    network = nn.Sequential(nn.Conv2d(1, 10, 8, padding_mode="circular"), nn.Flatten())
    monkeypatch.setattr(models, "create", lambda *arguments: network)
    with pytest.raises(UsageError, match=r"no weight can be accelerated.*0\.weight \(Conv2d with padding_mode"):
        train(digits(tmp_path / "run"), console)


def test_a_grid_takes_it(tmp_path):
    file = tmp_path / "some.toml"
    file.write_text('accelerate = true\nmethod = ["dense", "fggp"]\n')
    runs = plan_runs(read_tables(file, {"device": ["cpu"]}))
    assert [(run.method, run.accelerate) for run in runs] == [("dense", False), ("fggp", True)]
    runs = plan_runs(read_tables(None, {"device": ["cpu"], "accelerate": [False, True]}))
    assert [run.accelerate for run in runs] == [False, True]
    assert len(set(run_names([run.as_json() for run in runs], {}))) == 2
    file.write_text('accelerate = true\nmethod = ["gmp", "rigl"]\n')
    with pytest.raises(UsageError, match=r"some\.toml: accelerate is True; it must be left out for method 'rigl'"):
        plan_runs(read_tables(file, {"device": ["cpu"]}))


def test_a_report_tells_such_runs_apart(tmp_path, console):
    records = [train(digits(tmp_path / f"{n}", epochs=1, accelerate=n == 1), console) for n in range(2)]
    records.append(
        train(digits(tmp_path / "dense", epochs=1, method="dense", sparsity=None, accelerate=False), console)
    )
    (table,) = tabulate([parse(record)[0] for record in records])
    assert {row.label for row in table.rows} == {"FGGP", "FGGP (accelerate True)"}
