"""Networks by name, untrained: the CIFAR forms of the literature, and any torchvision or timm model."""

import difflib
import math
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from fggp.lab.base.errors import UsageError

Model = TypeVar("Model", bound=nn.Module)

VGG19 = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, 256, "pool", 512, 512, 512, 512, "pool") + (512,) * 4


def create(name: str, classes: int, in_channels: int = 3) -> nn.Module:
    """Build an untrained network by name, its weights drawn from torch's global generator.

    Args:
        name: one of `OURS`, `torchvision:NAME` or `timm:NAME`; a bare NAME is looked up in that order. `NAME@WIDTH`
            with a NAME of `WIDTHS` has WIDTH times as many channels in every layer, rounded: vgg19@0.25.
        classes: number of outputs.
        in_channels: channels of the input images; torchvision's own models take 3 only.

    Raises:
        UsageError: there is no such model (the message names close matches), it has no such width, or it cannot take
            these channels.
    """
    name, at, width = name.partition("@")
    if at:
        return _at_width(name, width, classes, in_channels)
    library, _, plain = name.rpartition(":")
    if library not in ("", "torchvision", "timm"):
        raise UsageError(f"model is {name!r}; the part before ':' must be 'torchvision' or 'timm'")
    if not library and name in OURS:
        return OURS[name](classes, in_channels)
    if library != "timm" and plain in _torchvision_names():
        if in_channels != 3:
            raise UsageError(
                f"model is {name!r}, which torchvision builds for 3 channels, but the images have {in_channels}; "
                f"choose one of {', '.join(OURS)} or a timm model"
            )
        network: nn.Module = torchvision.models.get_model(plain, weights=None, num_classes=classes)
        return network
    if library != "torchvision":
        # timm takes a second to import and few runs need it.
        import timm

        if timm.is_model(plain):
            model: nn.Module = timm.create_model(plain, pretrained=False, num_classes=classes, in_chans=in_channels)
            return model
    raise _unknown(name, library, plain)


def _at_width(name: str, width: str, classes: int, in_channels: int) -> nn.Module:
    """Build a network of `WIDTHS`, its layers narrower or wider."""
    if name not in WIDTHS:
        raise UsageError(f"model is '{name}@{width}', but {name} has one width only; {', '.join(WIDTHS)} have others")
    try:
        factor = float(width)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise UsageError(f"model is '{name}@{width}'; after '@' must be a number above 0, as in {name}@0.25")
    return WIDTHS[name](classes, in_channels, factor)


def _channels(full: int, width: float) -> int:
    """Return the channels of a layer that has `full` at width 1; at least one."""
    return max(1, round(width * full))


def _torchvision_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _unknown(name: str, library: str, plain: str) -> UsageError:
    import timm

    known: list[str] = []
    if library == "":
        known += OURS
    if library != "timm":
        known += _torchvision_names()
    if library != "torchvision":
        known += timm.list_models()
    close = difflib.get_close_matches(plain, dict.fromkeys(known), n=4)
    hint = f"close matches: {', '.join(close)}" if close else f"it must be one of {', '.join(OURS)}"
    return UsageError(f"model is {name!r}, which does not exist; {hint}, or any torchvision or timm model")


def vgg19(classes: int, in_channels: int, width: float = 1.0) -> nn.Sequential:
    """VGG-19 with batch norm, CIFAR form: 16 convolutions and one linear layer; 20.0 M weights at width 1."""
    features = nn.Sequential()
    channels = in_channels
    for layer in VGG19:
        if isinstance(layer, int):
            features.extend(_conv_bn_relu(channels, _channels(layer, width)))
            channels = _channels(layer, width)
        else:
            features.append(nn.MaxPool2d(2))
    return _he_normal(_with_classifier(features, channels, classes))


def resnet50(classes: int, in_channels: int) -> nn.Module:
    """torchvision's ResNet-50 with the CIFAR stem: a 3×3 stride-1 first convolution, no max-pool; 23.5 M."""
    model: nn.Module = torchvision.models.resnet50(weights=None, num_classes=classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return _he_normal(model)


def resnet20(classes: int, in_channels: int, width: float = 1.0) -> nn.Sequential:
    """ResNet-20 for CIFAR of He et al. (2016), section 4.2, with its parameter-free option-A shortcuts.

    It has 0.27 M weights at width 1.
    """
    stages = [_channels(full, width) for full in (16, 32, 64)]
    channels = stages[0]
    features = nn.Sequential(*_conv_bn_relu(in_channels, channels))
    for stage, out in enumerate(stages):
        for block in range(3):
            features.append(BasicBlock(channels, out, stride=2 if stage and not block else 1))
            channels = out
    return _he_normal(_with_classifier(features, channels, classes))


def digits_cnn(classes: int, in_channels: int, width: float = 1.0) -> nn.Sequential:
    """A small convnet for images of about 8×8 pixels; 0.06 M weights at width 1, trained in seconds on a CPU."""
    first, second = (_channels(full, width) for full in (32, 64))
    features = nn.Sequential(
        *_conv_bn_relu(in_channels, first),
        *_conv_bn_relu(first, second),
        nn.MaxPool2d(2),
        *_conv_bn_relu(second, second),
    )
    return _he_normal(_with_classifier(features, second, classes))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut that subsamples and zero-pads channels where the shape changes.

    Args:
        channels: channels in.
        out: channels out, at least as many.
        stride: 2 halves height and width.
    """

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.padding = out - channels
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, channels, H, W] to [N, out, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride > 1:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.padding))
        return F.relu(x + y)


def _conv_bn_relu(width: int, out: int) -> list[nn.Module]:
    return [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]


def _with_classifier(features: nn.Sequential, width: int, classes: int) -> nn.Sequential:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(OrderedDict(features=features, pool=pool, classifier=nn.Linear(width, classes)))


def _he_normal(model: Model) -> Model:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return model


OURS: dict[str, Callable[[int, int], nn.Module]] = {
    "vgg19": vgg19,
    "resnet50": resnet50,
    "resnet20": resnet20,
    "digits-cnn": digits_cnn,
}
WIDTHS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "vgg19": vgg19,
    "resnet20": resnet20,
    "digits-cnn": digits_cnn,
}
"""Those of `OURS` that can be built narrower or wider."""
