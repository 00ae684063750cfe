import json
from dataclasses import replace

import pytest

from fggp.lab.base.errors import UsageError
from fggp.lab.training.settings import TrainSettings


def test_defaults_are_those_of_the_protocol():
    settings = TrainSettings(data="cifar10").resolve()
    assert settings.model == "resnet20"
    assert settings.epochs == 160
    assert (settings.prune_begin, settings.prune_end) == (0, 80)
    assert (settings.optimizer, settings.lr, settings.momentum, settings.weight_decay) == ("sgd", 0.1, 0.9, 5e-4)
    assert settings.batch_size == 128
    assert (settings.method, settings.sparsity, settings.rate) == ("fggp", 0.95, 0.5)


def test_defaults_follow_the_other_settings():
    assert TrainSettings().resolve().model == "digits-cnn"
    assert TrainSettings(method="dense").resolve().sparsity == 0
    assert TrainSettings(method="gmp").resolve().rate is None
    assert TrainSettings(epochs=10).resolve().prune_end == 5
    adamw = TrainSettings(optimizer="adamw").resolve()
    assert (adamw.lr, adamw.momentum) == (0.001, None)


@pytest.mark.parametrize(
    ("name", "value", "others"),
    [
        ("method", "fgpp", {}),
        ("sparsity", 1.0, {}),
        ("sparsity", -0.1, {}),
        ("sparsity", float("nan"), {}),
        ("sparsity", 0.5, {"method": "dense"}),
        ("init_sparsity", 0.96, {}),
        ("init_sparsity", 0.5, {"method": "dense"}),
        ("rate", 1.1, {}),
        ("rate", 0.5, {"method": "gmp"}),
        ("rate", 0.5, {"method": "dense"}),
        ("granularity", "blocks", {}),
        ("granularity", "blocks:1", {}),
        ("granularity", "4:2", {}),
        ("epochs", 0, {}),
        ("batch_size", 0, {}),
        ("every", 0, {}),
        ("image_size", 0, {}),
        ("lr", 0.0, {}),
        ("lr", float("nan"), {}),
        ("momentum", 1.0, {}),
        ("momentum", 0.9, {"optimizer": "adamw"}),
        ("weight_decay", -1.0, {}),
        ("seed", -1, {}),
        ("holdout", 1.0, {}),
        ("prune_end", 31.0, {}),
        ("prune_begin", 15.0, {}),
        ("prune_begin", -1.0, {}),
        ("device", "tpu", {}),
        ("device", "cuda:99", {}),
        ("device", "cuda:x", {}),
    ],
)
def test_what_is_out_of_range_is_named(name, value, others):
    with pytest.raises(UsageError, match=f"^{name} is {value!r}; it must be "):
        TrainSettings(**{name: value, **others}).resolve()


def test_json_holds_the_choices_and_no_path_of_this_machine(tmp_path):
    settings = TrainSettings(data=f"folder:{tmp_path / 'pets'}", out=tmp_path, data_dir=tmp_path).resolve()
    values = settings.as_json()
    assert str(tmp_path) not in json.dumps(values)
    assert values["data"] == "folder:pets"
    assert replace(settings, resume=True).as_json() == values


def test_default_folder_tells_runs_apart():
    folders = {
        TrainSettings(method=method, sparsity=sparsity, seed=seed, model=model).resolve().out
        for method, sparsity in (("dense", None), ("gmp", 0.9), ("fggp", 0.9), ("fggp", 0.95))
        for seed in (0, 1)
        for model in (None, "timm:vit_tiny")
    }
    assert len(folders) == 16
    assert all(len(folder.parts) == 2 for folder in folders)
