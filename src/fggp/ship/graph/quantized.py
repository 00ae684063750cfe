"""Operations on whole numbers of 8 bits, what these stand for, and how PyTorch computes the operations."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fggp.ship.graph.activations import activated
from fggp.ship.graph.operations import Activation, Op, Pair, Product


@dataclass(frozen=True)
class Quantization:
    """Numbers as whole ones from 0 to 255 (uint8): q stands for scale · (q − zero).

    Args:
        scale: positive, exact in float32.
        zero: what stands for 0.
    """

    scale: float
    zero: int

    def __str__(self) -> str:
        return f"{self.scale:.3g}·(q − {self.zero})"


@dataclass(frozen=True, eq=False)
class QuantizedProduct(Product):
    """A product of whole numbers: acc = Σ weight · (x − zero) exactly, then in float32 acc · scale + bias, + residual,
    activation, and uint8 if ``to`` is given. Each step is rounded to float32.

    Args:
        inputs: (x,) or (x, residual), both uint8.
        weight: int8.
        scale: float32 [O]: the weight's for each output channel, times that of x.
        of: what x stands for.
        residual_of: what the residual stands for; None: there is none.
        to: what the output stands for; None: it is float32.
        activation: a clamp, or none.
    """

    scale: Tensor
    of: Quantization
    residual_of: Quantization | None
    to: Quantization | None
    activation: Activation | None


@dataclass(frozen=True, eq=False)
class QuantizedConv2d(QuantizedProduct):
    """A convolution of uint8 images [N, C, H, W]."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int


@dataclass(frozen=True, eq=False)
class QuantizedLinear(QuantizedProduct):
    """A linear layer over the last dimension of x."""


@dataclass(frozen=True, eq=False)
class Quantize(Op):
    """float32 as uint8: x · (1 / scale), rounded to the nearest whole number (halves to even), plus zero, within
    0 … 255. The inverse is rounded to float32, and so is the product."""

    to: Quantization


@dataclass(frozen=True, eq=False)
class Dequantize(Op):
    """uint8 as the float32 that it stands for."""

    of: Quantization


@dataclass(frozen=True, eq=False)
class QuantizedAdd(Op):
    """The sum of two uint8 values of the same shape, then an activation (a clamp, or none), as uint8."""

    of: tuple[Quantization, Quantization]
    to: Quantization
    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class QuantizedMean(Op):
    """The means over H and W of uint8 [N, C, H, W], as float32 [N, C, 1, 1]."""

    of: Quantization


OPERATIONS = (Quantize, Dequantize, QuantizedProduct, QuantizedAdd, QuantizedMean)
"""All of them. Maximum pools, flattenings and concatenations are the same for whole numbers as for floats."""


def compute(op: Op, x: Tensor, *more: Tensor) -> Tensor:
    """An operation on whole numbers, with the same results as the kernels. Sums of products are exact in float64."""
    channel: tuple[int, ...]
    match op:
        case Quantize():
            return quantize(x, op.to)
        case Dequantize():
            return dequantize(x, op.of)
        case QuantizedAdd():
            a, b = op.of
            return quantize(activated(dequantize(x, a) + dequantize(more[0], b), op.activation), op.to)
        case QuantizedMean():
            total = (x.long() - op.of.zero).sum((2, 3), keepdim=True)
            return total.float() * (torch.tensor(op.of.scale) / torch.tensor(float(x.shape[2] * x.shape[3])))
        case QuantizedConv2d():
            given, weight = x.double() - op.of.zero, op.weight.double()
            total = F.conv2d(given, weight, None, op.stride, op.padding, op.dilation, op.groups)
            channel = (-1, 1, 1)
        case QuantizedLinear():
            total, channel = F.linear(x.double() - op.of.zero, op.weight.double()), (-1,)
        case _:
            raise NotImplementedError(f"no PyTorch equivalent is known for an operation of type {type(op).__name__}")
    y = total.float() * op.scale.view(channel)
    y = y + (0 if op.bias is None else op.bias.view(channel))
    if op.residual_of is not None:
        y = y + dequantize(more[0], op.residual_of)
    y = activated(y, op.activation)
    return y if op.to is None else quantize(y, op.to)


def quantize(x: Tensor, to: Quantization) -> Tensor:
    """float32 as uint8."""
    scaled = x * (1 / torch.tensor(to.scale))
    return (scaled.clamp(-to.zero, 255 - to.zero).nan_to_num(-to.zero).round() + to.zero).to(torch.uint8)


def dequantize(x: Tensor, of: Quantization) -> Tensor:
    """uint8 as the float32 that it stands for."""
    return (x.int() - of.zero).float() * torch.tensor(of.scale)
