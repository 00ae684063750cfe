"""What ONNX's operators read and compute: constants, arrays of sizes, and tensors that are known at run time only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import sympy
import torch
from torch import Tensor

from fggp.ship.graph.operations import Value
from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.sizes import Size, simplest

_FILE_DTYPES = {"f": torch.float32, "i": torch.int64, "u": torch.int64, "b": torch.bool}
_TAKEN = {
    torch.float32: ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16"),
    torch.int64: ("INT64", "INT32", "INT16", "INT8", "UINT32", "UINT16", "UINT8"),
    torch.bool: ("BOOL",),
}
_OF_ELEMENTS = {onnx.TensorProto.DataType.Value(name): dtype for dtype, names in _TAKEN.items() for name in names}


def file_dtype(element: int) -> torch.dtype | None:
    """The network file's type for one of ONNX's (``TensorProto.DataType``).

    None for texts, complex numbers, floats of 8 and 4 bits, whole numbers of 4 and 2 bits, and uint64, which int64
    cannot hold.
    """
    return _OF_ELEMENTS.get(element)


@dataclass(frozen=True, eq=False)
class _Known:
    """What is known now."""

    array: np.ndarray[Any, Any]

    @property
    def sizes(self) -> tuple[Size, ...]:
        """The shape."""
        return tuple(map(int, self.array.shape))

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return self.array.ndim


@dataclass(frozen=True, eq=False)
class Constant(_Known):
    """A tensor of the file, or one computed from such."""

    name: str = ""

    @property
    def dtype(self) -> torch.dtype:
        """The network file's type for its numbers."""
        if self.array.dtype.kind not in _FILE_DTYPES:
            raise Inexpressible(f"it has numbers of type {self.array.dtype}; the file has float32, int64 and bool")
        return _FILE_DTYPES[self.array.dtype.kind]


@dataclass(frozen=True, eq=False)
class Symbolic(_Known):
    """An array of few numbers that depend on free sizes only, such as a shape: sympy's expressions.

    Its dtype is float32 while sizes are multiplied by fractions; such numbers are exact here.
    """

    dtype: torch.dtype


@dataclass(frozen=True, eq=False)
class Running:
    """A tensor that is known at run time."""

    value: Value
    sizes: tuple[Size, ...]

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.sizes)

    @property
    def dtype(self) -> torch.dtype:
        """float32, int64 or bool."""
        assert self.value.dtype is not None
        return self.value.dtype


Operand = Constant | Symbolic | Running
Operands = list["Operand | None"]


def symbolic(numbers: Any, dtype: torch.dtype) -> Constant | Symbolic:
    """An array of numbers and expressions: a constant if there is no expression among them."""
    array = np.empty(np.shape(numbers), dtype=object)
    array[...] = numbers
    flat = [sympy.sympify(x) for x in array.reshape(-1)]
    if all(x.is_number or x in (sympy.true, sympy.false) for x in flat):
        kind = {torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}[dtype]
        plain = [bool(x) if dtype == torch.bool else float(x) if dtype == torch.float32 else int(x) for x in flat]
        return Constant(np.array(plain, dtype=kind).reshape(array.shape))
    return Symbolic(np.array([*flat, None], dtype=object)[:-1].reshape(array.shape), dtype)


def numbers_of(x: Operand | None, what: str) -> list[Size]:
    """The whole numbers of a constant or of an array of sizes, in a list.

    Args:
        x: of rank 0 or 1.
        what: its name, for the message.

    Raises:
        Inexpressible: they are known at run time only.
    """
    if isinstance(x, Constant):
        return [int(number) for number in x.array.reshape(-1)]
    if isinstance(x, Symbolic):
        return [simplest(number) for number in x.array.reshape(-1)]
    raise Inexpressible(f"its {what} is computed from the data; it must follow from the shapes of the inputs")


def whole_numbers(x: Operand | None, what: str) -> list[int]:
    """The same, where free sizes are not allowed."""
    found = numbers_of(x, what)
    for number in found:
        if not isinstance(number, int):
            raise Inexpressible(f"its {what} is {number}, which depends on a free size; it must be a number")
    return found


def constant_array(x: Operand | None, what: str) -> np.ndarray[Any, Any]:
    """The numbers of a constant.

    Raises:
        Inexpressible: it is none.
    """
    if isinstance(x, Constant):
        return x.array
    raise Inexpressible(f"its {what} is computed by the network; it must be a constant")


def as_tensor(array: np.ndarray[Any, Any], dtype: torch.dtype) -> Tensor:
    """A constant as a tensor; it shares the array's memory if its dtype allows."""
    return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(dtype)
