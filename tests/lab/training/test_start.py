"""Runs that start from trained weights, in every form in which people keep them."""

import json
import re

import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import nn

import fggp
from fggp.lab.base.errors import UsageError
from fggp.lab.export.export import export
from fggp.lab.export.settings import ExportSettings
from fggp.lab.training.data import load_data
from fggp.lab.training.models import create
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.start import load_start
from fggp.lab.training.train import run_to_end, train
from fggp.lab.training.trainer import Trainer
from fggp.model.find import find_prunable

NAME = "digits-cnn@0.25"
RUN = {"data": "digits", "model": NAME, "device": "cpu", "precision": "fp32"}


@pytest.fixture
def trained() -> nn.Module:
    torch.manual_seed(1)
    return create(NAME, 10, 1)


def same(model: nn.Module, state: dict) -> bool:
    own = model.state_dict()
    return own.keys() == state.keys() and all(torch.equal(own[name], tensor) for name, tensor in state.items())


def plain(state, file):
    torch.save(state, file)


def safe(state, file):
    safetensors.torch.save_file(state, file.with_suffix(".safetensors"))


def nested(state, file):
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, file)


def lightning(state, file):
    torch.save({"state_dict": {f"model._orig_mod.{name}": tensor for name, tensor in state.items()}}, file)


def averaged_beside_the_last(state, file):
    """As timm's train.py writes them."""
    torch.save({"state_dict": {name: torch.zeros_like(t) for name, t in state.items()}, "state_dict_ema": state}, file)


def settings_of_averaging_before_the_weights(state, file):
    torch.save({"ema": {"decay": 0.99}, "model": "digits-cnn", "state_dict": state}, file)


def averaged_by_pytorch(state, file):
    """As torchvision's train.py writes them."""
    model = create(NAME, 10, 1)
    model.load_state_dict(state)
    torch.save({"model_ema": torch.optim.swa_utils.AveragedModel(model).state_dict()}, file)


def small(state, file):
    model = create(NAME, 10, 1)
    model.load_state_dict(state)
    fggp.save(model, file.with_suffix(".safetensors"))


FORMS = [
    plain,
    safe,
    nested,
    lightning,
    averaged_beside_the_last,
    averaged_by_pytorch,
    settings_of_averaging_before_the_weights,
    small,
]


@pytest.mark.parametrize("write", FORMS)
def test_weights_are_found_in_every_form(trained, tmp_path, write):
    write(trained.state_dict(), tmp_path / "net.pt")
    (file,) = tmp_path.iterdir()
    model = create(NAME, 10, 1)
    start = load_start(str(file), NAME, model, 10, 1)
    assert same(model, trained.state_dict())
    assert start.source.startswith(file.name)
    assert ("averaged" in start.source) == write.__name__.startswith("averaged")
    assert start.replaced == ()


def test_half_precision_becomes_float32(trained, tmp_path):
    half = {name: t.half() if t.is_floating_point() else t for name, t in trained.state_dict().items()}
    torch.save(half, tmp_path / "a.pt")
    model = create(NAME, 10, 1)
    load_start(str(tmp_path / "a.pt"), NAME, model, 10, 1)
    assert same(model, {name: tensor.to(model.state_dict()[name].dtype) for name, tensor in half.items()})


