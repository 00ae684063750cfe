"""A trained network from what was left on the disk: a run folder of `fggp train`, or anyone's state dict."""

import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from fggp.lab.base.errors import UsageError
from fggp.lab.training import models
from fggp.lab.training.record import label
from fggp.lab.training.run_folder import RunFolder
from fggp.weights.find import find_prunable

SIZES = {"digits": 8, "cifar10": 32, "cifar100": 32, "fashion-mnist": 28}
"""Height and width of the images of named data."""

# Where training scripts put a state dict among other things, and what wrappers put before its names.
KEYS = ("state_dict", "model_state_dict", "model")
PREFIXES = ("module.", "_orig_mod.", "model.")


@dataclass(frozen=True)
class Network:
    """A network to ship.

    Attributes:
        model: in evaluation mode, on the CPU, in float32.
        name: of its architecture.
        title: what it is and what it was trained on.
        channels: of its images.
        image_size: their height and width; None where nothing tells.
        input: what the run's record says of the images (`make_record`); empty where nothing does.
    """

    model: nn.Module
    name: str
    title: str
    channels: int
    image_size: tuple[int, int] | None
    input: Mapping[str, Any] = field(default_factory=dict)

    def images(self, batch: int, seed: int = 0) -> Tensor:
        """Return random images, [batch, channels, height, width], as they are after normalisation."""
        assert self.image_size is not None
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, self.channels, *self.image_size, generator=generator)


def load_network(source: Path, name: str | None = None, image_size: tuple[int, ...] | None = None) -> Network:
    """Read a network back.

    Args:
        source: a finished run's folder; or a file with a state dict, of safetensors or torch.save.
        name: the network's, as `fggp.lab.training.models.create` takes it; for files only.
        image_size: height and width, one number for both; None takes what the run's data tell.

    Raises:
        UsageError: there is no such network, or it is not what it is said to be; the message says what would be right.
    """
    size = square(image_size)
    if source.is_dir():
        return _from_run(RunFolder(source), name, size)
    if not source.exists():
        raise UsageError(f"{source} does not exist; give a run folder of fggp train, or a file with a state dict")
    if name is None:
        raise UsageError(f"{source} does not say which network its weights are of; add --model NAME")
    model, channels = _fitted(name, _state_dict(source), source)
    return Network(model, name, f"{name}, {source.name}", channels, size)


def square(image_size: tuple[int, ...] | None) -> tuple[int, int] | None:
    """Return (height, width) of one number or two.

    Raises:
        UsageError: it is something else.
    """
    if image_size is None:
        return None
    if len(image_size) not in (1, 2) or min(image_size) < 1:
        given = " ".join(map(str, image_size))
        raise UsageError(f"image_size is {given!r}; it must be the pixels of a side, or height and width")
    return image_size[0], image_size[-1]


def weights(model: nn.Module) -> list[Tensor]:
    """Return the weights that can be pruned, each once."""
    return [each.parameter.detach() for each in find_prunable(model)]


def weights_left(model: nn.Module) -> tuple[int, int]:
    """Count the prunable weights that are not zero, and all prunable ones."""
    own = weights(model)
    return sum(int(weight.count_nonzero()) for weight in own), sum(weight.numel() for weight in own)


def _from_run(folder: RunFolder, name: str | None, size: tuple[int, int] | None) -> Network:
    if not folder.holds_run():
        raise UsageError(f"{folder.path} holds no run of fggp train: there is no {folder.settings_file.name} in it")
    record = folder.record()
    if record is None or not folder.model_file.exists():
        raise UsageError(f"the run in {folder.path} is not finished; its fggp train command with --resume goes on")
    settings: dict[str, Any] = record["settings"]
    if name not in (None, settings["model"]):
        raise UsageError(f"model is {name!r}, the run's is {settings['model']!r}; leave --model out")
    model, channels = _fitted(settings["model"], safetensors.torch.load_file(folder.model_file), folder.model_file)
    taken: Mapping[str, Any] = record.get("input", {})  # runs of older versions do not say
    side = settings["image_size"] or SIZES.get(settings["data"])
    if size is None and taken:
        size = taken["shape"][1], taken["shape"][2]
    elif size is None and side is not None:
        size = side, side
    data = settings["data_name"] or settings["data"]
    title = f"{label(record['method'])}, {settings['model']} on {data}"
    return Network(model, settings["model"], title, channels, size, taken)


def _state_dict(file: Path) -> dict[str, Tensor]:
    """Read a file without running anything in it."""
    try:
        if file.suffix == ".safetensors":
            with safetensors.safe_open(file, "pt") as opened:
                if "fggp" in (opened.metadata() or {}):
                    raise UsageError(f"{file} is a small file already; fggp.load reads it")
            return safetensors.torch.load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        # torch's messages go on about how to run the file's code; the first sentence is the reason.
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise UsageError(f"{file} cannot be read as a state dict: {reason}") from error
    if isinstance(state, Mapping):
        state = next((state[key] for key in KEYS if isinstance(state.get(key), Mapping)), state)
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        if tensors:
            return _without_prefix(tensors)
    raise UsageError(f"{file} holds a {type(state).__name__} without tensors; it must hold a state dict")


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return _without_prefix({name.removeprefix(prefix): tensor for name, tensor in state.items()})
    return state


def _fitted(name: str, state: Mapping[str, Tensor], file: Path) -> tuple[nn.Module, int]:
    """Build the network that the weights are of, and count its input's channels.

    How many classes and channels there are, the weights tell: by those dimensions that change when a network is built
    for one more.
    """
    shapes = _shapes(models.create(name, classes=2))
    classes = _size_of(shapes, _shapes(models.create(name, classes=3)), state)
    try:
        channels = _size_of(shapes, _shapes(models.create(name, classes=2, in_channels=4)), state)
    except UsageError:  # it takes three
        channels = 3
    model = models.create(name, classes or 2, channels or 3)
    own = {key: tensor.shape for key, tensor in model.state_dict().items()}
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    other = [key for key, shape in own.items() if key in state and state[key].shape != shape]
    for wrong, what in ((missing, "it lacks"), (unexpected, "that has no"), (other, "of another shape is")):
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise UsageError(f"{file} is not of model {name!r}: {what} {wrong[0]!r}{more}")
    model.load_state_dict(dict(state))
    return model.float().eval(), channels or 3


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in chain(model.named_parameters(), model.named_buffers())}


def _size_of(few: Mapping[str, torch.Size], more: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> int | None:
    """Return a state dict's size in the first dimension in which two networks differ, None where it has none."""

    def sizes() -> Iterator[int]:
        for name, shape in few.items():
            for dim, (a, b) in enumerate(zip(shape, more[name], strict=True)):
                if a != b and name in state and state[name].dim() == len(shape):
                    yield state[name].shape[dim]

    return next(sizes(), None)
