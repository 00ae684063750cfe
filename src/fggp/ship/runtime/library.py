"""The C library's networks (`csrc/fggp.h`) for PyTorch's tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from ctypes import CDLL, POINTER, Structure, byref, c_char_p, c_int32, c_int64, c_void_p, cast, memmove
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fggp import native

if TYPE_CHECKING:
    from typing_extensions import Self

DTYPES = (torch.float32, torch.int64, torch.bool, torch.uint8, torch.int8)
"""The library's types, in the order of its enumeration."""
OK, OUT_OF_MEMORY, REFUSED = range(3)
_TYPES = {dtype: number for number, dtype in enumerate(DTYPES)}
# C structures are kept for inputs of the shapes that came last, so that a call only fills in addresses.
_SHAPES_KEPT = 64


class CArray(Structure):
    """`fggp_array`: a tensor's name, type, shape and elements."""

    _fields_ = (
        ("name", c_char_p),
        ("type", c_int32),
        ("rank", c_int32),
        ("shape", POINTER(c_int64)),
        ("data", c_void_p),
    )


class RefusedError(Exception):
    """The library refused a network or its inputs. The message is the library's."""


def load() -> CDLL:
    """The library for this processor, with the types of its functions.

    Raises:
        KernelsMissingError: fggp was installed without it; the message says what to do.
    """
    return declared(native.load())


def declared(library: CDLL) -> CDLL:
    """A library with the types of the functions of networks."""
    inputs_and_threads = (c_void_p, POINTER(CArray), c_int32, c_int32)
    library.fggp_build.argtypes = (c_char_p, c_int64, POINTER(CArray), c_int32, POINTER(c_void_p))
    library.fggp_load.argtypes = (c_char_p, POINTER(c_void_p))
    library.fggp_load_bytes.argtypes = (c_char_p, c_int64, POINTER(c_void_p))
    library.fggp_run.argtypes = (*inputs_and_threads, POINTER(POINTER(CArray)), POINTER(c_int32))
    library.fggp_profile.argtypes = (*inputs_and_threads, POINTER(c_char_p))
    library.fggp_free.argtypes = (c_void_p,)
    for name in ("fggp_error", "fggp_describe"):
        function = getattr(library, name)
        function.argtypes, function.restype = (c_void_p,), c_char_p
    return library


class Network:
    """A network that the library holds. It may be used by one thread at a time.

    Args:
        library: what `declared` returned.
        handle: what one of its functions made.
        status: what that function returned.

    Raises:
        RefusedError: the library refused it.
        MemoryError: memory ran out.
    """

    def __init__(self, library: CDLL, handle: c_void_p, status: int) -> None:
        self._library, self._handle = library, handle
        self._arrays: dict[tuple[Any, ...], tuple[Any, list[Any]]] = {}
        self._check(status)

    @classmethod
    def build(cls, description: Mapping[str, Any] | bytes, tensors: Mapping[str, Tensor], library: CDLL) -> Self:
        """A network of a description.

        Args:
            description: as docs/network-file.md defines it, or its JSON.
            tensors: those that it names, of `DTYPES`. They are copied.
            library: what `declared` returned.

        Raises:
            RefusedError: the library cannot run it.
            MemoryError: memory ran out.
        """
        text = description if isinstance(description, bytes) else json.dumps(description).encode()
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        arrays, kept = _structures([name.encode() for name in contiguous], list(contiguous.values()))
        for array, tensor in zip(arrays, contiguous.values(), strict=True):
            array.data = tensor.data_ptr()
        handle = c_void_p()
        status = library.fggp_build(text, len(text), arrays, len(arrays), byref(handle))
        del contiguous, kept
        return cls(library, handle, status)

    @property
    def description(self) -> dict[str, Any]:
        """Its inputs, outputs and metadata, as `fggp_describe` gives them."""
        described: dict[str, Any] = json.loads(self._library.fggp_describe(self._handle))
        return described

    def run(self, inputs: Mapping[bytes, Tensor], threads: int) -> list[Tensor]:
        """Run it.

        Args:
            inputs: by name.
            threads: the number of threads, the caller's included.

        Returns:
            The outputs in their order, in new tensors.

        Raises:
            RefusedError: an input does not fit.
            MemoryError: memory ran out.
        """
        arrays, kept = self._given(inputs)
        outputs, count = POINTER(CArray)(), c_int32()
        status = self._library.fggp_run(self._handle, arrays, len(arrays), threads, byref(outputs), byref(count))
        del kept
        self._check(status)
        return [_tensor(outputs[i]) for i in range(count.value)]

    def profile(self, inputs: Mapping[bytes, Tensor], threads: int) -> dict[str, Any]:
        """The steps that it takes for these inputs, their times and their memory, as `fggp_profile` gives them."""
        arrays, kept = self._given(inputs)
        text = c_char_p()
        status = self._library.fggp_profile(self._handle, arrays, len(arrays), threads, byref(text))
        del kept
        self._check(status)
        assert text.value is not None
        profile: dict[str, Any] = json.loads(text.value)
        return profile

    def close(self) -> None:
        """Free it."""
        self._library.fggp_free(self._handle)
        self._handle = c_void_p()

    def _given(self, inputs: Mapping[bytes, Tensor]) -> tuple[Any, list[Tensor]]:
        """C structures of inputs, and the tensors that must live as long as they."""
        tensors = [x.resolve_neg().contiguous() for x in inputs.values()]
        key = tuple((name, x.dtype, x.shape) for name, x in zip(inputs, tensors, strict=True))
        known = self._arrays.get(key)
        if known is None:
            if len(self._arrays) == _SHAPES_KEPT:
                self._arrays.clear()
            known = self._arrays[key] = _structures(list(inputs), tensors)
        for array, x in zip(known[0], tensors, strict=True):
            array.data = x.data_ptr()
        return known[0], tensors

    def _check(self, status: int) -> None:
        if status == REFUSED:
            raise RefusedError(self._library.fggp_error(self._handle).decode())
        if status != OK:
            raise MemoryError(self._library.fggp_error(self._handle).decode())

    def __del__(self) -> None:
        self.close()


def _structures(names: Sequence[bytes], tensors: Sequence[Tensor]) -> tuple[Any, list[Any]]:
    """C structures of tensors, without addresses, and the arrays that must live as long as they."""
    arrays = (CArray * len(tensors))()
    shapes = [(c_int64 * x.dim())(*x.shape) for x in tensors]
    for array, name, x, shape in zip(arrays, names, tensors, shapes, strict=True):
        array.name, array.type, array.rank = name, _TYPES[x.dtype], x.dim()
        array.shape = cast(shape, POINTER(c_int64))
    return arrays, shapes


def _tensor(array: CArray) -> Tensor:
    """A copy of an output."""
    tensor = torch.empty(array.shape[: array.rank], dtype=DTYPES[array.type])
    memmove(tensor.data_ptr(), array.data, tensor.nbytes)
    return tensor