def test_counters_of_batch_norms_may_be_missing(trained, tmp_path):
    state = {name: t for name, t in trained.state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pt")
    model = create(NAME, 10, 1)
    load_start(str(tmp_path / "old.pt"), NAME, model, 10, 1)
    assert same(model, trained.state_dict())


@pytest.mark.parametrize("lacking", [False, True])
def test_a_classifier_of_another_number_of_classes_starts_anew(trained, tmp_path, lacking):
    state = {name: t for name, t in trained.state_dict().items() if not (lacking and "classifier" in name)}
    torch.save(state, tmp_path / "ten.pt")
    model = create(NAME, 3, 1)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    start = load_start(str(tmp_path / "ten.pt"), NAME, model, 3, 1)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert start.replaced == ("classifier.weight", "classifier.bias")
    assert same(model, {**fresh, **{name: t for name, t in state.items() if "classifier" not in name}})
    remark = "classifier.weight, classifier.bias were missing, or of another number of classes, and start anew"
    assert remark in start.text(zeros_stay=True)


@pytest.mark.parametrize("metadata", [{}, {"input": json.dumps({"classes": list("abcdefghij")})}])
def test_a_small_file_of_another_number_of_classes(trained, tmp_path, metadata):
    prune(trained, 0.9)
    fggp.save(trained, tmp_path / "small.safetensors", metadata=metadata)
    model = create(NAME, 3, 1)
    start = load_start(str(tmp_path / "small.safetensors"), NAME, model, 3, 1)
    assert start.replaced == ("classifier.weight", "classifier.bias")
    assert torch.equal(model.features[0].weight, trained.features[0].weight)


def wider(state):
    return create("digits-cnn@0.5", 10, 1).state_dict()


def with_nan(state):
    return {**state, "features.0.weight": state["features.0.weight"] * float("nan")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wider, r"^net.pt is not of model 'digits-cnn@0.25': of another shape is 'features.0.weight' and \d+ more, "),
        (lambda state: create("vgg19@0.01", 10, 1).state_dict(), "that has no|of another shape"),
        (lambda state: dict(list(state.items())[1:]), "it lacks 'features.0.weight'$"),
        (lambda state: {**state, "extra": torch.ones(1)}, "that has no 'extra'$"),
        (with_nan, "'features.0.weight' in it holds values that are not finite"),
        (lambda state: {"epoch": 3}, "must hold a state dict"),
    ],
)
def test_weights_of_another_network_are_refused_in_a_line(trained, tmp_path, change, message):
    torch.save(change(trained.state_dict()), tmp_path / "net.pt")
    model = create(NAME, 10, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UsageError, match=message) as refused:
        load_start(str(tmp_path / "net.pt"), NAME, model, 10, 1)
    assert "\n" not in str(refused.value)
    assert same(model, before)


def test_small_files_of_another_network_are_refused(trained, tmp_path):
    fggp.save(create("digits-cnn@0.5", 10, 1), tmp_path / "small.safetensors")
    with pytest.raises(UsageError, match=f"not of model '{NAME}'"):
        load_start(str(tmp_path / "small.safetensors"), NAME, trained, 10, 1)


def test_fine_tuning_is_the_default_protocol(tmp_path):
    (tmp_path / "net.pt").touch()
    settings = TrainSettings(weights=str(tmp_path / "net.pt")).resolve()
    assert (settings.epochs, settings.schedule, settings.warmup) == (10, "cosine", 0.5)
    assert settings.lr == pytest.approx(0.05)
    assert re.fullmatch(r"net\.pt#[0-9a-f]{12}", settings.as_json()["weights"])
    assert settings.out != TrainSettings(epochs=10).resolve().out
    scratch = TrainSettings().resolve()
    assert (scratch.schedule, scratch.warmup, scratch.lr) == ("step", 0.0, 0.1)
    assert not {"weights", "schedule", "warmup", "label_smoothing", "distill"} & scratch.as_json().keys()


