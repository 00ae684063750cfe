"""From which density on a layer's sparse products are faster than its dense ones, measured on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from fggp.acceleration.layout import images_last
from fggp.acceleration.products import Product, Products, Window

TRIED = (0.02, 0.2)
"""Densities whose times are measured; those between and beyond are taken to lie on a line."""
MARGIN = 0.9
"""Sparse products must take this share of the dense time at most, because they may need conversions of layout."""


class Thresholds:
    """The largest density at which each kind of layer is computed sparsely.

    Kinds are told apart by the power of two above the number of images (or vectors), so that batches and texts of
    ever other lengths are not measured one by one.

    Args:
        below: the same for all layers, without measuring; None: measured for each kind when it first comes.
        measured: those that were measured before.
    """

    def __init__(self, below: float | None, measured: Mapping[str, float]) -> None:
        self.below, self.measured = below, dict(measured)

    @property
    def most(self) -> float:
        """The largest threshold that there can be."""
        return 1.0 if self.below is None else self.below

    def of(self, x: Tensor, weight: Tensor, window: Window | None, dtype: torch.dtype, may_measure: bool) -> float:
        """Return the threshold of a layer.

        Args:
            x: its input, of which only the shape is used; it has elements.
            weight: of the layer; its shape, and its layout, which is taken for that of dense activations, are used.
            window: of a convolution; None: a linear layer.
            dtype: of the activations.
            may_measure: whether there is time to measure; if not, and nothing is known, the threshold is 0.
        """
        if self.below is not None:
            return self.below
        images, size = (len(x), tuple(x.shape[2:])) if window else (x.numel() // x.shape[-1], ())
        kind = f"{1 << (images - 1).bit_length()} {size} {tuple(weight.shape)} {window} {dtype}"
        if kind not in self.measured and may_measure:
            with torch.enable_grad(), torch.autocast("cpu", enabled=False):
                self.measured[kind] = _measure(x, weight, window, dtype)
        return self.measured.get(kind, 0.0)


def _measure(x: Tensor, weight: Tensor, window: Window | None, dtype: torch.dtype) -> float:
    generator = torch.Generator().manual_seed(0)  # the user's is left alone
    x = torch.randn(x.shape, generator=generator).to(dtype)
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous(memory_format=torch.channels_last)
    given = [x.requires_grad_(), weight.detach().to(dtype).requires_grad_()]

    def densely() -> Tensor:
        if window is None:
            return F.linear(*given)
        return F.conv2d(given[0], given[1], None, window.stride, window.padding, window.dilation)

    dense = _seconds(densely, given)
    sparse = []
    given = [images_last(x.detach(), window is None).requires_grad_(), weight.detach().requires_grad_()]
    for density in TRIED:
        mask = torch.empty_like(weight, dtype=torch.bool)
        mask.copy_(torch.rand(weight.shape, generator=generator) < density)
        size = (1, 1) if window is None else (x.shape[2], x.shape[3])
        products = Products(mask, window, size)
        sparse.append(_seconds(lambda products=products: Product.apply(*given, None, products), given))  # type: ignore[misc]
    slope = max((sparse[1] - sparse[0]) / (TRIED[1] - TRIED[0]), 1e-12)
    return min(max(TRIED[0] + (MARGIN * dense - sparse[0]) / slope, 0.0), 1.0)


def _seconds(run: Callable[[], Tensor], given: list[Tensor]) -> float:
    """The shortest of three times of the product and its gradients, after one that warms up."""
    times = []
    for _ in range(4):
        start = time.perf_counter()
        y = run()
        torch.autograd.grad(y, given, torch.ones_like(y))
        times.append(time.perf_counter() - start)
    return min(times[1:])
