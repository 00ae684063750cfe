"""Layers that compute in floats what they would with whole numbers, and let gradients through."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fggp.ship.graph.quantized import Quantization
from fggp.ship.quantize.ranges import LEVELS
from fggp.ship.quantize.rewrite import WEIGHT_LEVELS, weight_scale


class RoundedConv2d(nn.Conv2d):
    """A convolution whose input and weight are rounded."""

    fggp_input: Quantization

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of a batch [n, c, h, w]."""
        y: Tensor = self._conv_forward(rounded(input, self.fggp_input), rounded_weight(self.weight), self.bias)
        return y


class RoundedLinear(nn.Linear):
    """A linear layer whose input and weight are rounded."""

    fggp_input: Quantization

    def forward(self, input: Tensor) -> Tensor:
        """Return the products of a batch [n, …, c]."""
        return nn.functional.linear(rounded(input, self.fggp_input), rounded_weight(self.weight), self.bias)


ROUNDED: dict[type[nn.Module], type[RoundedConv2d] | type[RoundedLinear]] = {
    nn.Conv2d: RoundedConv2d,
    nn.Linear: RoundedLinear,
}
"""The class that a layer gets. Classes derived from these may compute something else, and are not known here."""


def rounded(x: Tensor, to: Quantization) -> Tensor:
    """The nearest that whole numbers stand for. The gradient is x's where x is in their range, and else 0."""
    return torch.fake_quantize_per_tensor_affine(x.float(), to.scale, to.zero, 0, LEVELS)


def rounded_weight(weight: Tensor) -> Tensor:
    """A weight as int8 has it, with the scales of `quantized_weight`. Zeros stay zeros; gradients pass unchanged.

    A batch norm after the layer multiplies a channel's weights and its scale alike, so it need not be folded before.
    """
    scale = weight_scale(weight.detach())
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scale, zeros, 0, -WEIGHT_LEVELS, WEIGHT_LEVELS)