@pytest.mark.parametrize(
    ("name", "value"),
    [("weights", "nowhere.pt"), ("warmup", 30.0), ("label_smoothing", 1.0), ("distill", True)],
)
def test_wrong_settings_are_named(name, value):
    with pytest.raises(UsageError, match=f"^{name} is {value!r}; it must be "):
        TrainSettings(**{name: value}).resolve()


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("options", [{}, {"distill": True, "schedule": "step", "label_smoothing": 0.1}])
def test_a_run_from_a_run(tmp_path, console, capsys, monkeypatch, options):
    train(TrainSettings(**RUN, method="dense", epochs=2, out=tmp_path / "dense"), console)
    settings = TrainSettings(**RUN, **options, weights=str(tmp_path / "dense"), sparsity=0.5, epochs=2, warmup=0.5)
    record = train(settings_in(tmp_path / "run", settings), Console(width=200))
    before = json.loads((tmp_path / "dense" / "record.json").read_text())
    assert record["start"]["source"] == "run dense"
    assert record["start"]["val_accuracy"] == before["val_accuracy"]
    assert f"starting from run dense: validation {before['val_accuracy']:.2f} %" in capsys.readouterr().out
    assert record["curve"]["lr"][-1] < 0.01
    assert record["settings"]["weights"].startswith("dense#")

    resolved = settings_in(tmp_path / "stopped", settings).resolve()
    folder = RunFolder(resolved.out)

    def stop(line):
        raise StoppedError

    with pytest.raises(StoppedError):
        run_to_end(folder, resolved, lambda: load_data(resolved, console), console, after_epoch=stop)

    def measured_again(trainer):
        raise AssertionError("a resumed run has the accuracy of its start in the checkpoint")

    monkeypatch.setattr(Trainer, "_measure_start", measured_again)
    resumed = run_to_end(folder, resolved, lambda: load_data(resolved, console), console)
    assert resumed["val_accuracy"] == record["val_accuracy"]
    assert resumed["start"] == record["start"]
    assert (tmp_path / "stopped" / "model.safetensors").read_bytes() == (
        tmp_path / "run" / "model.safetensors"
    ).read_bytes()


@pytest.fixture
def pruned(trained, tmp_path) -> str:
    """A file of weights that are half zeros."""
    prune(trained, 0.5)
    torch.save(trained.state_dict(), tmp_path / "pruned.pt")
    return str(tmp_path / "pruned.pt")


@torch.no_grad()
def prune(model: nn.Module, share: float) -> None:
    for weight in find_prunable(model):
        flat = weight.parameter.view(-1)
        flat[flat.abs().argsort()[: round(share * len(flat))]] = 0


@pytest.mark.parametrize(
    ("method", "stay"),
    [("fggp", True), ("gmp", True), ("dense", False), ("granet", False), ("rigl", False), ("erk-static", False)],
)
@pytest.mark.filterwarnings("ignore:.* are zero already")  # the pruner's own warning, with erk-static
def test_zeros_stay_where_it_is_said(pruned, console, capsys, tmp_path, method, stay):
    options = {} if method == "dense" else {"sparsity": 0.6}
    settings = TrainSettings(
        **RUN, **options, method=method, weights=pruned, epochs=1, prune_end=1.0, out=tmp_path / "run"
    ).resolve()
    train(settings, Console(width=200))
    assert f"50.0 % of whose weights are zero and {'stay so' if stay else 'may be filled again'}" in (
        capsys.readouterr().out
    )
    before, after = torch.load(pruned), safetensors.torch.load_file(tmp_path / "run" / "model.safetensors")
    names = [weight.name for weight in find_prunable(create(NAME, 10, 1))]
    assert all((after[name][before[name] == 0] == 0).all() for name in names) == stay


@pytest.mark.parametrize("method", ["fggp", "rigl"])
def test_a_random_start_of_pruned_weights_is_refused(pruned, console, method):
    settings = TrainSettings(**RUN, method=method, sparsity=0.9, init_sparsity=0.3, weights=pruned).resolve()
    with pytest.raises(UsageError, match=r"^init_sparsity is 0.3, but the weights .* pruned already, .*leave it out$"):
        Trainer(settings, load_data(settings, console))


