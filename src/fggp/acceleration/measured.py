"""How long a layer's dense products take on this machine, and its sparse ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fggp.acceleration.layout import images_last
from fggp.acceleration.products import Product, Products, Window

TRIED = (0.02, 0.2)
"""Densities whose times are measured; those between and beyond are taken to lie on a line."""


class Times(NamedTuple):
    """Seconds that a layer takes, with its gradients.

    Args:
        dense: by PyTorch.
        low, high: by the sparse products at the densities in `TRIED`.
        conversion: to convert input, output and their gradients between the dense layout and images last.
    """

    dense: float
    low: float
    high: float
    conversion: float

    def sparse(self, density: float) -> float:
        """The sparse products at a density."""
        slope = max((self.high - self.low) / (TRIED[1] - TRIED[0]), 0.0)
        return max(self.low + slope * (density - TRIED[0]), 0.0)  # a steep line would reach below


@dataclass
class Measured:
    """What was measured of a model's layers.

    Args:
        times: by kind of layer and input.
        kinds: of each layer in training, by its weight's name.
    """

    times: dict[str, Times] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """The same as plain values."""
        return {"times": {kind: list(times) for kind, times in self.times.items()}, "kinds": dict(self.kinds)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what another's `state_dict` returned; an empty mapping is of one that measured nothing.

        Raises:
            ValueError, TypeError, AttributeError: the state is damaged. Nothing is changed then.
        """
        times = {str(kind): Times(*map(float, seconds)) for kind, seconds in state.get("times", {}).items()}
        kinds = {str(name): str(kind) for name, kind in state.get("kinds", {}).items()}
        if not times.keys() >= set(kinds.values()):
            raise ValueError("state is damaged: there are layers of a kind that was not measured")
        self.times, self.kinds = times, kinds


def kind_of(x: Tensor, weight: Tensor, window: Window | None, dtype: torch.dtype) -> str:
    """What the times of a layer depend on.

    Kinds are told apart by the power of two above the number of images (or vectors), so that batches and texts of ever
    other lengths are not measured one by one.

    Args:
        x: the layer's input, which has elements.
        weight: of the layer.
        window: of a convolution; None: a linear layer.
        dtype: of the activations.
    """
    images, size = (len(x), tuple(x.shape[2:])) if window else (x.numel() // x.shape[-1], ())
    return f"{1 << (images - 1).bit_length()} {size} {tuple(weight.shape)} {window} {dtype}"


def measure(x: Tensor, weight: Tensor, window: Window | None, dtype: torch.dtype) -> Times:
    """Measure a layer; for the arguments, see `kind_of`. The dense layout is taken to be that of the weight."""
    generator = torch.Generator().manual_seed(0)  # the user's is left alone
    vectors = window is None
    channels_last = weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if channels_last else torch.contiguous_format

    def densely(x: Tensor, weight: Tensor) -> Tensor:
        if window is None:
            return F.linear(x, weight)
        return F.conv2d(x, weight, None, window.stride, window.padding, window.dilation)

    with torch.enable_grad(), torch.autocast("cpu", enabled=False):
        x = torch.randn(x.shape, generator=generator).to(dtype).contiguous(memory_format=layout)
        dense = _seconds_with_gradients(densely, x, weight.to(dtype))
        sparse = []
        for density in TRIED:
            mask = torch.empty_like(weight, dtype=torch.bool)
            mask.copy_(torch.rand(weight.shape, generator=generator) < density)
            products = Products(mask, window, (1, 1) if window is None else (x.shape[2], x.shape[3]))
            sparsely = partial(_sparsely, products=products)
            sparse.append(_seconds_with_gradients(sparsely, images_last(x, vectors), weight))
        y = images_last(densely(x, weight.to(dtype)).detach(), vectors)
        conversions = _seconds(lambda: (images_last(x, vectors), y.contiguous(memory_format=layout)))
        return Times(dense, sparse[0], sparse[1], 2 * conversions)


def _sparsely(x: Tensor, weight: Tensor, products: Products) -> Tensor:
    y: Tensor = Product.apply(x, weight, None, products)
    return y


def _seconds_with_gradients(run: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor) -> float:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()

    def both_ways() -> None:
        y = run(x, weight)
        torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    return _seconds(both_ways)


def _seconds(run: Callable[[], object]) -> float:
    """The shortest of three times, after one run that warms up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:])
