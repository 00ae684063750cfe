"""Passes over weights in the C++ kernels: those of `fggp.selection.passes`, zeroing, and a test for NaN and inf.

For every pass there are torch operations that do the same, for weights and scores that the kernels do not support.
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
from fggp.selection.bracket import Counts
from fggp.weights.layers import Layer

_TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
_QUANTITY_CODES = {Quantity.WEIGHT: 0, Quantity.GRADIENT: 1, Quantity.PRODUCT: 2}

# The bits of the exponent: infinities and NaN have ones in all of them.
_EXPONENT_BITS = {
    torch.float16: 0x7C00,
    torch.bfloat16: 0x7F80,
    torch.float32: 0x7F80_0000,
    torch.float64: 0x7FF0_0000_0000_0000,
}

MIN_BUFFER_SIZE = 1 << 17
"""The least number of scores that a buffer for gathered scores holds; a sixteenth of the weights if that is more."""


class _LayerStruct(Structure):
    """`fggp_layer` in csrc/fggp.h."""

    _fields_ = (("weight", c_void_p), ("grad", c_void_p), ("marks", c_void_p), ("count", c_int64), ("type", c_int64))


class _ScoreStruct(Structure):
    """`fggp_score` in csrc/fggp.h."""

    _fields_ = (("quantity", c_int32), ("negated", c_int32))


class _CountsStruct(Structure):
    """`fggp_counts` in csrc/fggp.h."""

    _fields_ = (("below_a", c_int64), ("at_a", c_int64), ("inside", c_int64), ("at_b", c_int64))


class _MaskedStruct(Structure):
    """`fggp_masked` in csrc/fggp.h."""

    _fields_ = (("data", c_void_p), ("mask", c_void_p), ("count", c_int64), ("bytes", c_int64))


class _NumbersStruct(Structure):
    """`fggp_numbers` in csrc/fggp.h."""

    _fields_ = (("data", c_void_p), ("count", c_int64), ("bytes", c_int64), ("exponent", c_uint64))


def supports(layers: Sequence[Layer], score: Score) -> bool:
    """Whether the kernels are installed and can read these layers (on the CPU, float32 or bfloat16) and this score."""
    if score.formula is None:
        return False
    reads_gradient = score.formula.quantity is not Quantity.WEIGHT
    return all(_can_read(layer, reads_gradient) for layer in layers) and _kernels_installed()


def count_and_gather(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, eligible_mark: int, a: float, b: float
) -> tuple[Counts, Tensor]:
    """Count the scores around a bracket and gather those inside; NaN is not counted.

    Args:
        layers: the weights and gradients; supported.
        marks: uint8 [n] for each layer.
        score: what the weights are ranked by; supported.
        eligible_mark: the mark of the weights that are ranked.
        a: the bracket's lower end, a float32; it may be −inf.
        b: its upper end, a float32 not below a; it may be inf.

    Returns:
        The counts, and the scores strictly inside, float32 [inside], in any order.
    """
    c_score, c_layers = _as_structs(layers, marks, score)
    total = sum(map(len, layers))
    size = min(total, max(MIN_BUFFER_SIZE, total // 16))
    while True:
        inside, counts = torch.empty(size, dtype=torch.float32), _CountsStruct()
        _library().fggp_survey(
            c_layers,
            len(layers),
            c_score,
            eligible_mark,
            a,
            b,
            inside.data_ptr(),
            size,
            torch.get_num_threads(),
            byref(counts),
        )
        if counts.inside <= size:
            return Counts(counts.below_a, counts.at_a, counts.inside, counts.at_b), inside[: counts.inside]
        size = counts.inside


def sample_scores(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, eligible_mark: int, share: float
) -> Tensor:
    """Draw a sample of the scores, NaN left out.

    Args:
        layers: the weights and gradients; supported.
        marks: uint8 [n] for each layer.
        score: what the weights are ranked by; supported.
        eligible_mark: the mark of the weights that are ranked.
        share: of each layer, ⌈share·n⌉ weights are read, spread evenly; those with another mark are left out.

    Returns:
        float32 [k], in any order.
    """
    c_score, c_layers = _as_structs(layers, marks, score)
    values = torch.empty(sum(math.ceil(share * len(layer)) for layer in layers), dtype=torch.float32)
    drawn = c_int64()
    _library().fggp_draw(
        c_layers, len(layers), c_score, eligible_mark, share, values.data_ptr(), torch.get_num_threads(), byref(drawn)
    )
    return values[: drawn.value]


def apply_threshold(
    layers: Sequence[Layer], marks: Sequence[Tensor], score: Score, eligible_mark: int, threshold: float, equal: int
) -> None:
    """Set the mark to SELECTED for scores below a threshold, and to EXCLUDED for scores above it and for NaN.

    Weights with another mark than ``eligible_mark`` keep theirs.

    Args:
        layers: the weights and gradients; supported.
        marks: uint8 [n] for each layer; changed in place.
        score: what the weights are ranked by; supported.
        eligible_mark: the mark of the weights to decide on.
        threshold: a score, a float32.
        equal: the mark for weights whose score equals the threshold.
    """
    c_score, c_layers = _as_structs(layers, marks, score)
    _library().fggp_cut(c_layers, len(layers), c_score, eligible_mark, threshold, equal, torch.get_num_threads())


def zero(tensors: Sequence[Tensor], masks: Sequence[Tensor]) -> list[int]:
    """Set tensors to exactly +0 where their mask is False, in place, if the kernels can.

    Args:
        tensors: floating-point tensors.
        masks: a bool tensor of the same shape for each tensor.

    Returns:
        The indices of the tensors that are unchanged: they are not on the CPU, or their memory layout is not dense or
        not that of their mask.
    """
    structs, unchanged = [], []
    for i, (tensor, mask) in enumerate(zip(tensors, masks, strict=True)):
        if _has_layout_of_mask(tensor, mask) and _kernels_installed():
            structs.append(_MaskedStruct(tensor.data_ptr(), mask.data_ptr(), tensor.numel(), tensor.element_size()))
        else:
            unchanged.append(i)
    if structs:
        _library().fggp_zero((_MaskedStruct * len(structs))(*structs), len(structs), torch.get_num_threads())
    return unchanged


def all_finite(tensors: Sequence[Tensor]) -> bool | None:
    """Whether no element of some tensors is infinite or NaN; None if the kernels cannot read them all.

    Args:
        tensors: of any dtype, on any device.
    """
    if not all(_is_dense_on_cpu(t) and t.dtype in _EXPONENT_BITS for t in tensors) or not _kernels_installed():
        return None
    structs = [_NumbersStruct(t.data_ptr(), t.numel(), t.element_size(), _EXPONENT_BITS[t.dtype]) for t in tensors]
    finite = c_int32()
    _library().fggp_finite(
        (_NumbersStruct * len(structs))(*structs), len(structs), torch.get_num_threads(), byref(finite)
    )
    return bool(finite)


def _kernels_installed() -> bool:
    try:
        native.load()
    except native.KernelsMissingError:
        return False
    return True


def _has_layout_of_mask(tensor: Tensor, mask: Tensor) -> bool:
    """Whether a tensor and its mask are dense on the CPU, with their elements in the same order in memory."""
    return (
        _is_dense_on_cpu(tensor)
        and type(mask) is Tensor
        and mask.device.type == "cpu"
        and mask.dtype == torch.bool
        and mask.shape == tensor.shape
        and all(
            size == 1 or own == other
            for size, own, other in zip(tensor.shape, tensor.stride(), mask.stride(), strict=True)
        )
    )


def _is_dense_on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor's elements fill a piece of this machine's memory without gaps, its dimensions in any order."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
        return False
    if tensor.layout != torch.strided or tensor.is_contiguous():
        return tensor.layout == torch.strided
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _can_read(layer: Layer, reads_gradient: bool) -> bool:
    """Whether the kernels can read a layer's weights and, if the score reads them, its gradients."""
    if layer.dtype != torch.float32 or not _is_contiguous_on_cpu(layer.weight) or layer.weight.dtype not in _TYPE_CODES:
        return False
    if not reads_gradient or layer.grad is None:
        return True
    return layer.grad_scale == 1 and _is_contiguous_on_cpu(layer.grad) and layer.grad.dtype == layer.weight.dtype