@pytest.mark.parametrize("method", ["dense", "fggp", "snip", "erk-static", "rigl", "granet"])
def test_the_start_is_measured_before_it_is_pruned(tmp_path, console, method):
    options = {"init_sparsity": 0.5} if method == "fggp" else {}
    train(TrainSettings(**RUN, method="dense", epochs=3, out=tmp_path / "dense"), console)
    settings = TrainSettings(**RUN, **options, method=method, weights=str(tmp_path / "dense")).resolve()
    data = load_data(settings, console)
    trainer = Trainer(settings, data, measure_start=True)
    expected = json.loads((tmp_path / "dense" / "record.json").read_text())["val_accuracy"]
    assert trainer.start.val_accuracy == expected
    unmeasured = Trainer(settings, data)
    assert unmeasured.start.val_accuracy is None
    assert same(unmeasured.model, trainer.model.state_dict())  # measuring changes nothing


@pytest.mark.parametrize("late", [True, False])
def test_batch_norms_follow_a_late_pruning(tmp_path, console, monkeypatch, late):
    torch.manual_seed(0)
    torch.save(create(NAME, 10, 1).state_dict(), tmp_path / "net.pt")
    options = {"prune_end": 1.0, "every": 1000} if late else {"prune_end": 0.01, "batch_size": 20}
    settings = TrainSettings(**RUN, **options, weights=str(tmp_path / "net.pt"), epochs=1).resolve()
    trainer = Trainer(settings, load_data(settings, console))
    trainer.train_epoch(0, lambda tally: None)
    assert trainer.norms_are_late == late
    norm, seen = trainer.model.features[1], []
    trainer.model.features[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        trainer.model.eval()(trainer._normalised(trainer.data.train.images))
    mean = seen[0].mean((0, 2, 3))
    # Shifted images have borders of zeros, so the two differ a little.
    assert (norm.running_mean - mean).abs().max() < 0.1 or not late
    assert norm.momentum == 0.1
    monkeypatch.setattr(Trainer, "_estimate_norms", lambda trainer, seed: None)
    without = Trainer(settings, trainer.data)
    without.train_epoch(0, lambda tally: None)
    assert torch.equal(norm.running_mean, without.model.features[1].running_mean) == (not late)


def settings_in(out, settings: TrainSettings) -> TrainSettings:
    return TrainSettings(**{**vars(settings), "out": out})


def test_the_normalisation_and_the_zeros_of_a_run_go_with_its_weights(tmp_path, console, image_folder):
    common = {"data": f"folder:{image_folder}", "model": "resnet20@0.1", "device": "cpu", "epochs": 1, "batch_size": 8}
    first = train(TrainSettings(**common, sparsity=0.5, out=tmp_path / "first"), console)
    export(ExportSettings(tmp_path / "first", out=tmp_path / "small.safetensors"), console)
    for weights in (tmp_path / "first", tmp_path / "small.safetensors"):
        out = tmp_path / f"from-{weights.name}"
        settings = TrainSettings(**common, sparsity=0.6, holdout=0.2, weights=str(weights), out=out)
        record = train(settings, console)  # other images are held out: their moments differ
        assert record["input"]["mean"] == pytest.approx(first["input"]["mean"])
        # What was pruned stays pruned.
        assert record["start"]["sparsity"] == pytest.approx(0.5, abs=1e-3)
        before, after = (safetensors.torch.load_file(path / "model.safetensors") for path in (tmp_path / "first", out))
        assert all((after[name][before[name] == 0] == 0).all() for name in record["densities"])


def test_a_new_classifier_has_nothing_to_distil(tmp_path, console, image_folder):
    torch.save(create("resnet20@0.1", 10, 3).state_dict(), tmp_path / "ten.pt")
    settings = TrainSettings(
        f"folder:{image_folder}", model="resnet20@0.1", weights=str(tmp_path / "ten.pt"), distill=True, device="cpu"
    )
    with pytest.raises(UsageError, match=r"distill needs .* classes, but classifier.weight, .*; leave"):
        train(settings_in(tmp_path / "run", settings), console)
    assert not (tmp_path / "run").exists()
