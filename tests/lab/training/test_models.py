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


@pytest.mark.parametrize("name", models.WIDTHS)
def test_width_1_is_the_network_itself(name):
    torch.manual_seed(0)
    own = models.create(name, 10).state_dict()
    torch.manual_seed(0)
    again = models.create(f"{name}@1", 10).state_dict()
    assert own.keys() == again.keys()
    assert all(torch.equal(own[key], again[key]) for key in own)


@pytest.mark.parametrize("name", models.WIDTHS)
@pytest.mark.parametrize("width", [0.001, 0.145, 0.25, 0.5, 2])
def test_width_scales_the_channels_of_every_layer(name, width):
    def channels(model: nn.Module) -> list[int]:
        return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]

    model = models.create(f"{name}@{width}", 7, 1)
    assert channels(model) == [max(1, round(width * full)) for full in channels(models.create(name, 7, 1))]
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize("width", [0.03, 0.1, 1])
def test_a_narrow_resnet20_keeps_its_resolutions(width):
    # At 0.03, two stages have one channel each, so the number of channels does not show where a stage begins.
    features = models.create(f"resnet20@{width}", 10).features
    x, sizes = torch.zeros(1, 3, 32, 32), []
    for module in features:
        x = module(x)
        sizes.append(x.shape[-1])
    assert sizes == [32] * 6 + [16] * 3 + [8] * 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet50@0.5", "resnet50 has one width only; vgg19, resnet20, digits-cnn have others"),
        ("timm:test_resnet@0.5", "one width only"),
        ("vgg19@", "after '@' must be a number above 0, as in vgg19@0.25"),
        ("vgg19@half", "a number above 0"),
        ("vgg19@0", "a number above 0"),
        ("vgg19@-1", "a number above 0"),
        ("vgg19@nan", "a number above 0"),
        ("vgg19@inf", "a number above 0"),
    ],
)
def test_width_that_does_not_exist(name, message):
    with pytest.raises(UsageError, match=f"model is '{name}'.*{message}"):
        models.create(name, 10)


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