def _is_contiguous_on_cpu(tensor: Tensor) -> bool:
    """Whether a tensor's elements are consecutive in this machine's memory."""
    # A subclass may keep its elements anywhere.
    return type(tensor) is Tensor and tensor.device.type == "cpu" and tensor.is_contiguous()


def _as_structs(layers: Sequence[Layer], marks: Sequence[Tensor], score: Score) -> tuple[_ScoreStruct, Any]:
    """The score and an array of the layers for C; the tensors must outlive them.

    Raises:
        ValueError: marks have another dtype, shape or layout than the kernels expect, which would write out of bounds.
    """
    assert score.formula is not None
    quantity = score.formula.quantity
    structs: list[Any] = []
    for layer, m in zip(layers, marks, strict=True):
        if m.dtype != torch.uint8 or m.shape != layer.weight.shape or not _is_contiguous_on_cpu(m):
            raise ValueError(
                f"marks of {layer.name!r} must be contiguous uint8 [{len(layer)}] on the CPU, "
                f"not {m.dtype} {list(m.shape)} on {m.device}"
            )
        grad = None if layer.grad is None or quantity is Quantity.WEIGHT else layer.grad.data_ptr()
        structs.append((layer.weight.data_ptr(), grad, m.data_ptr(), len(layer), _TYPE_CODES[layer.weight.dtype]))
    return _ScoreStruct(_QUANTITY_CODES[quantity], score.formula.negated), (_LayerStruct * len(layers))(*structs)


def _library() -> CDLL:
    return _with_types(native.load())


@cache
def _with_types(library: CDLL) -> CDLL:
    """The library, with the argument types of the functions that this module calls."""
    common = (POINTER(_LayerStruct), c_int32, _ScoreStruct, c_int32, c_float)
    library.fggp_survey.argtypes = (*common, c_float, c_void_p, c_int64, c_int32, POINTER(_CountsStruct))
    library.fggp_cut.argtypes = (*common, c_int32, c_int32)
    library.fggp_draw.argtypes = (*common[:4], c_double, c_void_p, c_int32, POINTER(c_int64))
    library.fggp_zero.argtypes = (POINTER(_MaskedStruct), c_int32, c_int32)
    library.fggp_finite.argtypes = (POINTER(_NumbersStruct), c_int32, c_int32, POINTER(c_int32))
    for name in ("survey", "draw", "cut", "zero", "finite"):
        function = getattr(library, f"fggp_{name}")
        function.errcheck = native.raise_if_failed
    return library
