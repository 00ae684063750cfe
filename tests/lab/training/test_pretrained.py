"""Weights that torchvision and timm offer, without a network: what would be downloaded is made here."""

import urllib.error

import huggingface_hub
import pytest
import timm
import torch
import torchvision
from rich.console import Console
from torch import nn

from fggp.lab.base.errors import UsageError
from fggp.lab.training.models import create
from fggp.lab.training.pretrained import OfTimm, OfTorchvision, pretrained
from fggp.lab.training.settings import TrainSettings
from fggp.lab.training.start import load_start
from fggp.lab.training.train import train

TIMM = "timm:test_resnet"


@pytest.fixture
def hub(monkeypatch):
    """Put timm's loading on a state dict of this test; return that network, and the addresses that were asked for."""
    torch.manual_seed(7)
    source = timm.create_model("test_resnet", num_classes=1000)
    asked = []

    def answer(url, **options):
        asked.append(url)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", answer)
    monkeypatch.setattr(
        "timm.models._builder.load_state_dict_from_hf",
        lambda repository, *names, **options: {name: t.clone() for name, t in source.state_dict().items()},
    )
    return source, asked


class NoRouteError(Exception):
    """As the HTTP libraries': no OSError."""


@pytest.fixture
def offline(monkeypatch):
    """Let the Hub be unreachable; return what was asked for."""
    asked = []

    def refuse(url, **options):
        asked.append(url)
        raise NoRouteError("no route to host\nand more")

    def not_cached(*args, **options):
        raise huggingface_hub.errors.LocalEntryNotFoundError("not cached")

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", refuse)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_cached)
    return asked


def test_weights_of_torchvision(monkeypatch):
    weights = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    source = torchvision.models.squeezenet1_1(weights=None)
    monkeypatch.setattr(type(weights), "get_state_dict", lambda self, **options: source.state_dict())
    model = torchvision.models.squeezenet1_1(weights=None, num_classes=3)
    start = load_start("pretrained", "squeezenet1_1", model, 3, 3)
    assert torch.equal(model.features[0].weight, source.features[0].weight)
    assert start.replaced == ("classifier.1.weight", "classifier.1.bias")
    assert start.mean == pytest.approx([123.675, 116.28, 103.53])
    assert start.source == "torchvision's SqueezeNet1_1_Weights.IMAGENET1K_V1"


@pytest.mark.parametrize("classes", [3, 1000])
def test_weights_of_timm(hub, classes):
    source, asked = hub
    model = create(TIMM, classes)
    fresh = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    drawn = torch.random.get_rng_state()
    start = load_start("pretrained", TIMM, model, classes, 3)
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert len(asked) == 1
    expected = source.state_dict()
    if classes != 1000:
        assert start.replaced == ("fc.weight", "fc.bias")
        expected |= {name: fresh[name] for name in start.replaced}
    else:
        assert start.replaced == ()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    config = timm.models.get_pretrained_cfg("test_resnet")
    assert start.mean == pytest.approx([255 * value for value in config.mean])
    assert start.std == pytest.approx([255 * value for value in config.std])
    assert start.source == f"timm's test_resnet.{config.tag}"


def test_a_run_from_weights_of_timm(hub, tmp_path, image_folder, capsys):
    common = {
        "device": "cpu",
        "precision": "fp32",
        "image_size": 32,
        "epochs": 1,
        "batch_size": 8,
        "out": tmp_path / "run",
    }
    settings = TrainSettings(f"folder:{image_folder}", model=TIMM, weights="pretrained", **common)
    record = train(settings, Console(width=200))
    assert record["start"]["source"].startswith("timm's test_resnet.")
    assert record["input"]["mean"] == pytest.approx([255 * value for value in pretrained(TIMM).normalisation[0]])
    said = (
        "starting from timm's test_resnet.r160_in1k; fc.weight, fc.bias were missing, or of another number of classes"
    )
    assert said in capsys.readouterr().out


def test_without_a_network_torchvisions_address_is_said(monkeypatch):
    def offline(self, **options):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(type(torchvision.models.get_model_weights("squeezenet1_1").DEFAULT), "get_state_dict", offline)
    with pytest.raises(UsageError, match=r"cannot be downloaded \(.*no route.*\); fetch https://\S+ elsewhere"):
        load_start("pretrained", "squeezenet1_1", nn.Linear(1, 1), 10, 3)


def test_without_a_network_timms_address_is_said_after_one_attempt(offline, monkeypatch):
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: pytest.fail("timm would try for a minute"))
    with pytest.raises(
        UsageError,
        match=r"timm:test_resnet\.\w+ cannot be downloaded \(no route to host\); fetch https://\S+/test_resnet\.\w+ ",
    ):
        load_start("pretrained", TIMM, nn.Linear(1, 1), 10, 3)
    assert len(offline) == 1


def test_without_a_network_what_is_on_this_machine_is_used(hub, offline, monkeypatch):
    source, _ = hub
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **options: "folder")
    model = create(TIMM, 1000)
    load_start("pretrained", TIMM, model, 1000, 3)
    assert torch.equal(model.fc.weight, source.fc.weight)


def test_images_of_other_channels_are_refused_before_a_download(offline):
    with pytest.raises(UsageError, match=r"timm's test_resnet\.\w+ is for images of 3 channels, and these have 1; "):
        load_start("pretrained", TIMM, create(TIMM, 10, 1), 10, 1)
    assert offline == []


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vgg19", "torchvision:vgg19 has some"),
        ("digits-cnn", "torchvision's and timm's models have some"),
        ("timm:resnet18.no_such_tag", "models have some"),
        ("torchvision:test_resnet", "models have some"),
    ],
)
def test_networks_without_weights(name, hint):
    with pytest.raises(UsageError, match=f"model '{name}' has none; .*{hint}"):
        pretrained(name)


def test_a_network_of_timm_that_has_none():
    without = next(name for name in timm.list_models() if not timm.models.get_pretrained_cfg(name).has_weights)
    with pytest.raises(UsageError, match=f"model 'timm:{without}' has none"):
        pretrained(f"timm:{without}")


@pytest.mark.parametrize(
    ("name", "library", "identity"),
    [
        ("resnet18", OfTorchvision, "ResNet18_Weights.IMAGENET1K_V1"),
        ("torchvision:resnet18", OfTorchvision, "ResNet18_Weights.IMAGENET1K_V1"),
        ("timm:resnet18", OfTimm, r"timm:resnet18.a1_in1k"),
        ("timm:resnet18.tv_in1k", OfTimm, "timm:resnet18.tv_in1k"),
        ("test_resnet", OfTimm, "timm:test_resnet.r160_in1k"),
    ],
)
def test_a_name_means_the_library_that_builds_the_network(name, library, identity):
    found = pretrained(name)
    assert isinstance(found, library)
    assert found.identity == identity
    assert found.address.startswith("https://")
