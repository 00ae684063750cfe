"""`fggp budget` as people use it, on a very small network and few sparsities."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

import fggp
from fggp.lab import cli
from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.budget import budget as command
from fggp.lab.budget import prediction
from fggp.lab.budget.settings import BudgetSettings
from fggp.lab.budget.wishes import Cost
from fggp.lab.export.export import metadata_of, small_bytes
from fggp.lab.export.trained import load_network, weights_left
from fggp.lab.training.models import create
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.train import train
from grids import InlineJobs

LEVELS = (0.5, 0.8, 0.9, 0.98)
NAME = "digits-cnn@0.25"


def shorten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(command, "LEVELS", LEVELS)
    patch.setattr(prediction, "TURNS", 1)
    patch.setattr(prediction, "TURN_SECONDS", 0.001)
    patch.setattr("fggp.lab.grid.grid.LocalJobs", InlineJobs)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    shorten(monkeypatch)


@pytest.fixture
def uncompiled(monkeypatch):
    """Nothing is compiled: what a network costs is the size of its file, and a millisecond for each kilobyte."""

    def cost(meter, network):
        size = small_bytes(network.model, metadata=metadata_of(network))
        return Cost(size, size / 1000)

    monkeypatch.setattr(prediction.Meter, "cost", cost)


def settings(folder: Path, **options) -> BudgetSettings:
    return BudgetSettings(
        **{"model": NAME, "epochs": 3, "seeds": 2, "device": "cpu", "jobs": 1, "out": folder / "out", **options}
    )


@dataclass
class Answered:
    settings: BudgetSettings
    record: Json
    printed: str

    @property
    def folder(self) -> Path:
        return self.settings.out


@pytest.fixture(scope="module")
def answered(tmp_path_factory) -> Answered:
    """At most 20 points below dense: these networks are hardly trained."""
    folder = tmp_path_factory.mktemp("budget")
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("w+") as log:
        shorten(patch)
        asked = settings(folder, drop=20.0)
        record = command.budget(asked, Console(width=200, file=log))
        log.seek(0)
        return Answered(asked, record, log.read())


def test_the_answer_is_the_highest_sparsity_within_the_limit(answered):
    dense, *tried = answered.record["tried"]
    assert (dense["sparsity"], dense["val_drop"], len(dense["runs"])) == (0, 0, 2)
    chosen = answered.record["chosen"]["sparsity"]
    assert chosen == max(trial["sparsity"] for trial in tried if trial["meets"])
    assert all(trial["meets"] == (trial["val_drop"] <= 20) for trial in tried)
    above = [level for level in LEVELS if level > chosen]
    assert {trial["sparsity"] for trial in tried if not trial["meets"]} >= {*above[:1]}


def test_accuracies_are_those_of_the_runs(answered):
    records = [json.loads(line) for line in (answered.folder / "runs" / "records.jsonl").read_text().splitlines()]
    by_run = {record["run"]: record for record in records}
    for trial in answered.record["tried"]:
        accuracies = [by_run[run]["val_accuracy"] for run in trial["runs"]]
        assert trial["val_accuracy"] == pytest.approx(sum(accuracies) / len(accuracies))
    chosen, dense = answered.record["chosen"], answered.record["tried"][0]
    best = by_run[chosen["run"]]
    assert best["val_accuracy"] == max(by_run[run]["val_accuracy"] for run in chosen["runs"])
    assert chosen["test_accuracy"] == best["test_accuracy"]
    mean = sum(by_run[run]["test_accuracy"] for run in dense["runs"]) / len(dense["runs"])
    assert chosen["test_drop"] == pytest.approx(mean - best["test_accuracy"])
    assert chosen["test_noise"] > 0


def test_the_network_is_ready_to_ship(answered):
    model = create(NAME, 10, 1)
    fggp.load(answered.folder / "small.safetensors", model)
    kept, prunable = weights_left(model)
    chosen = answered.record["chosen"]
    assert kept == round((1 - chosen["sparsity"]) * prunable)
    assert (answered.folder / "small.safetensors").stat().st_size == chosen["bytes"]
    assert (answered.folder / "net.fggp").stat().st_size > 0
    assert (answered.folder / "budget.png").stat().st_size > 10_000


def test_what_is_shown(answered):
    before, mark, after = answered.printed.partition("Test accuracy, never chosen by")
    assert mark
    assert not re.search(r"\btest \d|test_acc", before)  # nobody is tempted
    assert "val " in before
    for text in (before + mark + after, (answered.folder / "budget.md").read_text()):
        for shown in (
            "sparsity",
            "below dense",
            "file",
            "chosen",
            "±",
            f"{answered.record['images']['test']} test images",
        ):
            assert shown in text
    assert "other seeds" not in after  # two of each were run
    for name in ("small.safetensors", "net.fggp", "budget.md", "budget.png"):
        assert str(answered.folder / name) in after


class CountedJobs(InlineJobs):
    started: list[str] = []  # noqa: RUF012 (shared by all on purpose)
    limit = 1000

    def start(self, task):
        if len(self.started) >= self.limit:
            raise KeyboardInterrupt
        CountedJobs.started.append(task.run)
        super().start(task)


def test_the_same_command_continues(answered, tmp_path, monkeypatch, console, uncompiled):
    monkeypatch.setattr("fggp.lab.grid.grid.LocalJobs", CountedJobs)
    monkeypatch.setattr(CountedJobs, "started", [])
    again = command.budget(answered.settings, console)  # finished: nothing is trained
    assert CountedJobs.started == []
    monkeypatch.setattr(CountedJobs, "limit", 3)
    asked = settings(tmp_path, drop=20.0)
    with pytest.raises(KeyboardInterrupt):
        command.budget(asked, console)
    monkeypatch.setattr(CountedJobs, "limit", 1000)
    resumed = command.budget(asked, console)
    assert len(CountedJobs.started) == len(set(CountedJobs.started))
    for record in (again, resumed):
        for key in ("sparsity", "run", "val_accuracy", "test_accuracy", "bytes"):
            assert record["chosen"][key] == answered.record["chosen"][key]


def test_a_limit_of_size_needs_the_lowest_sparsity_that_meets_it(answered, tmp_path, console, uncompiled):
    dense = answered.record["tried"][0]["bytes"]
    record = command.budget(settings(tmp_path, size=f"{int(0.45 * dense)}B", epochs=1), console)
    sizes = {float(level): cost["bytes"] for level, cost in record["predicted"].items()}
    chosen = record["chosen"]
    assert chosen["bytes"] <= 0.45 * dense
    assert chosen["sparsity"] == min(level for level, size in sizes.items() if size <= 0.45 * dense)
    assert chosen["bytes"] == pytest.approx(sizes[chosen["sparsity"]], rel=0.1)
    assert [trial["sparsity"] for trial in record["tried"]] == [0, chosen["sparsity"]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"size": "1kB"},
            r"size is 1 kB, but its file has .* kB, even at a sparsity of 98 %, the highest that is tried",
        ),
        ({"latency": "0.001us", "drop": 9.0}, r"latency is 1e-06 ms, but it takes .* ms, even at .*; ask for that"),
        ({"size": "9MB"}, r"the network is within the limits \(at most 9 MB\) before it is pruned: its file has .* kB"),
        ({"drop": 0.2}, r"drop is 0.2 points, but one of the 288 validation images is 0.35 points; ask for more"),
    ],
)
def test_impossible_limits_are_refused_before_training(tmp_path, console, monkeypatch, options, message):
    monkeypatch.setattr(CountedJobs, "started", [])
    monkeypatch.setattr("fggp.lab.grid.grid.LocalJobs", CountedJobs)
    with pytest.raises(UsageError, match=message) as refused:
        command.budget(settings(tmp_path, **options), console)
    assert "\n" not in str(refused.value)
    assert CountedJobs.started == []


def test_limits_that_contradict_each_other(answered, tmp_path, console, uncompiled):
    dense = answered.record["tried"][0]["bytes"]
    asked = settings(tmp_path, drop=0.5, size=f"{int(0.22 * dense)}B", seeds=1)
    message = r"is predicted to need a sparsity of 9[08] %, where validation accuracy is [\d.]+ points below dense \(±"
    with pytest.raises(UsageError, match=message):
        command.budget(asked, console)
    assert "Nothing that was tried meets the limits." in (tmp_path / "out" / "budget.md").read_text()


def test_too_few_images_to_choose_by(image_folder, tmp_path, console):
    asked = settings(tmp_path, data=f"folder:{image_folder}", model="resnet20@0.1", drop=5.0, holdout=0.01)
    with pytest.raises(UsageError, match=r"holdout is 0.01, which takes 0 of 20 training images"):
        command.budget(asked, console)


def test_from_weights_that_are_pruned_already(tmp_path, console, uncompiled):
    common = {"model": NAME, "device": "cpu", "precision": "fp32", "epochs": 2, "holdout": 0.2}
    train(TrainSettings(**common, sparsity=0.85, out=tmp_path / "run"), console)
    limit = round(0.95 * small_bytes(load_network(tmp_path / "run").model))
    record = command.budget(settings(tmp_path, weights=str(tmp_path / "run"), size=f"{limit}B", epochs=1), console)
    assert {*record["predicted"]} <= {"0", "0.9", "0.98"}
    assert record["chosen"]["sparsity"] in (0.9, 0.98)
    assert record["chosen"]["bytes"] <= limit


@pytest.mark.parametrize("name", ["small.safetensors", "net.fggp", "budget.json"])
def test_files_of_others_are_not_replaced(tmp_path, console, name):
    asked = settings(tmp_path, drop=20.0)
    asked.out.mkdir()
    (asked.out / name).write_text("mine")
    with pytest.raises(UsageError, match=rf"^out is .*out, which holds '{name}' but no runs of fggp budget; choose"):
        command.budget(asked, console)
    assert [file.read_text() for file in asked.out.iterdir()] == ["mine"]


def test_the_files_of_an_answer_do_not_outlive_it(tmp_path, console, monkeypatch, uncompiled):
    monkeypatch.setattr(command, "LEVELS", (0.8,))
    asked = settings(tmp_path, drop=99.0, epochs=1, seeds=1)
    command.budget(asked, console)
    assert all((asked.out / name).exists() for name in command.ANSWER)
    monkeypatch.setattr("fggp.lab.budget.estimate.Estimate.meets", lambda self, drop: False)
    with pytest.raises(UsageError, match="80 % is the lowest sparsity that is tried"):
        command.budget(asked, console)
    assert {file.name for file in asked.out.iterdir()} == {"runs", "budget.json", "budget.md", "budget.png"}


@pytest.fixture
def run_of(tmp_path, console):
    """Returns the folder of a finished run that held out a share of the images."""

    def train_one(holdout: float) -> str:
        common = {"model": NAME, "method": "dense", "device": "cpu", "precision": "fp32", "epochs": 1}
        train(TrainSettings(**common, holdout=holdout, out=tmp_path / "run"), console)
        return str(tmp_path / "run")

    return train_one


def test_images_that_the_weights_were_trained_on_are_not_chosen_by(run_of, tmp_path, monkeypatch, uncompiled, capsys):
    monkeypatch.setattr(command, "LEVELS", (0.8,))
    asked = settings(tmp_path, weights=run_of(0.1), drop=90.0, epochs=1, seeds=1)
    record = command.budget(asked, Console(width=200))
    assert record["images"]["val"] == 144
    shown = capsys.readouterr().out
    assert "held out: 10 % of the training images, those of the run in --weights" in shown
    assert "With one run of each, ± covers the number of images, and not what other seeds change." in shown


@pytest.mark.parametrize(
    ("trained", "given", "message"),
    [
        (0.1, 0.2, r"^holdout is 0.2, but the run in weights held out 0.1 and was trained on others .*; leave"),
        (0.0, None, r"^weights is '\S+run', a run that was trained on all images \(holdout 0\), .*; train it with"),
    ],
)
def test_other_held_out_images_than_those_of_the_weights_are_refused(run_of, tmp_path, trained, given, message):
    asked = settings(tmp_path, weights=run_of(trained), drop=1.0, holdout=given)
    with pytest.raises(UsageError, match=message) as refused:
        command.budget(asked, Console(quiet=True))
    assert "\n" not in str(refused.value)
    assert not asked.out.exists()


def test_weights_of_other_data_leave_the_holdout_free(run_of, image_folder, tmp_path):
    asked = settings(tmp_path, weights=run_of(0.1), data=f"folder:{image_folder}", drop=1.0)
    assert (asked.held_out(), settings(tmp_path, drop=1.0).held_out()) == (0.2, 0.2)


def test_the_command_line(capsys):
    assert cli.main(["budget"]) == 2
    assert "name a limit" in capsys.readouterr().err
