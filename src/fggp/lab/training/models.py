"""Networks by name, untrained: the CIFAR forms of the literature, and any torchvision or timm model."""

import difflib
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
        name: one of `OURS`, `torchvision:NAME` or `timm:NAME`; a bare NAME is looked up in that order.
        classes: number of outputs.
        in_channels: channels of the input images; torchvision's own models take 3 only.

    Raises:
        UsageError: there is no such model (the message names close matches), or it cannot take these channels.
    """
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


def vgg19(classes: int, in_channels: int) -> nn.Sequential:
    """VGG-19 with batch norm, CIFAR form: 16 convolutions and one linear layer; 20.0 M weights."""
    features = nn.Sequential()
    width = in_channels
    for layer in VGG19:
        if isinstance(layer, int):
            features.extend(_conv_bn_relu(width, layer))
            width = layer
        else:
            features.append(nn.MaxPool2d(2))
    return _he_normal(_with_classifier(features, width, classes))


def resnet50(classes: int, in_channels: int) -> nn.Module:
    """torchvision's ResNet-50 with the CIFAR stem: a 3×3 stride-1 first convolution, no max-pool; 23.5 M."""
    model: nn.Module = torchvision.models.resnet50(weights=None, num_classes=classes)
    model.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()
    return _he_normal(model)


def resnet20(classes: int, in_channels: int) -> nn.Sequential:
    """ResNet-20 for CIFAR of He et al. (2016), section 4.2, with its parameter-free option-A shortcuts; 0.27 M."""
    features = nn.Sequential(*_conv_bn_relu(in_channels, 16))
    width = 16
    for stage in (16, 32, 64):
        for _ in range(3):
            features.append(BasicBlock(width, stage))
            width = stage
    return _he_normal(_with_classifier(features, width, classes))


def digits_cnn(classes: int, in_channels: int) -> nn.Sequential:
    """A small convnet for images of about 8×8 pixels; 0.06 M weights, trained in seconds on a CPU."""
    features = nn.Sequential(
        *_conv_bn_relu(in_channels, 32),
        *_conv_bn_relu(32, 64),
        nn.MaxPool2d(2),
        *_conv_bn_relu(64, 64),
    )
    return _he_normal(_with_classifier(features, 64, classes))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut that subsamples and zero-pads channels where the shape changes.

    Args:
        width: channels in.
        out: channels out; where it differs from `width` the block halves height and width.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.stride = 1 if width == out else 2
        self.padding = out - width
        self.conv1 = nn.Conv2d(width, out, 3, stride=self.stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, width, H, W] to [N, out, H / stride, W / stride]."""
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.padding:
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
