"""Passes over weights in the C++ kernels: those of `fggp.selection.passes`, zeroing, and a test for infinities and NaN.

Each has a twin made of torch operations, for weights and scores that the kernels do not support.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from ctypes import CDLL, POINTER, Structure, byref, c_double, c_float, c_int32, c_int64, c_uint64, c_void_p
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fggp import native
from fggp.scores import Quantity, Score
from fggp.weights.layers import Layer

_TYPES = {torch.float32: 0, torch.bfloat16: 1}
_QUANTITIES = {Quantity.WEIGHT: 0, Quantity.GRADIENT: 1, Quantity.PRODUCT: 2}

# The bits of the exponent: all of them are ones in infinities and NaN.
_EXPONENTS = {
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float32: 0x7F80_0000,
    torch.float64: 0x7FF0_0000_0000_0000,
}

MIN_BUFFER = 1 << 17
"""So many scores there is room for at the least when a survey begins; beyond that, for a sixteenth of the weights."""


class _CLayer(Structure):
    """`fggp_layer`."""

    _fields_ = (("weight", c_void_p), ("grad", c_void_p), ("marks", c_void_p), ("count", c_int64), ("type", c_int64))


class _CScore(Structure):
    """`fggp_score`."""

    _fields_ = (("quantity", c_int32), ("negated", c_int32))


class _CCounts(Structure):
    """`fggp_counts`."""

    _fields_ = (("below_a", c_int64), ("at_a", c_int64), ("inside", c_int64), ("at_b", c_int64))


class _CMasked(Structure):
    """`fggp_masked`."""

    _fields_ = (("data", c_void_p), ("mask", c_void_p), ("count", c_int64), ("bytes", c_int64))


class _CNumbers(Structure):
    """`fggp_numbers`."""

    _fields_ = (("data", c_void_p), ("count", c_int64), ("bytes", c_int64), ("exponent", c_uint64))


def supports(layers: Sequence[Layer], score: Score) -> bool:
    """Whether the kernels are there and can make passes over these layers: on the CPU, in float32 or bfloat16."""
    if score.formula is None:
        return False
    graded = score.formula.quantity is not Quantity.WEIGHT
    if not all(_readable(layer, graded) for layer in layers):
        return False
    return _there()


def survey(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, among: int, a: float, b: float
) -> tuple[tuple[int, int, int, int], Tensor]:
    """Count and gather around a bracket; NaN is nowhere.

    Args:
        layers: the weights and gradients; supported.
        marks: of each layer, uint8 [n].
        score: what the weights are ranked by; supported.
        among: the mark of those that take part.
        a: the bracket's lower end, a float32; it may be −inf.
        b: its upper end, a float32 not below a; it may be inf.

    Returns:
        How many score less than a, just a, strictly between, and just b (for a = b, none); and the scores strictly
        between, float32, in any order.
    """
    by, described = _describe(layers, marks, score)
    total = sum(map(len, layers))
    room = min(total, max(MIN_BUFFER, total // 16))
    while True:
        inside, counts = torch.empty(room, dtype=torch.float32), _CCounts()
        _library().fggp_survey(
            described,
            len(layers),
            by,
            among,
            a,
            b,
            inside.data_ptr(),
            room,
            torch.get_num_threads(),
            byref(counts),
        )
        if counts.inside <= room:
            return (counts.below_a, counts.at_a, counts.inside, counts.at_b), inside[: counts.inside]
        room = counts.inside


def draw(layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, among: int, share: float) -> Tensor:
    """The scores of some of the weights, NaN left out.

    Args:
        layers: the weights and gradients; supported.
        marks: of each layer, uint8 [n].
        score: what the weights are ranked by; supported.
        among: the mark of those that take part.
        share: ⌈share·n⌉ weights of each layer are looked at, spread evenly.

    Returns:
        float32, in any order.
    """
    by, described = _describe(layers, marks, score)
    values = torch.empty(sum(math.ceil(share * len(layer)) for layer in layers), dtype=torch.float32)
    drawn = c_int64()
    _library().fggp_draw(
        described, len(layers), by, among, share, values.data_ptr(), torch.get_num_threads(), byref(drawn)
    )
    return values[: drawn.value]


def cut(layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, among: int, value: float, equal: int) -> None:
    """Decide on some weights: those that score less than ``value`` are in, marked 1; NaN and more is out, 0.

    Args:
        layers: the weights and gradients; supported.
        marks: of each layer, uint8 [n]; changed in place.
        score: what the weights are ranked by; supported.
        among: the mark of those to decide on.
        value: the score at the cut, a float32.
        equal: the mark for those that score just that.
    """
    by, described = _describe(layers, marks, score)
    _library().fggp_cut(described, len(layers), by, among, value, equal, torch.get_num_threads())


def zero(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> list[int]:
    """Set tensors to exactly +0 where their mask is False, in place, those that the kernels can.

    Args:
        tensors: floating-point tensors.
        masks: for each a bool tensor of its shape.

    Returns:
        Which of them are left to do: those that are not on the CPU, or lie in memory otherwise than their mask.
    """
    described, left = [], []
    for i, (tensor, mask) in enumerate(zip(tensors, masks, strict=True)):
        if _alike(tensor, mask) and _there():
            described.append(_CMasked(tensor.data_ptr(), mask.data_ptr(), tensor.numel(), tensor.element_size()))
        else:
            left.append(i)
    if described:
        _library().fggp_zero((_CMasked * len(described))(*described), len(described), torch.get_num_threads())
    return left


def finite(tensors: Sequence[Tensor]) -> bool | None:
    """Whether no number of some tensors is infinite or NaN; None where the kernels cannot tell.

    Args:
        tensors: of any dtype, on any device.
    """
    if not all(_dense(t) and t.dtype in _EXPONENTS for t in tensors) or not _there():
        return None
    described = [_CNumbers(t.data_ptr(), t.numel(), t.element_size(), _EXPONENTS[t.dtype]) for t in tensors]
    yes = c_int32()
    _library().fggp_finite((_CNumbers * len(described))(*described), len(tensors), torch.get_num_threads(), byref(yes))
    return bool(yes)


def _there() -> bool:
    try:
        native.load()
    except native.KernelsMissingError:
        return False
    return True


def _alike(tensor: Tensor, mask: Tensor) -> bool:
    """Whether a tensor's elements lie in memory as its mask's do, without gaps."""
    return (
        _dense(tensor)
        and type(mask) is Tensor
        and mask.device.type == "cpu"
        and mask.dtype == torch.bool
        and mask.shape == tensor.shape
        and all(
            size == 1 or own == other
            for size, own, other in zip(tensor.shape, tensor.stride(), mask.stride(), strict=True)
        )
    )


def _dense(tensor: Tensor) -> bool:
    """Whether a tensor lies in this machine's memory without gaps, its dimensions in any order."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        return False
    if tensor.layout != torch.strided or tensor.is_contiguous():
        return tensor.layout == torch.strided
    stride = 1
    for step, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if step != stride:
                return False
            stride *= size
    return True


