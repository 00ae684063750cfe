"""The C++ kernels of training: csrc/training/training.h in Python's words."""

from __future__ import annotations

from ctypes import CDLL, POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from functools import cache
from typing import Any

import torch

from fggp import native

TYPE_CODES = {torch.float32: 0, torch.bfloat16: 1}
"""The types of activations, and what csrc/fggp.h calls them."""


class Convolved(Structure):
    """`fggp_convolved`."""

    _fields_ = (
        ("out_channels", c_int32),
        ("in_channels", c_int32),
        *((name, c_int32 * 2) for name in ("size", "kernel", "stride", "padding", "dilation")),
        ("weight_strides", c_int64 * 4),
    )


class Norm(Structure):
    """`fggp_batch_norm`."""

    _fields_ = (
        ("channels", c_int64),
        ("count", c_int64),
        ("epsilon", c_float),
        ("weight", c_void_p),
        ("bias", c_void_p),
    )


@cache
def kernels() -> CDLL:
    """The library of `fggp.native`, which knows the types of these functions' arguments.

    Raises:
        KernelsMissingError: fggp was installed without its C++ kernels.
    """
    library = native.load()
    numbers = [c_int32, c_int64, c_int32]  # type, images, threads
    arguments: dict[str, list[Any]] = {
        "products_make": [POINTER(Convolved), c_void_p, POINTER(c_void_p)],
        "products_forward": [c_void_p, c_void_p, c_void_p, c_void_p, *numbers, c_void_p],
        "products_input_gradient": [c_void_p, c_void_p, c_void_p, *numbers, c_void_p],
        "products_weight_gradient": [c_void_p, c_void_p, c_void_p, *numbers, c_void_p],
        "batch_norm_forward": [POINTER(Norm), c_void_p, c_int32, c_int32, *[c_void_p] * 3],
        "batch_norm_backward": [POINTER(Norm), c_void_p, c_void_p, c_int32, *[c_void_p] * 2, c_int32, *[c_void_p] * 3],
    }
    for name, types in arguments.items():
        function = library[f"fggp_{name}"]
        function.argtypes, function.errcheck = types, native.raise_if_failed
        setattr(library, f"fggp_{name}", function)
    library.fggp_products_free.argtypes, library.fggp_products_free.restype = [c_void_p], None
    return library
