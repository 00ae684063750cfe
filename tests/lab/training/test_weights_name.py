"""Weights in settings: a name and a digest, so that others of the same name are others."""

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from fggp.lab.base.errors import UsageError
from fggp.lab.budget.prediction import Meter, Prediction
from fggp.lab.budget.settings import BudgetSettings
from fggp.lab.budget.wishes import Cost
from fggp.lab.export.trained import Network
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.plan import plan_runs
from fggp.lab.training.models import create
from fggp.lab.training.settings import ResolvedSettings, TrainSettings
from fggp.lab.training.train import train

NAME = "digits-cnn@0.25"
RUN = {"data": "digits", "model": NAME, "device": "cpu", "precision": "fp32", "method": "dense", "epochs": 1}


def weights(file: Path, seed: int) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.save(create(NAME, 10, 1).state_dict(), file)
    return str(file)


def resolved(path: str, **options) -> ResolvedSettings:
    return TrainSettings(**{**RUN, **options}, weights=path).resolve()


def test_the_name_tells_contents_apart_and_no_folders(tmp_path):
    a, copy, b = (weights(tmp_path / f"{n}/best.pt", seed) for n, seed in ((0, 1), (1, 1), (2, 2)))
    names = [resolved(path).as_json()["weights"] for path in (a, copy, b)]
    assert names[0] == names[1] != names[2]
    assert all(name.startswith("best.pt#") for name in names)
    weights(Path(a), 2)  # written anew
    assert resolved(a).as_json()["weights"] == names[2]


def test_pretrained_weights_are_named_by_the_network():
    names = [resolved("pretrained", model=name).as_json()["weights"] for name in ("resnet18", "resnet34")]
    assert names[0] != names[1]
    assert all(name.startswith("pretrained#") for name in names)
    with pytest.raises(UsageError, match=r"model .digits-cnn@0\.25. has none"):
        resolved("pretrained").as_json()


def test_a_folder_without_a_run_has_no_name(tmp_path):
    with pytest.raises(UsageError, match="a folder without a finished run"):
        resolved(str(tmp_path)).as_json()


def test_a_grid_has_a_run_for_each_file_of_one_name(tmp_path):
    paths = [weights(tmp_path / name / "best.pt", seed) for seed, name in enumerate("ab")]
    runs = plan_runs([("", {**{name: [value] for name, value in RUN.items()}, "weights": paths})])
    assert [run.weights for run in runs] == paths
    assert len(GridFolder(tmp_path / "grid").name_runs(runs)) == 2
    with pytest.raises(UsageError, match=r"^table 1: weights is .*, a folder without a finished run"):
        plan_runs([("table 1: ", {"weights": [str(tmp_path)]})])


def test_a_budget_takes_no_runs_of_other_weights_of_the_same_name(tmp_path):
    a, b = (
        BudgetSettings(drop=1.0, model=NAME, device="cpu", weights=weights(tmp_path / name / "best.pt", seed))
        for seed, name in enumerate("ab")
    )
    assert a.folder() == b.folder()
    folder = GridFolder(tmp_path / "runs")
    folder.path.mkdir()
    folder.adopt(folder.name_runs([a.run(0.0, 0), a.run(0.9, 0)]))
    for sparsity in (0.0, 0.9):
        with pytest.raises(
            UsageError, match=r"holds another grid: weights is 'best.pt#\w+', that grid's is 'best.pt#\w+'"
        ):
            folder.name_runs([b.run(sparsity, 0)])


def test_a_run_is_not_resumed_from_other_weights_of_the_same_name(tmp_path):
    console = Console(quiet=True)
    a, b = (weights(tmp_path / name / "best.pt", seed) for seed, name in enumerate("ab"))
    train(TrainSettings(**RUN, weights=a, out=tmp_path / "run"), console)
    train(TrainSettings(**RUN, weights=a, out=tmp_path / "run", resume=True), console)
    with pytest.raises(UsageError, match=r"other settings: weights is 'best.pt#\w+', the run's is 'best.pt#\w+'$"):
        train(TrainSettings(**RUN, weights=b, out=tmp_path / "run", resume=True), console)


@pytest.mark.parametrize("changed", ["weights", "device", "version"])
def test_what_was_predicted_counts_for_the_same_weights_device_and_version(tmp_path, monkeypatch, changed):
    measured = []

    def cost(meter, network):
        measured.append(network)
        return Cost(1, 1.0)

    monkeypatch.setattr(Meter, "cost", cost)
    network = Network(create(NAME, 10, 1), NAME, NAME, 1, (8, 8))

    def predict(name):
        return Prediction(network, name, Meter(1, 1), tmp_path / "predicted.json").cost(0.5)

    predict("best.pt#a")
    predict("best.pt#a")
    assert len(measured) == 1
    if changed == "device":
        monkeypatch.setattr("fggp.lab.budget.prediction.device_name", lambda device: "another processor")
    elif changed == "version":
        content = json.loads((tmp_path / "predicted.json").read_text())
        content["versions"]["fggp"] = "0.0.1"
        (tmp_path / "predicted.json").write_text(json.dumps(content))
    predict("best.pt#b" if changed == "weights" else "best.pt#a")
    assert len(measured) == 2