def _readable(layer: Layer, graded: bool) -> bool:
    """Whether the kernels can read a layer's weights and, if they are ranked by them, its gradients."""
    if layer.dtype != torch.float32 or not _plain(layer.weight) or layer.weight.dtype not in _TYPES:
        return False
    if not graded or layer.grad is None:
        return True
    return layer.grad_scale == 1 and _plain(layer.grad) and layer.grad.dtype == layer.weight.dtype


def _plain(tensor: Tensor) -> bool:
    """Whether a tensor's elements lie one after the other in this machine's memory."""
    # Subclasses may keep anything else there.
    return type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.is_contiguous()


def _describe(layers: Sequence[Layer], marks: Sequence[Tensor], score: Score) -> tuple[_CScore, Any]:
    """The score and the layers in C; the tensors must outlive them.

    Raises:
        ValueError: marks are not what the kernels take them for: they would write where nothing is.
    """
    assert score.formula is not None
    quantity = score.formula.quantity
    described: list[Any] = []
    for layer, m in zip(layers, marks, strict=True):
        if m.dtype != torch.uint8 or m.shape != layer.weight.shape or not _plain(m):
            raise ValueError(
                f"marks of {layer.name!r} must be uint8 [{len(layer)}] on the CPU, "
                f"not {m.dtype} {list(m.shape)} on {m.device}"
            )
        grad = None if layer.grad is None or quantity is Quantity.WEIGHT else layer.grad.data_ptr()
        described.append((layer.weight.data_ptr(), grad, m.data_ptr(), len(layer), _TYPES[layer.weight.dtype]))
    return _CScore(_QUANTITIES[quantity], score.formula.negated), (_CLayer * len(layers))(*described)


def _library() -> CDLL:
    return _declared(native.load())


@cache
def _declared(library: CDLL) -> CDLL:
    """The library with the types of the functions that are called here."""
    common = (POINTER(_CLayer), c_int32, _CScore, c_int32, c_float)
    library.fggp_survey.argtypes = (*common, c_float, c_void_p, c_int64, c_int32, POINTER(_CCounts))
    library.fggp_cut.argtypes = (*common, c_int32, c_int32)
    library.fggp_draw.argtypes = (*common[:4], c_double, c_void_p, c_int32, POINTER(c_int64))
    library.fggp_zero.argtypes = (POINTER(_CMasked), c_int32, c_int32)
    library.fggp_finite.argtypes = (POINTER(_CNumbers), c_int32, c_int32, POINTER(c_int32))
    for name in ("survey", "draw", "cut", "zero", "finite"):
        function = getattr(library, f"fggp_{name}")
        function.errcheck = native.checked
    return library
