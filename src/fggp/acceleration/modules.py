"""The classes that an accelerated model's modules have. Each computes what its base class does."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fggp.acceleration.batch_norm import BatchNorm
from fggp.acceleration.choices import Choices
from fggp.acceleration.kernels import TYPE_CODES
from fggp.acceleration.layout import is_images_last, rows_of_channels
from fggp.acceleration.products import Product, Products, Window
from fggp.graph_breaks import outside_graphs


class Layer:
    """What a convolution or linear layer needs to be computed sparsely. Copies of a module do not take it along.

    Args:
        name: its weight's.
        window: the convolution's; None: a linear layer.
        choices: say whether it is.

    Attributes:
        computes_sparsely: whether the last output was computed so.
    """

    def __init__(self, name: str, window: Window | None, choices: Choices) -> None:
        self.name, self.window, self.choices = name, window, choices
        self.computes_sparsely = False
        self._products: dict[tuple[int, int], Products] = {}

    def set_mask(self, mask: Tensor, density: float) -> None:
        """Use another mask, bool, with the memory layout of the weight, that keeps this share of weights."""
        self._mask = mask
        self._products = {}
        self.choices.set_density(self.name, density, convolution=self.window is not None)

    def forward(self, module: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor | None:
        """Return the module's output; None if it is to be computed densely."""
        y = self._forward(module, x)
        self.computes_sparsely = y is not None
        return y

    def _forward(self, module: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor | None:
        if not self._can_read(module, x):
            return None
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else x.dtype
        if dtype not in TYPE_CODES or not (autocast or dtype == torch.float32):
            return None  # without autocast, PyTorch refuses an input of another type than the weight's
        trains = module.training and torch.is_grad_enabled()
        if not self.choices.is_sparse(self.name, x, module.weight, self.window, dtype, trains):
            return None
        size = (1, 1) if self.window is None else (x.shape[2], x.shape[3])
        if size not in self._products:
            self._products[size] = Products(self._mask, self.window, size)
        y: Tensor = Product.apply(x.to(dtype), module.weight, module.bias, self._products[size])
        return y

    def _can_read(self, module: nn.Conv2d | nn.Linear, x: Tensor) -> bool:
        weight = module.weight
        return (
            type(x) is Tensor  # not what stands for one while a graph is captured
            and (x.dim() == 4 if self.window is not None else x.dim() > 0)
            and x.numel() > 0
            and x.is_cpu
            and weight.is_cpu
            and weight.dtype == torch.float32
            and (module.bias is None or module.bias.dtype == torch.float32)
            and x.is_floating_point()
            and x.shape[1 if self.window is not None else -1] == weight.shape[1]
            and weight.stride() == self._mask.stride()
        )

    def __deepcopy__(self, memo: Any) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())


class Conv2d(nn.Conv2d):
    """A convolution that skips its pruned weights."""

    fggp_layer: Layer | None

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of a batch [n, c, h, w]."""
        y = None if self.fggp_layer is None else _sparsely(self.fggp_layer, self, input)
        return super().forward(input) if y is None else y


class Linear(nn.Linear):
    """A linear layer that skips its pruned weights."""

    fggp_layer: Layer | None

    def forward(self, input: Tensor) -> Tensor:
        """Return the products of a batch [n, …, c]."""
        y = None if self.fggp_layer is None else _sparsely(self.fggp_layer, self, input)
        return super().forward(input) if y is None else y


class BatchNorm2d(nn.BatchNorm2d):
    """A batch norm that keeps images last in memory where they are."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch [n, c, h, w]."""
        if not self._can_read(input):
            return super().forward(input)
        if not self.training and self.running_mean is not None and self.running_var is not None:
            rows = rows_of_channels(input)
            kept = self.running_mean, self.running_var, self.weight, self.bias
            flat = F.batch_norm(rows.reshape(1, len(rows), -1), *kept, eps=self.eps)
            return flat.view(rows.shape).permute(3, 0, 1, 2)
        y: Tensor
        y, mean, variance = _normalised(input, self.weight, self.bias, self.eps)
        if self.training and self.track_running_stats:
            self._follow(mean, variance, input.numel() // len(mean))
        return y

    def _can_read(self, x: Tensor) -> bool:
        kept = (self.weight, self.bias, self.running_mean, self.running_var)
        return (
            type(x) is Tensor  # not what stands for one while a graph is captured
            and is_images_last(x)
            and x.is_cpu
            and x.dtype in TYPE_CODES
            and x.shape[1] == self.num_features
            and self.momentum is not None
            and all(t is None or (t.dtype == torch.float32 and t.is_cpu) for t in kept)
        )

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Bring the running statistics up to those of a batch with so many numbers in each channel."""
        assert self.momentum is not None
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        for running, new, scale in ((self.running_mean, mean, 1.0), (self.running_var, variance, count / (count - 1))):
            if running is not None:
                running.mul_(1 - self.momentum).add_(new, alpha=self.momentum * scale)


class MaxPool2d(nn.MaxPool2d):
    """A pooling that keeps images last in memory where they are."""

    def forward(self, input: Tensor) -> Any:
        """Pool a batch [n, c, h, w]."""
        if self.return_indices or not is_images_last(input):
            return super().forward(input)
        return super().forward(input.transpose(0, 1)).transpose(0, 1)  # channels_last, to PyTorch


class AvgPool2d(nn.AvgPool2d):
    """A pooling that keeps images last in memory where they are."""

    def forward(self, input: Tensor) -> Tensor:
        """Pool a batch [n, c, h, w]."""
        if not is_images_last(input):
            return super().forward(input)
        return super().forward(input.transpose(0, 1)).transpose(0, 1)  # channels_last, to PyTorch


PRODUCTS: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: Conv2d, nn.Linear: Linear}
FOLLOWERS: dict[type[nn.Module], type[nn.Module]] = {
    nn.BatchNorm2d: BatchNorm2d,
    nn.MaxPool2d: MaxPool2d,
    nn.AvgPool2d: AvgPool2d,
}
"""Modules that keep the layout of their input."""
BASES = {accelerated: base for base, accelerated in (*PRODUCTS.items(), *FOLLOWERS.items())}


def window_of(module: nn.Module) -> Window | None:
    """The window of a convolution whose products the kernels have.

    Raises:
        ValueError: they do not; the message says why.
    """
    if not isinstance(module, nn.Conv2d):
        return None
    if module.groups != 1:
        raise ValueError("groups")
    if module.padding_mode != "zeros":
        raise ValueError(f"padding_mode={module.padding_mode!r}")
    kernel, stride, dilation = ((n[0], n[1]) for n in (module.kernel_size, module.stride, module.dilation))
    padding = (0, 0)
    if module.padding == "same":
        both = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        if any(n % 2 for n in both):
            raise ValueError("padding that is not the same on both sides")
        padding = (both[0] // 2, both[1] // 2)
    elif not isinstance(module.padding, str):
        padding = (module.padding[0], module.padding[1])
    return Window(kernel, stride, padding, dilation)


def _forward(layer: Layer, module: nn.Conv2d | nn.Linear, x: Tensor) -> Tensor | None:
    return layer.forward(module, x)


_sparsely = outside_graphs(_forward)
_normalised = outside_graphs(BatchNorm.apply)
