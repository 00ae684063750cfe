import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch

import fggp
from fggp.lab.base.errors import UsageError
from fggp.lab.export.trained import load_network
from fggp.lab.training import models
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.train import train

EPOCHS = 4
TIMES = {"images_per_second", "wall_seconds", "date", "commit"}  # someone may commit while a test runs
KEYS = {"run", "method", "model", "data", "sparsity", "init_sparsity", "seed", "test_accuracy", "val_accuracy"}


def digits(out: Path, **settings) -> TrainSettings:
    return TrainSettings(out=out, device="cpu", **{"epochs": EPOCHS, "sparsity": 0.9, **settings})


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return value


def metrics(folder: Path) -> list[dict]:
    return [without_times(json.loads(line)) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    from rich.console import Console

    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(digits(out), Console(quiet=True))
    return out


def test_run_folder(unbroken):
    files = {file.name for file in unbroken.iterdir()}
    assert files == {
        *(".lock", "settings.json", "metrics.jsonl", "checkpoint.pt", "model.safetensors", "record.json"),
        *("accuracy.png", "sparsity.png", "density.png"),
    }


def test_record(unbroken):
    text = (unbroken / "record.json").read_text()
    record = json.loads(text)
    assert text.count("\n") == 1
    assert record.keys() >= KEYS
    assert record["run"] == "run"
    assert record["data"] == "digits"
    assert record["settings"] == json.loads((unbroken / "settings.json").read_text())
    assert all(0 <= value <= 100 for value in record["curve"]["val_accuracy"])
    assert record["curve"]["test_accuracy"] == [None] * (EPOCHS - 1) + [record["test_accuracy"]]
    assert 10 < record["test_accuracy"] <= 100
    assert record["execution"] == "eager"
    assert str(unbroken) not in text


def test_sparsity_is_that_of_the_model_file(unbroken):
    record = json.loads((unbroken / "record.json").read_text())
    state = safetensors.torch.load_file(unbroken / "model.safetensors")
    models.create("digits-cnn", 10, 1).load_state_dict(state)
    prunable = [weight for name, weight in state.items() if weight.ndim > 1]
    zeros = sum(int((weight == 0).sum()) for weight in prunable)
    total = sum(weight.numel() for weight in prunable)
    assert zeros == total - round((1 - 0.9) * total)
    assert record["sparsity"] == zeros / total
    assert record["parameters"] - record["parameters_left"] == zeros
    assert record["network_sparsity"] == zeros / record["parameters"]
    assert record["densities"] == {
        name: int((weight != 0).sum()) / weight.numel() for name, weight in state.items() if weight.ndim > 1
    }


def test_metrics(unbroken):
    lines = metrics(unbroken)
    epochs = [line for line in lines if line["kind"] == "epoch"]
    updates = [line for line in lines if line["kind"] == "update"]
    steps_per_epoch = epochs[0]["step"]
    assert [line["epoch"] for line in epochs] == [1, 2, 3, 4]
    assert [line["lr"] for line in epochs] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert [line["step"] for line in updates] == list(range(1, 2 * steps_per_epoch + 1))
    assert [line["sparsity"] for line in updates] == pytest.approx([line["target"] for line in updates], abs=1e-4)
    assert set(updates[0]["densities"]) == {
        f"{name}.weight" for name in ("features.0", "features.3", "features.7", "classifier")
    }


def test_one_shot_pruning_is_one_update_at_the_end_of_the_phase(tmp_path, console):
    record = train(digits(tmp_path / "run", epochs=2, method="gmp", every=1_000), console)
    updates = [line for line in metrics(tmp_path / "run") if line["kind"] == "update"]
    assert [(line["step"], round(line["sparsity"], 3)) for line in updates] == [(record["steps"] // 2, 0.9)]


def test_narrow_network_is_exported_by_the_name_in_its_record(tmp_path, console):
    record = train(digits(tmp_path / "run", epochs=1, method="dense", sparsity=None, model="digits-cnn@0.5"), console)
    assert record["model"] == record["settings"]["model"] == "digits-cnn@0.5"
    network = load_network(tmp_path / "run")
    assert sum(parameter.numel() for parameter in network.model.parameters()) == record["parameters"]


def test_same_settings_same_bits(unbroken, tmp_path, console):
    train(digits(tmp_path / "run"), console)
    assert (tmp_path / "run" / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert metrics(tmp_path / "run") == metrics(unbroken)


MOMENTS = [
    "step=5",
    "step=17",
    "first=checkpoint.pt",
    "later=checkpoint.pt",
    "first=model.safetensors",
    "first=record.json",
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory) -> Path:
    """A folder of runs, each killed at the moment it is named after."""
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, str(Path(__file__).with_name("killed.py")), str(folder), *MOMENTS], check=True)
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_and_resumed_equals_unbroken(unbroken, killed, console, moment):
    out = killed / moment
    assert not (out / "record.json").exists()
    train(digits(out, resume=True), console)
    assert (out / "model.safetensors").read_bytes() == (unbroken / "model.safetensors").read_bytes()
    assert metrics(out) == metrics(unbroken)
    records = [json.loads((folder / "record.json").read_text()) for folder in (out, unbroken)]
    assert records[0].pop("run") == moment
    assert records[1].pop("run") == "run"
    assert without_times(records[0]) == without_times(records[1])


def test_resuming_a_finished_run_changes_nothing(unbroken, console):
    before = {file: file.stat().st_mtime_ns for file in unbroken.iterdir()}
    record = train(digits(unbroken, resume=True), console)
    assert record == json.loads((unbroken / "record.json").read_text())
    assert {file: file.stat().st_mtime_ns for file in unbroken.iterdir()} == before


def test_a_folder_that_holds_a_run_is_not_overwritten(unbroken, console):
    with pytest.raises(UsageError, match="already holds a run; add --resume"):
        train(digits(unbroken), console)


@pytest.mark.parametrize(("name", "value"), [("sparsity", 0.8), ("seed", 1), ("lr", 0.2), ("method", "gmp")])
def test_resuming_with_other_settings_is_refused(unbroken, console, name, value):
    with pytest.raises(UsageError, match=f"{name} is {value!r}, the run's is"):
        train(digits(unbroken, resume=True, **{name: value}), console)


def test_resume_starts_where_there_is_no_run(tmp_path, console):
    record = train(digits(tmp_path, epochs=1, resume=True), console)
    assert record["curve"]["epoch"] == [1]


def test_two_commands_do_not_share_a_folder(tmp_path, console):
    folder = RunFolder(tmp_path / "run")
    with folder.locked():
        with pytest.raises(UsageError, match="run is in use by another process; wait for it, or stop it"):
            train(digits(folder.path, epochs=1), console)
        assert {file.name for file in folder.path.iterdir()} == {".lock"}
        assert not folder.holds_run()
        (folder.path / "settings.json").touch()  # the one that has the folder begins its run
    with pytest.raises(UsageError, match="already holds a run"):
        train(digits(folder.path, epochs=1), console)


def test_a_refused_run_leaves_no_folder(tmp_path, console):
    with pytest.raises(UsageError, match="model is 'resnet21'"):
        train(digits(tmp_path / "runs" / "run", model="resnet21"), console)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError):
        train(digits(tmp_path / "mine", model="resnet21"), console)
    assert [*tmp_path.rglob("*")] == [tmp_path / "mine"]


@pytest.mark.parametrize("model", ["timm:vit_tiny_patch16_224", "vgg19"])
def test_a_model_that_cannot_take_the_images_is_refused(tmp_path, console, model):
    with pytest.raises(UsageError, match=r"cannot take images of 1×8×8"):
        train(digits(tmp_path / "run", model=model), console)


def test_dense(tmp_path, console, pictures):
    record = train(digits(tmp_path, method="dense", sparsity=None, epochs=1), console)
    assert record["sparsity"] == record["network_sparsity"] == 0
    assert record["parameters_left"] == record["parameters"]
    assert record["densities"] == {}
    assert {file.name for file in tmp_path.glob("*.png")} == {"accuracy.png"}


def test_excluded_weights_stay_dense_and_do_not_count(tmp_path, console):
    record = train(digits(tmp_path / "run", exclude="classifier.weight,features.0.*", epochs=2), console)
    state = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    assert record["densities"].keys() == {"features.3.weight", "features.7.weight"}
    sizes = {name: state[name].numel() for name in record["densities"]}
    kept = {name: int((state[name] != 0).sum()) for name in sizes}
    assert record["sparsity"] == 1 - sum(kept.values()) / sum(sizes.values()) == pytest.approx(0.9, abs=1e-4)
    assert all((state[name] != 0).all() for name in ("features.0.weight", "classifier.weight"))


def test_blocks_of_channels_are_pruned_and_recorded(tmp_path, console):
    record = train(digits(tmp_path / "run", granularity="blocks:4", epochs=2), console)
    state = safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    blocks = state["features.3.weight"].unflatten(1, (-1, 4))
    assert ((blocks != 0).any(2) == (blocks != 0).all(2)).all()
    assert record["settings"]["granularity"] == "blocks:4"
    assert record["sparsity"] == pytest.approx(0.9, abs=0.01)


def test_excluding_what_is_not_there_is_refused(tmp_path, console):
    with pytest.raises(UsageError, match=r"exclude='head.\*' matches no trainable weight; the model has 'features.0"):
        train(digits(tmp_path / "run", exclude="classifier.weight,head.*"), console)
    assert not (tmp_path / "run").exists()


def test_divergence_is_an_error(tmp_path, console):
    with pytest.raises(UsageError, match="loss is nan in epoch 1; try a lower --lr"):
        train(digits(tmp_path, method="dense", sparsity=None, epochs=1, lr=1e30), console)


def test_folder_data_holdout_adamw_and_sparse_start(tmp_path, image_folder, console):
    settings = TrainSettings(
        data=f"folder:{image_folder}",
        data_name="Pets",
        model="digits-cnn",
        optimizer="adamw",
        holdout=0,
        init_sparsity=0.5,
        sparsity=0.8,
        epochs=2,
        batch_size=8,
        precision="fp32",
        device="cpu",
        out=tmp_path / "run",
    )
    record = train(settings, console)
    assert record["data"] == "Pets"
    assert record["val_accuracy"] is None
    assert all(0 <= value <= 100 for value in record["curve"]["test_accuracy"])  # nothing else to follow it by
    assert record["images"] == {"train": 20, "val": 0, "test": 8}
    assert record["init_sparsity"] == 0.5
    assert record["sparsity"] == pytest.approx(0.8, abs=1e-4)


@pytest.mark.parametrize("method", [*fggp.methods.REGISTRY])
def test_every_method_trains(tmp_path, console, method):
    record = train(digits(tmp_path, method=method, epochs=1), console)
    assert record["method"] == method
    assert record["sparsity"] == pytest.approx(0.9, abs=1e-4)


def test_plain_lines_where_there_is_no_terminal(tmp_path):
    from rich.console import Console

    with (tmp_path / "log").open("w") as log:
        train(digits(tmp_path / "run", epochs=2), Console(file=log))
    text = (tmp_path / "log").read_text()
    assert "\x1b" not in text
    assert "\r" not in text
    assert sum(line.startswith("epoch ") for line in text.splitlines()) == 2


def test_a_live_bar_in_a_terminal(tmp_path, monkeypatch):
    from rich.console import Console

    monkeypatch.setattr("fggp.lab.training.train.READ_SECONDS", 0.0)
    with (tmp_path / "log").open("w") as log:
        train(digits(tmp_path / "run", epochs=1), Console(file=log, force_terminal=True, width=150))
    text = (tmp_path / "log").read_text()
    for shown in ("epoch 1/1", "loss", "sparsity", "→ 90 %", "images/s", "left"):
        assert shown in text
