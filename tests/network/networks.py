"""The library's C interface of networks, for tests: a description and tensors go in, and what it computes comes out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import CDLL, POINTER, Structure, byref, c_char_p, c_int32, c_int64, c_void_p, cast, string_at
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fggp import native

TYPES = (torch.float32, torch.int64, torch.bool)  # in the order of fggp.h's enumeration
OK, OUT_OF_MEMORY, REFUSED = range(3)


class Refused(Exception):
    """The library refused a network or its inputs; the message is the library's."""


class CArray(Structure):
    """`fggp_array`."""

    _fields_ = (
        ("name", c_char_p),
        ("type", c_int32),
        ("rank", c_int32),
        ("shape", POINTER(c_int64)),
        ("data", c_void_p),
    )


@cache
def library() -> CDLL:
    """The best build for this processor, or the one that FGGP_TEST_LIBRARY names, with the types of its functions."""
    chosen = os.environ.get("FGGP_TEST_LIBRARY")
    found = native.open_library(Path(chosen)) if chosen else native.load()
    found.fggp_build.argtypes = (c_char_p, c_int64, POINTER(CArray), c_int32, POINTER(c_void_p))
    found.fggp_load.argtypes = (c_char_p, POINTER(c_void_p))
    found.fggp_load_bytes.argtypes = (c_char_p, c_int64, POINTER(c_void_p))
    found.fggp_run.argtypes = (c_void_p, POINTER(CArray), c_int32, c_int32, POINTER(POINTER(CArray)), POINTER(c_int32))
    found.fggp_free.argtypes = (c_void_p,)
    for name in ("fggp_error", "fggp_describe"):
        getattr(found, name).argtypes = (c_void_p,)
        getattr(found, name).restype = c_char_p
    return found


def _arrays(tensors: Mapping[str, Tensor]) -> tuple[Any, list[Any]]:
    """C structures of tensors, and what must live as long as they."""
    kept: list[Any] = []
    arrays = (CArray * len(tensors))()
    for array, (name, tensor) in zip(arrays, tensors.items(), strict=True):
        tensor = tensor.contiguous()
        shape = (c_int64 * tensor.dim())(*tensor.shape)
        kept += [tensor, shape, name.encode()]
        array.name, array.type, array.rank = kept[-1], TYPES.index(tensor.dtype), tensor.dim()
        array.shape, array.data = cast(shape, POINTER(c_int64)), tensor.data_ptr()
    return arrays, kept


class Network:
    """A network that the library holds."""

    def __init__(self, handle: c_void_p, status: int) -> None:
        self._handle = handle
        if status:
            message = library().fggp_error(handle).decode() if handle else "out of memory"
            self.close()
            raise Refused(message) if status == REFUSED else MemoryError(message)

    def close(self) -> None:
        """Free it."""
        library().fggp_free(self._handle)
        self._handle = c_void_p()

    @property
    def description(self) -> dict[str, Any]:
        """What `fggp_describe` says."""
        return json.loads(library().fggp_describe(self._handle))

    def run(self, inputs: Mapping[str, Tensor], threads: int = 1) -> dict[str, Tensor]:
        """The outputs, in new tensors."""
        arrays, kept = _arrays(inputs)
        outputs, count = POINTER(CArray)(), c_int32()
        status = library().fggp_run(self._handle, arrays, len(arrays), threads, byref(outputs), byref(count))
        del kept
        if status:
            raise Refused(library().fggp_error(self._handle).decode())
        return {outputs[i].name.decode(): _tensor(outputs[i]) for i in range(count.value)}


def _tensor(array: CArray) -> Tensor:
    shape, dtype = [array.shape[i] for i in range(array.rank)], TYPES[array.type]
    size = dtype.itemsize * torch.Size(shape).numel()
    if not size:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(string_at(array.data, size)), dtype=dtype).view(shape)


def build(description: Mapping[str, Any] | bytes, tensors: Mapping[str, Tensor] | None = None) -> Network:
    """A network of a description, as docs/network-file.md defines it, and the tensors that it names.

    Raises:
        Refused: the library refuses it.
    """
    text = description if isinstance(description, bytes) else json.dumps(description).encode()
    arrays, kept = _arrays(tensors or {})
    handle = c_void_p()
    status = library().fggp_build(text, len(text), arrays, len(arrays), byref(handle))
    del kept
    return Network(handle, status)


def load(path: Path) -> Network:
    """A network of a file.

    Raises:
        Refused: the library refuses it.
    """
    handle = c_void_p()
    return Network(handle, library().fggp_load(os.fsencode(path), byref(handle)))


def load_bytes(raw: bytes) -> Network:
    """A network of a file's bytes.

    Raises:
        Refused: the library refuses it.
    """
    handle = c_void_p()
    return Network(handle, library().fggp_load_bytes(raw, len(raw), byref(handle)))


def run_one(
    op: str, inputs: Sequence[Tensor | None], constant: Sequence[int] = (), *, threads: int = 2, **attributes: Any
) -> Tensor | tuple[Tensor, ...]:
    """Run one operation.

    Args:
        op: the operator.
        inputs: what it reads; None: absent.
        constant: the places of inputs that the network brings, instead of being given to it.
        threads: the number of threads.
        attributes: of the operation. "outputs" is the number of outputs, 1 by default.

    Returns:
        The output, or a tuple of all if "outputs" is given.
    """
    names = [None if x is None else f"input{i}" for i, x in enumerate(inputs)]
    given = [i for i, x in enumerate(inputs) if x is not None and i not in constant]
    count = attributes.get("outputs", 1)
    description = {
        "inputs": [
            {
                "name": names[i],
                "type": {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}[x.dtype],
                "shape": list(x.shape),
            }
            for i in given
            if (x := inputs[i]) is not None
        ],
        "nodes": [
            {
                "op": op,
                "name": "tested",
                "in": [given.index(i) if i in given else names[i] for i in range(len(inputs))],
                **attributes,
            }
        ],
        "outputs": [{"name": f"output{i}", "value": len(given) + i} for i in range(count)],
    }
    tensors = {f"input{i}": x for i in constant if (x := inputs[i]) is not None}
    with closing(build(description, tensors)) as network:
        results = network.run({f"input{i}": x for i in given if (x := inputs[i]) is not None}, threads)
    found = tuple(results[f"output{i}"] for i in range(count))
    return found if "outputs" in attributes else found[0]


@contextmanager
def closing(network: Network) -> Iterator[Network]:
    """Free a network at the end of a block."""
    try:
        yield network
    finally:
        network.close()
