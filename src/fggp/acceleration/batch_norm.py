"""Batch norm by the statistics of a batch whose images are last in memory, in the C++ kernels."""

from __future__ import annotations

from ctypes import byref
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fggp.acceleration.kernels import TYPE_CODES, Norm, kernels
from fggp.acceleration.layout import empty_images_last, images_last


class BatchNorm(torch.autograd.Function):
    """Images, normalised; and the mean and the variance of each channel, without a correction of bias."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Normalise x, [n, c, h, w] in float32 or bfloat16, its images last; the rest is float32."""
        y = empty_images_last(x.shape, x)
        mean, variance = (x.new_empty(x.shape[1], dtype=torch.float32) for _ in range(2))
        kernels().fggp_batch_norm_forward(
            byref(_norm_of(x, weight, bias, eps)), x.data_ptr(), TYPE_CODES[x.dtype], torch.get_num_threads(),
            y.data_ptr(), mean.data_ptr(), variance.data_ptr(),
        )  # fmt: skip
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, _mean: None, _variance: None) -> tuple[Tensor | None, ...]:
        """Compute those gradients that are needed."""
        x, weight, mean, variance = ctx.saved_tensors
        dy = images_last(dy.to(x.dtype))
        like = empty_images_last(x.shape, x), torch.empty_like(mean), torch.empty_like(mean)
        gradients = [t if needed else None for t, needed in zip(like, ctx.needs_input_grad, strict=False)]
        kernels().fggp_batch_norm_backward(
            byref(_norm_of(x, weight, None, ctx.eps)), x.data_ptr(), dy.data_ptr(), TYPE_CODES[x.dtype],
            mean.data_ptr(), variance.data_ptr(), torch.get_num_threads(), *map(_address, gradients),
        )  # fmt: skip
        return *gradients, None


def _norm_of(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Norm:
    channels = x.shape[1]
    return Norm(channels, x.numel() // channels, eps, _address(weight), _address(bias))


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
