import pytest
import torch
from torch import nn

from fggp.lab.base.errors import UsageError
from fggp.lab.training import models


def weights(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("name", "millions", "convs"),
    [("vgg19", 20.0, 16), ("resnet50", 23.5, 53), ("resnet20", 0.27, 19), ("digits-cnn", 0.06, 3)],
)
def test_size(name, millions, convs):
    model = models.create(name, 10, 3)
    assert weights(model) / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.005)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convs
    assert sum(isinstance(module, nn.Linear) for module in model.modules()) == 1


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["vgg19", "resnet20", "digits-cnn"])
def test_output(name, channels):
    assert models.create(name, 7, channels)(torch.zeros(2, channels, 32, 32)).shape == (2, 7)


def test_resnet50_keeps_the_resolution_of_its_input():
    model = models.create("resnet50", 10)
    stem = nn.Sequential(model.conv1, model.bn1, model.relu, model.maxpool)
    assert stem(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 32, 32)


def test_resnet20_halves_and_doubles():
    model = models.create("resnet20", 10)
    assert model.features(torch.zeros(1, 3, 32, 32)).shape == (1, 64, 8, 8)


def test_initial_weights_are_a_function_of_the_global_seed():
    def first() -> torch.Tensor:
        return next(models.create("resnet20", 10).parameters())

    torch.manual_seed(3)
    one = first()
    torch.manual_seed(3)
    assert torch.equal(one, first())


@pytest.mark.parametrize("name", ["torchvision:squeezenet1_1", "squeezenet1_1", "timm:test_resnet", "test_resnet"])
def test_library_models(name):
    assert models.create(name, 5)(torch.zeros(2, 3, 64, 64)).shape == (2, 5)


def test_timm_takes_any_number_of_channels():
    assert models.create("timm:test_resnet", 5, 1)(torch.zeros(2, 1, 64, 64)).shape == (2, 5)


def test_torchvision_takes_three_channels_only():
    with pytest.raises(UsageError, match="3 channels, but the images have 1"):
        models.create("torchvision:resnet18", 10, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet-20", "resnet20"),
        ("vgg91", "vgg19"),
        ("timm:convnext_tny", "convnext_tiny"),
        ("torchvision:convnext_tny", "convnext_tiny"),
        ("torchvision:timm_only_name", "torchvision"),
        ("keras:resnet", "'torchvision' or 'timm'"),
    ],
)
def test_unknown_model(name, message):
    with pytest.raises(UsageError, match=f"model is '{name}'.*{message}"):
        models.create(name, 10)
