"""Pruned models to compile, and what the compiled ones must do."""

import torch
from torch import nn

from models import randomised


def pruned(model, density=0.1, seed=0):
    """Prune each convolution and linear layer of a model at random, to about this density."""
    generator = torch.Generator().manual_seed(seed)
    randomised(model, seed)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            weight = module.weight.data
            weight *= torch.rand(weight.shape, generator=generator) < density
            weight *= density**-0.5  # outputs neither vanish nor explode
    return model


def cnn(density=0.2):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(8, 16, 3), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)]
    return pruned(nn.Sequential(*layers), density)


def images(batch, side=10, channels=3, seed=0):
    return torch.randn(batch, channels, side, side, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_agrees(fast, model, x, tolerance=1e-4):
    args = () if isinstance(x, dict) else (x,)
    kwargs = x if isinstance(x, dict) else {}
    ours, right = fast(*args, **kwargs), model.eval()(*args, **kwargs)
    if not isinstance(right, torch.Tensor):
        assert type(ours) is type(right)
        ours, right = next(iter(ours.values())), next(iter(right.values()))
    assert ours.shape == right.shape
    assert ours.dtype == right.dtype
    assert not ours.requires_grad
    assert (ours.double() - right.double()).norm() <= tolerance * right.double().norm()


def runs(fast, *inputs):
    """What runs the steps for these inputs."""
    return {step.runs for step in fast._engine.profile(list(inputs))}
