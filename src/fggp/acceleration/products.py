"""The three products of a sparse layer in the C++ kernels, and their autograd functions."""

from __future__ import annotations

from ctypes import byref, c_void_p
from dataclasses import dataclass
from typing import Any
from weakref import finalize

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fggp.acceleration.kernels import TYPE_CODES, Convolved, kernels
from fggp.acceleration.layout import empty_images_last, images_last, rows_of_channels


@dataclass(frozen=True)
class Window:
    """How a convolution moves over an image, in rows and columns. A linear layer sees single pixels."""

    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    def output_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of the output for an input of this size."""
        spans = zip(size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in spans)
        return rows, columns


class Products:
    """The products of one layer with one mask, for inputs of one size.

    Args:
        mask: bool, of the weight's shape ([o, c, h, w] or [o, c]) and memory layout; it is read once.
        window: the convolution's; None: a linear layer.
        size: rows and columns of a convolution's input.

    Attributes:
        vectors: whether batches are of vectors, [n, …, c], and not of images, [n, c, h, w].
    """

    def __init__(self, mask: Tensor, window: Window | None, size: tuple[int, int] = (1, 1)) -> None:
        self.vectors = window is None
        window = window or Window()
        self.out_size = window.output_size(size)
        self.channels = mask.shape[0]
        strides = mask.stride() if mask.dim() == 4 else (*mask.stride(), 0, 0)
        layer = Convolved(
            self.channels, mask.shape[1], size, window.kernel, window.stride, window.padding, window.dilation, strides
        )
        self._library, self._made = kernels(), c_void_p()
        self._library.fggp_products_make(byref(layer), mask.data_ptr(), byref(self._made))
        finalize(self, self._library.fggp_products_free, self._made)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the layer's output for a batch x with its images last."""
        shape = (*x.shape[:-1], self.channels) if self.vectors else (len(x), self.channels, *self.out_size)
        y = empty_images_last(shape, x, self.vectors)
        given = weight.data_ptr(), None if bias is None else bias.data_ptr(), x.data_ptr()
        self._library.fggp_products_forward(self._made, *given, *self._how(x), y.data_ptr())
        return y

    def input_gradient(self, dy: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of the input x for that of the output, dy; all have their images last."""
        dx = empty_images_last(x.shape, x, self.vectors)
        given = weight.data_ptr(), dy.data_ptr()
        self._library.fggp_products_input_gradient(self._made, *given, *self._how(x), dx.data_ptr())
        return dx

    def weight_gradient(self, dy: Tensor, weight: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of the weight, zero where it is pruned."""
        dw = torch.zeros_like(weight)
        self._library.fggp_products_weight_gradient(
            self._made, x.data_ptr(), dy.data_ptr(), *self._how(x), dw.data_ptr()
        )
        return dw

    def _how(self, x: Tensor) -> tuple[int, int, int]:
        images = x[..., 0].numel() if self.vectors else len(x)
        return TYPE_CODES[x.dtype], images, torch.get_num_threads()


class Product(torch.autograd.Function):
    """A layer's output; the gradients of pruned weights are zero."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, products: Products) -> Tensor:
        """Compute the output of a batch x, [n, c, h, w] or [n, …, c], float32 or bfloat16; the rest is float32."""
        x = images_last(x, products.vectors)
        ctx.products = products
        ctx.save_for_backward(x, weight)
        return products.forward(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Compute those gradients that are needed."""
        x, weight = ctx.saved_tensors
        needs, products = ctx.needs_input_grad, ctx.products
        dy = images_last(dy.to(x.dtype), products.vectors)
        dx = products.input_gradient(dy, weight, x) if needs[0] else None
        dw = products.weight_gradient(dy, weight, x) if needs[1] else None
        db = (
            rows_of_channels(dy, products.vectors).reshape(products.channels, -1).sum(1, dtype=torch.float32)
            if needs[2]
            else None
        )
        return dx, dw, db, None
