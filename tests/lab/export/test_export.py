import json
import shutil
import sys
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from rich.console import Console
from torch import nn

import fggp
from fggp import native
from fggp.lab import cli
from fggp.lab.base.errors import UsageError
from fggp.lab.bench.networks import magnitude_pruned, with_random_norms
from fggp.lab.export import export as export_module
from fggp.lab.export.export import dense_bytes, export
from fggp.lab.export.onnx_file import onnx_difference, write_onnx
from fggp.lab.export.settings import ExportSettings
from fggp.lab.export.trained import load_network
from fggp.lab.training.data import load_data
from fggp.lab.training.models import create
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.train import train
from networks import closing, load


def needs_onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of one epoch."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(TrainSettings(epochs=1, sparsity=0.9, device="cpu", precision="fp32", out=folder), Console(quiet=True))
    return folder


@pytest.fixture
def pruned():
    torch.manual_seed(0)
    return magnitude_pruned(with_random_norms(create("resnet20", 7, 2)).eval(), 0.9)


def same(a, b):
    """Whether two models have the same state, to the bit."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_small_file_of_a_run_loads_back_to_the_bit(run, tmp_path, capsys):
    file = tmp_path / "net.safetensors"
    made = export(ExportSettings(run, out=file), Console(width=200))
    model = create("digits-cnn", 10, 1)
    fggp.load(file, model)
    state = safetensors.torch.load_file(run / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert made["bytes"]["small"] == file.stat().st_size < made["bytes"]["dense"] / 5
    assert made["bytes"]["dense"] == (run / "model.safetensors").stat().st_size
    record = json.loads((run / "record.json").read_text())
    assert 1 - made["weights_left"] / made["weights"] == pytest.approx(record["sparsity"])
    output = capsys.readouterr().out
    for shown in ("FGGP, digits-cnn on digits", "90.00 % sparse", "to the bit", str(file), "fggp.load("):
        assert shown in output


def test_rounded_values_are_smaller_still_and_close(run, tmp_path, console):
    sizes = [
        export(ExportSettings(run, out=tmp_path / values, values=values), console)["bytes"]["small"]
        for values in ("fp32", "bf16")
    ]
    assert sizes[1] < sizes[0]
    model = create("digits-cnn", 10, 1)
    fggp.load(tmp_path / "bf16" / "model.small.safetensors", model)
    exact = load_network(run).model.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.allclose(tensor, exact[name], rtol=2**-8, atol=0)


def test_onnx_agrees_in_batches_of_any_size_and_keeps_the_zeros(run, tmp_path, capsys):
    needs_onnx()
    import onnx
    from onnx import numpy_helper

    made = export(ExportSettings(run, out=tmp_path / "net.onnx"), Console(width=200))
    assert made["onnx_difference"] < 1e-5
    network = load_network(run)
    assert onnx_difference(tmp_path / "net.onnx", network.model, {"images": network.images(11, seed=1)}) < 1e-5
    weights = [numpy_helper.to_array(each) for each in onnx.load(tmp_path / "net.onnx").graph.initializer]
    zeros = sum(int((weight == 0).sum()) for weight in weights if weight.ndim > 1)
    assert zeros == made["weights"] - made["weights_left"]
    assert [file.name for file in tmp_path.iterdir()] == ["net.onnx"]
    assert "ONNX Runtime is off by" in capsys.readouterr().out


def test_the_network_file_of_a_run_gives_its_outputs(run, tmp_path, capsys):
    file = tmp_path / "net.fggp"
    made = export(ExportSettings(run, out=file), Console(width=200))
    assert made["bytes"]["network"] == file.stat().st_size < made["bytes"]["dense"] / 5
    assert "the library reads it" in capsys.readouterr().out
    with safetensors.safe_open(file, "pt") as small:
        assert json.loads(small.metadata()["input"])["classes"] == [str(digit) for digit in range(10)]
    network = load_network(run)
    images = network.images(3)
    with closing(load(file)) as loaded:
        (outputs,) = loaded.run({loaded.description["inputs"][0]["name"]: images}).values()
    expected = network.model(images)
    assert (outputs - expected).norm() <= 1e-6 * expected.norm()


def test_a_network_that_no_network_file_can_hold_is_refused(run, tmp_path, monkeypatch, console):
    network = load_network(run)
    monkeypatch.setattr(network.model, "forward", lambda x: torch.fft.fft(x).real)
    monkeypatch.setattr(export_module, "load_network", lambda *_: network)
    with pytest.raises(UsageError, match=r"a network file cannot hold this network: (.|\n)*aten\._fft_r2c\.default"):
        export(ExportSettings(run, out=tmp_path / "net.fggp"), console)
    assert not list(tmp_path.iterdir())


def test_files_say_how_images_are_prepared_and_what_classes_are_called(run, tmp_path, capsys):
    needs_onnx()
    import onnxruntime

    export(ExportSettings(run, out=tmp_path, format=("small", "onnx")), Console(width=200))
    with safetensors.safe_open(tmp_path / "model.small.safetensors", "pt") as small:
        taken = json.loads(small.metadata()["input"])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert json.loads(session.get_modelmeta().custom_metadata_map["input"]) == taken
    assert taken["shape"] == [1, 8, 8]
    assert taken["classes"] == [str(digit) for digit in range(10)]
    settings = TrainSettings(epochs=1, device="cpu").resolve()
    data = load_data(settings, Console(quiet=True))
    pixels = data.train.images.double()
    assert taken["mean"] == pytest.approx([pixels.mean().item()])
    assert taken["std"] == pytest.approx([pixels.std(correction=0).item()])
    # With that, and nothing of the lab, the file does what the run says that it does.
    images = (data.test.images.numpy().astype("float32") - taken["mean"][0]) / taken["std"][0]
    (outputs,) = session.run(None, {"images": images.astype("float32")})
    accuracy = 100 * (outputs.argmax(1) == data.test.labels.numpy()).mean()
    assert accuracy == pytest.approx(json.loads((run / "record.json").read_text())["test_accuracy"], abs=0.3)
    assert "input:        [N, 1, 8, 8], (pixel 0…255 − " in capsys.readouterr().out


def test_a_run_of_an_older_version_is_exported_all_the_same(run, tmp_path, console):
    old = tmp_path / "run"
    shutil.copytree(run, old)
    record = json.loads((old / "record.json").read_text())
    del record["input"]
    (old / "record.json").write_text(json.dumps(record))
    export(ExportSettings(old, out=tmp_path / "net.safetensors"), console)
    with safetensors.safe_open(tmp_path / "net.safetensors", "pt") as small:
        assert "input" not in small.metadata()
    assert load_network(old).image_size == (8, 8)


def test_a_run_tells_the_size_of_its_images(tmp_path, image_folder, console):
    settings = TrainSettings(data=f"folder:{image_folder}", model="digits-cnn", epochs=1, device="cpu", batch_size=8)
    train(replace(settings, out=tmp_path / "run"), console)
    network = load_network(tmp_path / "run")
    assert network.image_size == (6, 8)
    assert network.input["classes"] == ["cat", "dog"]


def test_bf16_and_onnx_together_leave_onnx_exact(run, tmp_path, console):
    needs_onnx()
    settings = ExportSettings(run, out=tmp_path, format=("small", "onnx"), values="bf16")
    assert set(export(settings, console)["bytes"]) == {"dense", "small", "onnx"}
    network = load_network(run)
    assert onnx_difference(tmp_path / "model.onnx", network.model, {"images": network.images(3)}) < 1e-5


def test_an_onnx_file_that_is_off_is_refused(run, tmp_path, monkeypatch, console):
    needs_onnx()
    monkeypatch.setattr(export_module, "onnx_difference", lambda *args: 0.5)
    with pytest.raises(UsageError, match="differs from PyTorch's by 5"):
        export(ExportSettings(run, out=tmp_path / "net.onnx"), console)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_leaves_no_file(tmp_path):
    needs_onnx()

    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(UsageError, match="cannot write this network as ONNX"):
        write_onnx(Branches(), {"images": torch.ones(2, 3)}, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_before_anything_is_done(run, tmp_path, monkeypatch, console):
    monkeypatch.setattr("fggp.lab.export.onnx_file.find_spec", lambda name: None if name == "onnxruntime" else True)
    with pytest.raises(UsageError, match=r"ONNX needs onnxruntime: pip install 'fggp\[onnx\]'"):
        export(ExportSettings(run, out=tmp_path, format=("small", "onnx")), console)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["safetensors", "pt", "nested", "wrapped", "bf16"])
def test_from_a_state_dict(pruned, tmp_path, kind, console):
    state = {name: tensor.contiguous() for name, tensor in pruned.state_dict().items()}
    file = tmp_path / "net.pt"
    if kind == "safetensors":
        file = tmp_path / "net.safetensors"
        safetensors.torch.save_file(state, file)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": state}, file)
    elif kind == "wrapped":
        torch.save({f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, file)
    elif kind == "bf16":
        pruned.bfloat16().float()
        torch.save({name: t.bfloat16() if t.is_floating_point() else t for name, t in state.items()}, file)
    else:
        torch.save(state, file)
    export(ExportSettings(file, model="resnet20"), console)
    model = create("resnet20", 7, 2)
    fggp.load(tmp_path / "net.small.safetensors", model)
    assert same(model, pruned)


def test_a_state_dict_does_not_tell_the_size_of_images(pruned, tmp_path, console):
    needs_onnx()
    torch.save(pruned.state_dict(), tmp_path / "net.pt")
    settings = ExportSettings(tmp_path / "net.pt", model="resnet20", format=("onnx",))
    with pytest.raises(UsageError, match="add --image-size"):
        export(settings, console)
    settings = ExportSettings(tmp_path / "net.pt", model="resnet20", format=("onnx",), image_size=(16, 24))
    assert export(settings, console)["onnx_difference"] < 1e-4


class Trap:
    def __reduce__(self):
        return sys.exit, ("code in a checkpoint was run",)


def test_wrong_sources(run, pruned, tmp_path, console):
    def refused(message, source, **options):
        with pytest.raises(UsageError, match=message):
            export(ExportSettings(source, **{"out": tmp_path / "out", **options}), console)
        assert not (tmp_path / "out").exists()

    refused("does not exist", tmp_path / "nowhere")
    refused("holds no run", tmp_path)
    refused("model is 'resnet20', the run's is 'digits-cnn'", run, model="resnet20")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "settings.json").write_text((run / "settings.json").read_text())
    refused("is not finished; .*--resume", unfinished)
    refused("add --model", run / "model.safetensors")
    refused("is not of model 'vgg19': it lacks", run / "model.safetensors", model="vgg19")
    refused("close matches: resnet20", run / "model.safetensors", model="resnet-20")
    torch.save({**pruned.state_dict(), "extra": torch.ones(1)}, tmp_path / "more.pt")
    refused("that has no 'extra'", tmp_path / "more.pt", model="resnet20")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    refused("must hold a state dict", tmp_path / "none.pt", model="resnet20")
    torch.save({"a": Trap()}, tmp_path / "trap.pt")
    refused("cannot be read", tmp_path / "trap.pt", model="resnet20")
    (tmp_path / "text.safetensors").write_text("no tensors")
    refused("cannot be read", tmp_path / "text.safetensors", model="resnet20")
    fggp.save(pruned, tmp_path / "small.safetensors")
    refused("is a small file already", tmp_path / "small.safetensors", model="resnet20")
    refused("which holds the weights to export", run, out=run / "model.safetensors", force=True)
    refused("image_size is '1 2 3'", run, image_size=(1, 2, 3))
    refused("values is 'bf16'", run, values="bf16", format=("onnx",))


def test_files_that_are_there_are_kept_without_force(run, tmp_path, console):
    file = tmp_path / "net.safetensors"
    file.write_text("mine")
    with pytest.raises(UsageError, match="exists already; add --force"):
        export(ExportSettings(run, out=file), console)
    assert file.read_text() == "mine"
    export(ExportSettings(run, out=file, force=True), console)
    fggp.load(file, create("digits-cnn", 10, 1))


def test_where_files_go(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert ExportSettings(run).files() == {"small": run / "model.small.safetensors"}
    assert ExportSettings(run, format=("small", "onnx")).files()["onnx"] == run / "model.onnx"
    assert ExportSettings(tmp_path / "a.pt").files() == {"small": tmp_path / "a.small.safetensors"}
    assert ExportSettings(run, out=tmp_path / "b.onnx").files() == {"onnx": tmp_path / "b.onnx"}
    with pytest.raises(UsageError, match="is not for format small onnx"):
        ExportSettings(run, out=tmp_path / "b.onnx", format=("small", "onnx")).files()


def test_without_kernels_it_works_and_says_so(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(native, "load", missing)
    export(ExportSettings(run, out=tmp_path), Console(width=200))
    assert "would run on PyTorch: no kernels here" in capsys.readouterr().out


def missing():
    raise native.KernelsMissingError("no kernels here")


def test_dense_bytes_are_those_of_the_file(pruned, tmp_path):
    state = {name: tensor.contiguous() for name, tensor in pruned.state_dict().items()}
    safetensors.torch.save_file(state, tmp_path / "net.safetensors")
    assert dense_bytes(pruned) == (tmp_path / "net.safetensors").stat().st_size


def test_the_command_line(run, tmp_path, capsys):
    assert cli.main(["export", str(run), "--out", str(tmp_path / "net.safetensors"), "--values", "bf16"]) == 0
    assert "small, bf16" in capsys.readouterr().out
    assert cli.main(["export", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith(f"fggp: {tmp_path} holds no run")


def test_the_list_of_commands_has_a_line_each_and_their_own_help_all(capsys):
    def shown(*arguments):
        with pytest.raises(SystemExit):
            cli.main([*arguments, "--help"])
        return capsys.readouterr().out

    listed = shown()
    for _, _, line in cli.COMMANDS.values():
        assert line in listed
    assert len(listed.splitlines()) < 40
    for command in cli.COMMANDS:
        assert f"fggp {command}" in shown(command)
    assert "--image-size" in shown("bench")
