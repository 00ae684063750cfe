"""Weights that torchvision and timm offer for their networks: which there are, and how they are downloaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.models import WeightsEnum

from fggp.lab.base.errors import UsageError
from fggp.lab.training import models

HUB_SECONDS = 10.0
"""How long the Hugging Face Hub may take for its first answer."""


@dataclass(frozen=True)
class OfTorchvision:
    """A torchvision network's weights.

    Args:
        weights: torchvision's name of them.
    """

    weights: WeightsEnum

    @property
    def identity(self) -> str:
        """What tells these weights from others, in settings and messages."""
        return str(self.weights)

    @property
    def source(self) -> str:
        """What they are, for the user."""
        return f"torchvision's {self.weights}"

    @property
    def address(self) -> str:
        """Where they are."""
        return str(self.weights.url)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in 0…1, by which their images were normalised."""
        transforms = self.weights.transforms()
        return list(transforms.mean), list(transforms.std)

    def state(self) -> Mapping[str, Tensor]:
        """Return the state dict; it is downloaded once, and kept where PyTorch keeps such files."""
        state: Mapping[str, Tensor] = self.weights.get_state_dict(progress=False, check_hash=True)
        return state


@dataclass(frozen=True)
class OfTimm:
    """A timm network's weights.

    Args:
        name: timm's name of the network, with or without the tag of the weights.
        config: timm's description of them, a ``timm.models.PretrainedCfg``.
    """

    name: str
    config: Any

    @property
    def identity(self) -> str:
        """What tells these weights from others, in settings and messages."""
        tag = f".{self.config.tag}" if self.config.tag else ""
        return f"timm:{self.config.architecture}{tag}"

    @property
    def source(self) -> str:
        """What they are, for the user."""
        return f"timm's {self.identity.removeprefix('timm:')}"

    @property
    def address(self) -> str:
        """Where they are."""
        repository = self.config.hf_hub_id
        return f"https://huggingface.co/{repository}" if repository else str(self.config.url)

    @property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, in 0…1, by which their images were normalised."""
        return list(self.config.mean), list(self.config.std)

    def state(self) -> Mapping[str, Tensor]:
        """Return the state dict; it is downloaded once, and kept where the Hugging Face Hub or PyTorch keep such files.

        timm loads them into a network of its own first, because old files have other names than its networks.
        """
        import timm

        if self.config.hf_hub_id:
            _ask_hub(self.config.hf_hub_id)
        with torch.random.fork_rng(devices=[]):  # the run's own draws go on as if this network had not been built
            state: Mapping[str, Tensor] = timm.create_model(self.name, pretrained=True).state_dict()
        return state


def pretrained(model: str) -> OfTorchvision | OfTimm:
    """Return the weights that a library offers for a network; they need not be on this machine.

    Args:
        model: name of the network, as in `fggp.lab.training.models.create`.

    Raises:
        UsageError: it offers none.
    """
    library, _, plain = model.rpartition(":")
    if model not in models.OURS:
        if library != "timm" and plain in torchvision.models.list_models(module=torchvision.models):
            return OfTorchvision(torchvision.models.get_model_weights(plain).DEFAULT)
        config = None if library == "torchvision" else _timm_config(plain)
        if config is not None:
            return OfTimm(plain, config)
    known = plain in torchvision.models.list_models(module=torchvision.models)
    others = f"torchvision:{plain} has some" if known else "most of torchvision's and timm's models have some"
    raise UsageError(f"weights is 'pretrained', but model {model!r} has none; {others}, or give a FILE")


def _timm_config(name: str) -> Any:
    """Return timm's description of a network's weights; None if there are none. It needs no network."""
    import timm

    if not timm.is_model(name):
        return None
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError:  # there are weights, but not of this tag
        return None
    return config if config is not None and config.has_weights else None


def _ask_hub(repository: str) -> None:
    """Ask once whether the Hub can be reached, unless the repository is on this machine.

    timm would ask again and again, for most of a minute, before it says that there is no network.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    url = huggingface_hub.hf_hub_url(name, "config.json", revision=revision or None)
    try:
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_SECONDS)
    except EntryNotFoundError:
        pass  # it has answered
    except Exception:  # of the HTTP library, which differs between versions of huggingface_hub
        try:
            huggingface_hub.snapshot_download(name, revision=revision or None, local_files_only=True)
        except LocalEntryNotFoundError:
            pass
        else:
            return
        raise
