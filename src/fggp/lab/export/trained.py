"""Trained networks read from the disk: from a run folder of `fggp train`, or from any state dict."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fggp.lab.base.errors import UsageError
from fggp.lab.training import models
from fggp.lab.training.methods import label
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.weights_file import is_small_file, read_state_dict, refuse_other_network
from fggp.lab.training.weights_shapes import shapes_of, size_in
from fggp.model.find import find_prunable

SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32, "fashion-mnist": 28}
"""Height and width of the images of named data."""


@dataclass(frozen=True)
class Network:
    """A trained network.

    Attributes:
        model: in evaluation mode, on the CPU, in float32.
        name: of its architecture.
        title: names its method, architecture and data.
        channels: of its images.
        image_size: their height and width; None if unknown.
        input: describes the images as the run's record does (`make_record`); empty if unknown.
    """

    model: nn.Module
    name: str
    title: str
    channels: int
    image_size: tuple[int, int] | None
    input: Mapping[str, Any] = field(default_factory=dict)

    def images(self, batch: int, seed: int = 0) -> Tensor:
        """Return random images, [batch, channels, height, width], distributed as after normalisation."""
        assert self.image_size is not None
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.channels, *self.image_size, generator=generator)


def load_network(source: Path, name: str | None = None, image_size: tuple[int, ...] | None = None) -> Network:
    """Read a trained network.

    Args:
        source: a finished run's folder, or a file with a state dict, of safetensors or torch.save.
        name: of the network, as in `fggp.lab.training.models.create`; for files only.
        image_size: height and width, or one number for both; None for the size of the run's data.

    Raises:
        UsageError: there is no such network, or the weights are of another one.
    """
    size = square(image_size)
    if source.is_dir():
        return _from_run(RunFolder(source), name, size)
    if not source.exists():
        raise UsageError(f"{source} does not exist; give a run folder of fggp train, or a file with a state dict")
    if name is None:
        raise UsageError(f"{source} does not name its network; add --model NAME")
    if is_small_file(source):
        raise UsageError(f"{source} is a small file already; fggp.load reads it")
    found = read_state_dict(source)
    model, channels = _build(name, found.state, source)
    return Network(model, name, f"{name}, {source.name}{found.remark}", channels, size)


def square(image_size: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Return (height, width) of one number or two.

    Raises:
        UsageError: there are other numbers than these.
    """
    if image_size is None:
        return None
    if len(image_size) not in (1, 2) or min(image_size) < 1:
        given = " ".join(map(str, image_size))
        raise UsageError(f"image_size is {given!r}; it must be the pixels of a side, or height and width")
    return image_size[0], image_size[-1]


def weights(model: nn.Module) -> list[Tensor]:
    """Return the weights that can be pruned, each once."""
    return [weight.parameter.detach() for weight in find_prunable(model)]


def weights_left(model: nn.Module) -> tuple[int, int]:
    """Return the number of prunable weights that are not zero, and that of all prunable weights."""
    prunable = weights(model)
    return sum(int(weight.count_nonzero()) for weight in prunable), sum(weight.numel() for weight in prunable)


def _from_run(folder: RunFolder, name: str | None, size: tuple[int, int] | None) -> Network:
    if not folder.holds_run():
        raise UsageError(f"{folder.path} holds no run of fggp train: there is no {folder.settings_file.name} in it")
    record = folder.record()
    if record is None or not folder.model_file.exists():
        raise UsageError(f"the run in {folder.path} is not finished; its fggp train command with --resume continues")
    settings: dict[str, Any] = record["settings"]
    if name not in (None, settings["model"]):
        raise UsageError(f"model is {name!r}, the run's is {settings['model']!r}; leave --model out")
    model, channels = _build(settings["model"], safetensors.torch.load_file(folder.model_file), folder.model_file)
    image: Mapping[str, Any] = record.get("input", {})  # records of older versions have none
    side = settings["image_size"] or SIZES.get(settings["data"])
    if size is None and image:
        size = image["shape"][1], image["shape"][2]
    elif size is None and side is not None:
        size = side, side
    data = settings["data_name"] or settings["data"]
    title = f"{label(record['method'])}, {settings['model']} on {data}"
    return Network(model, settings["model"], title, channels, size, image)


def _build(name: str, state: Mapping[str, Tensor], file: Path) -> tuple[nn.Module, int]:
    """Build the network of these weights, and return it with the number of its input channels.

    The weights show the numbers of classes and channels: in the dimensions that change when a network is built for one
    more.
    """
    shapes = {key: tensor.shape for key, tensor in state.items()}
    built = shapes_of(models.create(name, classes=2))
    classes = size_in(shapes, built, shapes_of(models.create(name, classes=3)))
    try:
        channels = size_in(shapes, built, shapes_of(models.create(name, classes=2, in_channels=4)))
    except UsageError:  # it always takes three
        channels = 3
    model = models.create(name, classes or 2, channels or 3)
    refuse_other_network(name, model, state, file)
    model.load_state_dict(dict(state))
    return model.float().eval(), channels or 3
