"""The networks that a benchmark measures: a dense one, and pruned ones of the same architecture."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from fggp.lab.base.errors import UsageError
from fggp.lab.bench.settings import BenchSettings
from fggp.lab.export.export import dense_bytes, small_bytes
from fggp.lab.export.trained import Network, load_network, square, weights, weights_left
from fggp.lab.training import models

DEFAULT_SPARSITIES = (0.9, 0.95, 0.98)
IMAGE_SIDES = {"digits-cnn": 8, "resnet20": 32, "resnet50": 32, "vgg19": 32}
"""Sides of the images that the lab's own networks are made for; torchvision's and timm's are mostly for 224."""


@dataclass(frozen=True)
class Variant:
    """One of the networks.

    Attributes:
        name: dense, or how sparse it is.
        model: the network.
        nonzero: prunable weights that are not zero.
        weights: all prunable weights.
        bytes: sizes of its files: dense, small, small_bf16, and those that engines read, onnx and network.
    """

    name: str
    model: nn.Module
    nonzero: int
    weights: int
    bytes: dict[str, int]


def make_variants(settings: BenchSettings) -> tuple[Network, list[Variant]]:
    """Return the network to measure, and its variants, the dense one first.

    Raises:
        UsageError: the source cannot be read, or it does not fit the options.
    """
    if Path(settings.source).is_dir():
        if settings.sparsity is not None:
            given = " ".join(map(str, settings.sparsity))
            raise UsageError(f"sparsity is {given!r}; it must be left out for a run, which has its own")
        if settings.blocks != 1:
            raise UsageError(f"blocks is {settings.blocks}; it must be left out for a run, whose weights are pruned")
        network = load_network(Path(settings.source), image_size=settings.image_size)
        if network.image_size is None:
            raise UsageError(f"{settings.source} does not tell the size of its images; add --image-size PIXELS")
        nonzero, total = weights_left(network.model)
        pruned = {} if nonzero == total else {1 - nonzero / total: network.model}
        dense = refilled(network.model) if pruned else network.model
    else:
        network = _untrained(settings.source, settings.image_size)
        dense = network.model
        pruned = {s: magnitude_pruned(dense, s, settings.blocks) for s in settings.sparsity or DEFAULT_SPARSITIES}
    try:
        with torch.no_grad():
            dense(network.images(2))
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = "×".join(map(str, network.images(1).shape[1:]))
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"{network.name!r} cannot take images of {shape}, choose another --image-size: {reason}"
        ) from error
    how = f"sparse, blocks of {settings.blocks}" if settings.blocks > 1 else "sparse"
    named = {"dense": dense, **{f"{100 * float(f'{s:.4g}'):.4g} % {how}": model for s, model in pruned.items()}}
    return network, [Variant(name, model, *weights_left(model), _file_sizes(model)) for name, model in named.items()]


def _file_sizes(model: nn.Module) -> dict[str, int]:
    small_bf16 = small_bytes(model, torch.bfloat16)
    return {"dense": dense_bytes(model), "small": small_bytes(model), "small_bf16": small_bf16}


def _untrained(name: str, image_size: tuple[int, ...] | None) -> Network:
    channels = 1 if name == "digits-cnn" else 3
    torch.manual_seed(0)
    try:
        model = models.create(name, classes=10 if name in models.OURS else 1000, in_channels=channels)
    except UsageError as error:
        raise UsageError(f"source is {name!r}, which is no folder; as the name of a network: {error}") from error
    side = IMAGE_SIDES.get(name, 224)
    return Network(with_random_norms(model).eval(), name, name, channels, square(image_size) or (side, side))


@torch.no_grad()
def with_random_norms(model: nn.Module) -> nn.Module:
    """Give batch norms random statistics and weights, as training would: new ones are the identity."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            if module.affine:
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.1, generator=generator)
    return model


@torch.no_grad()
def magnitude_pruned(model: nn.Module, sparsity: float, blocks: int = 1) -> nn.Module:
    """Return a copy in which the smallest weights of each layer, this share of them, are zero.

    With blocks, whole ones are: so many consecutive input channels at one place of the kernel. The last block of a
    layer's channels may be smaller.
    """
    model = copy.deepcopy(model)
    for weight in weights(model):
        last = weight.movedim(1, -1)
        padded = F.pad(last, (0, -last.shape[-1] % blocks))
        padded = padded.view(*last.shape[:-1], -1, blocks)
        scores = padded.abs().sum(-1)
        kept = torch.ones_like(scores, dtype=torch.bool)
        kept.view(-1)[scores.reshape(-1).topk(round(sparsity * scores.numel()), largest=False).indices] = False
        mask = kept.repeat_interleave(blocks, -1)[..., : last.shape[-1]]
        weight.masked_fill_(~mask.movedim(-1, 1), 0)  # a product would leave -0, which files store
    return model


@torch.no_grad()
def refilled(model: nn.Module) -> nn.Module:
    """Return a copy with random values in place of zeros, scaled to keep the size of the layer's output."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for weight in weights(model):
        zero = weight == 0
        kept = weight[~zero]
        size = float(kept.square().mean().sqrt()) if len(kept) else 0.01
        # More terms add up to an output of the same size if each is smaller.
        size *= (len(kept) / weight.numel()) ** 0.5 if len(kept) else 1.0
        weight[zero] = size * torch.randn(int(zero.sum()), generator=generator)
    return model
