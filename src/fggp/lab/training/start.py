"""Where a run starts from: trained weights are found, fitted to the run's classes, and loaded into its network."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

import fggp
from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.training import models
from fggp.lab.training.pretrained import pretrained
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import PRETRAINED
from fggp.lab.training.weights_file import is_small_file, metadata, read_state_dict, refuse_other_network
from fggp.lab.training.weights_name import finished_model
from fggp.lab.training.weights_shapes import shapes_in_small_file, shapes_of, size_in
from fggp.model.find import find_prunable

OPTIONAL = "num_batches_tracked"
"""What batch norms only count with; weights of old versions of PyTorch have no such entries."""


PRUNED = 0.05
"""Share of zeros from which on weights count as pruned. The Pruner, too, finds so many strange."""


@dataclass(frozen=True)
class Trained:
    """Trained weights.

    Attributes:
        state: the state dict.
        source: what they are, for the user.
        mean, std: of each channel, in 0…255, by which images were normalised; None if unknown.
    """

    state: Mapping[str, Tensor]
    source: str
    mean: list[float] | None = None
    std: list[float] | None = None


@dataclass(frozen=True)
class Start:
    """What a run started from, as its record says it.

    Attributes:
        source: a file, a run, or the name of torchvision's or timm's weights.
        digest: BLAKE2b of the state dict, which tells files of the same name apart.
        sparsity: share of the prunable weights that are zero in them.
        replaced: parameters of the classifier, which were missing or of another number of classes and start anew.
        mean, std: the normalisation of the images that the weights were trained with, which the run keeps; else None.
        val_accuracy: of these weights before training, in percent; None with a new classifier, or if no images are held
            out.
    """

    source: str
    digest: str
    sparsity: float
    replaced: tuple[str, ...]
    mean: list[float] | None
    std: list[float] | None
    val_accuracy: float | None = None

    @property
    def pruned(self) -> bool:
        """Whether somebody pruned the weights."""
        return self.sparsity >= PRUNED

    def as_json(self) -> Json:
        """Return it for the record; the normalisation is in the record's ``input``."""
        return {name: value for name, value in asdict(self).items() if name not in ("mean", "std")}

    def text(self, zeros_stay: bool) -> str:
        """Return it for the user.

        Args:
            zeros_stay: whether the run's method leaves pruned weights at zero.
        """
        text = f"starting from {self.source}"
        if self.pruned:
            after = "stay so" if zeros_stay else "may be filled again"
            text += f", {100 * self.sparsity:.1f} % of whose weights are zero and {after}"
        if self.replaced:
            text += f"; {', '.join(self.replaced)} were missing, or of another number of classes, and start anew"
        if self.val_accuracy is not None:
            text += f": validation {self.val_accuracy:.2f} %"
        return text


def load_start(weights: str, name: str, model: nn.Module, classes: int, channels: int) -> Start:
    """Load trained weights into a network.

    Args:
        weights: a file, a run folder or "pretrained", as `TrainSettings.weights`.
        name: of the network, as in `fggp.lab.training.models.create`.
        model: the network, untrained; its classifier stays so if the weights are of another number of classes.
        classes: number of its outputs.
        channels: of its images.

    Raises:
        UsageError: there are no such weights, or they are of another network; the model is unchanged.
    """
    trained = _pretrained(name, channels) if weights == PRETRAINED else _read(Path(weights), name, classes, channels)
    state = dict(trained.state)
    for key, tensor in state.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UsageError(f"weights is {weights!r}, but {key!r} in it holds values that are not finite")
    own = model.state_dict()
    for key, tensor in own.items():
        if key.endswith(OPTIONAL):
            state.setdefault(key, tensor)
    changed = [key for key, tensor in own.items() if key not in state or state[key].shape != tensor.shape]
    replaced = tuple(changed) if changed and {*changed} <= _head(name, classes, channels, own) else ()
    state |= {key: own[key] for key in replaced}
    refuse_other_network(name, model, state, trained.source)
    model.load_state_dict(state)
    known = trained.mean is not None and len(trained.mean) == channels
    return Start(
        trained.source,
        _digest(trained.state),
        _share_of_zeros(model),
        replaced,
        trained.mean if known else None,
        trained.std if known else None,
    )


def _head(name: str, classes: int, channels: int, own: Mapping[str, Tensor]) -> set[str]:
    """Return the names of the tensors whose shape depends on the number of classes."""
    with torch.random.fork_rng(devices=[]):  # the run's own draws go on as if this network had not been built
        other = models.create(name, classes + 1, channels).state_dict()
    return {key for key, tensor in own.items() if other[key].shape != tensor.shape}


def _read(path: Path, name: str, classes: int, channels: int) -> Trained:
    if path.is_dir():
        return _of_run(RunFolder(path), name)
    if is_small_file(path):
        return _of_small_file(path, name, classes, channels)
    found = read_state_dict(path)
    return Trained(found.state, f"{path.name}{found.remark}")


def _of_run(folder: RunFolder, name: str) -> Trained:
    file = finished_model(folder.path)
    record = folder.record()
    if record is None:
        raise UsageError(f"weights is {str(folder.path)!r}, a run whose record is damaged; resume it")
    if record["model"] != name:
        raise UsageError(f"weights is {str(folder.path)!r}, a run of model {record['model']!r}, not of {name!r}")
    return Trained(
        safetensors.torch.load_file(file),
        f"run {folder.path.resolve().name}",
        *_normalisation(record.get("input", {})),  # records of older versions have none
    )


def _of_small_file(path: Path, name: str, classes: int, channels: int) -> Trained:
    image = json.loads(metadata(path).get("input", "{}"))
    with torch.random.fork_rng(devices=[]):
        stored = len(image["classes"]) if "classes" in image else _classes_of_small_file(path, name, channels)
        model = models.create(name, stored or classes, channels)
    try:
        fggp.load(path, model)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(f"weights is {str(path)!r}, which is not of model {name!r}: {error}") from error
    return Trained(model.state_dict(), path.name, *_normalisation(image))


def _classes_of_small_file(path: Path, name: str, channels: int) -> int | None:
    """Return the number of classes that the shapes in a small file show; None if they show none."""
    smaller, larger = (shapes_of(models.create(name, count, channels)) for count in (2, 3))
    return size_in(shapes_in_small_file(path, smaller), smaller, larger)


def _normalisation(image: Mapping[str, Any]) -> tuple[list[float] | None, list[float] | None]:
    return image.get("mean"), image.get("std")


def _pretrained(name: str, channels: int) -> Trained:
    """Return the weights that torchvision or timm offer for a network.

    Raises:
        UsageError: there are none, they are for images of other channels, or they cannot be downloaded.
    """
    best = pretrained(name)
    mean, std = ([255 * value for value in values] for values in best.normalisation)
    if len(mean) != channels:
        raise UsageError(
            f"weights is 'pretrained', but {best.source} is for images of {len(mean)} channels, and these have "
            f"{channels}; give a FILE, or leave --weights out"
        )
    try:
        state = best.state()
    except Exception as error:  # of the HTTP library, which differs between versions of what downloads
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UsageError(
            f"weights is 'pretrained', but {best.identity} cannot be downloaded ({reason}); "
            f"fetch {best.address} elsewhere, and give that file"
        ) from error
    return Trained(state, best.source, mean, std)


def _share_of_zeros(model: nn.Module) -> float:
    sizes = [(int(w.parameter.count_nonzero()), w.parameter.numel()) for w in find_prunable(model)]
    nonzero, total = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (0, 0)
    return 1 - nonzero / total if total else 0.0


def _digest(state: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for key, tensor in state.items():
        digest.update(key.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
