"""Writing a network's operations, one node after another, and naming the tensors that they hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fggp.ship.graph.calls import Call
from fggp.ship.graph.operations import Activation
from fggp.ship.network.description import Inexpressible
from fggp.ship.network.sizes import Size, added, expressions

# The file's types. int32 is written as I64: the results are the same unless the model relies on its overflow.
TYPES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL"}
# Activations and weights of quantised operations. No other operation reads them.
QUANTIZED_TYPES = {torch.uint8: "U8", torch.int8: "I8"}
_WIDENED = {torch.int32: torch.int64}


def file_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that stands for this one in the file.

    Raises:
        Inexpressible: none does.
    """
    known = _WIDENED.get(dtype, dtype) if dtype is not None else None
    if known not in TYPES:
        name = str(dtype).removeprefix("torch.")
        raise Inexpressible(f"it has numbers of type {name}; the file has float32, int64 and bool")
    return known


def value_dtype(dtype: torch.dtype | None) -> torch.dtype:
    """The dtype that stands for this one between operations, of which some are quantised.

    Raises:
        Inexpressible: none does.
    """
    return dtype if dtype in QUANTIZED_TYPES else file_dtype(dtype)


@dataclass(frozen=True)
class Operand:
    """What a node reads.

    Args:
        place: the number of a value, or the name of a tensor.
        dtype: float32, int64 or bool; uint8 or int8 of quantised operations.
        sizes: its shape.
        tensor: the tensor, if it is a constant.
    """

    place: int | str
    dtype: torch.dtype
    sizes: tuple[Size, ...]
    tensor: Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of dimensions."""
        return len(self.sizes)


class Writer:
    """The nodes and tensors of a network that is being described.

    Args:
        name_of: the name of a tensor that is one of the model's; None: it is none.

    Attributes:
        inputs: as in the file.
        nodes: as in the file.
        tensors: by name.
        module: the place in the model of the operation that is being written.
    """

    def __init__(self, name_of: Callable[[Tensor], str | None]) -> None:
        self.inputs: list[dict[str, Any]] = []
        self.nodes: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self.module = ""
        self._name_of = name_of
        self._values = 0
        self._unnamed = 0
        self._known: dict[Any, Operand] = {}
        self._kept: list[Tensor] = []  # so that no two have one address

    # What goes in.

    def input(self, name: str, dtype: torch.dtype, sizes: Sequence[Size]) -> Operand:
        """Add an input. The file has only numbers and names in the shapes of inputs: any other size gets a new name."""
        dtype = value_dtype(dtype)
        shape = expressions(sizes)
        for i, size in enumerate(shape):
            if isinstance(size, list):
                self._unnamed += 1
                shape[i] = f"size{self._unnamed}"
        self.inputs.append({"name": name, "type": {**TYPES, **QUANTIZED_TYPES}[dtype], "shape": shape})
        return self._value(dtype, sizes)

    def tensor(self, tensor: Tensor, name: str, *, quantized: bool = False) -> Operand:
        """A constant.

        Args:
            tensor: of any dtype that the file can express.
            name: what it is in the operation that reads it, such as "weight". If it is not one of the model's tensors,
                its name is this one after the module's.
            quantized: whether it is the weight of a quantised operation.
        """
        if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout != torch.strided:
            raise Inexpressible(f"its {name} is a {type(tensor).__name__} of layout {tensor.layout}")
        key = (tensor.data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in self._known:
            return self._known[key]
        if tensor.dtype == torch.float64 and tensor.dim() == 0:
            dtype = torch.float32  # as PyTorch treats it beside a float32 tensor
        else:
            dtype = value_dtype(tensor.dtype) if quantized else file_dtype(tensor.dtype)
        wanted = self._name_of(tensor) or (f"{self.module}.{name}" if self.module else name)
        found, count = wanted, 1
        while found in self.tensors:
            count += 1
            found = f"{wanted}~{count}"
        self._kept.append(tensor)
        self.tensors[found] = tensor.detach().to(dtype).contiguous()
        operand = Operand(found, dtype, tuple(tensor.shape), self.tensors[found])
        self._known[key] = operand
        return operand

    def scalar(self, number: float | int | bool, dtype: torch.dtype) -> Operand:
        """A constant of rank 0."""
        key = (repr(number), dtype)
        if key not in self._known:
            module, self.module = self.module, ""
            self._known[key] = self.tensor(torch.tensor(number, dtype=dtype), f"constant {number}")
            self.module = module
        return self._known[key]

    def number(self, size: Size) -> Operand:
        """A size as an integer tensor of rank 0."""
        if isinstance(size, int):
            return self.scalar(size, torch.int64)
        first, last = expressions([size, added(size, 1)])
        one = self.node("arange", [], torch.int64, [1], start=first, stop=last, step=1, type="I64")
        return self.reshape(one, [])

    # Nodes.

    def node(
        self,
        op: str,
        inputs: Sequence[Operand | None],
        dtype: torch.dtype,
        sizes: Sequence[Size],
        *,
        activation: Activation | None = None,
        **attributes: Any,
    ) -> Operand:
        """Add a node of one output. Attributes that are None are left out."""
        return self.nodes_of(op, inputs, [(dtype, sizes)], activation=activation, **attributes)[0]

    def nodes_of(
        self,
        op: str,
        inputs: Sequence[Operand | None],
        outputs: Sequence[tuple[torch.dtype, Sequence[Size]]],
        *,
        activation: Activation | None = None,
        **attributes: Any,
    ) -> tuple[Operand, ...]:
        """Add a node of several outputs, which are given by their dtypes and shapes."""
        read = [None if x is None else x.place for x in inputs]
        while read and read[-1] is None:
            read.pop()
        node: dict[str, Any] = {"op": op, "name": self.module, "in": read}
        node |= {key: _plain(value) for key, value in attributes.items() if value is not None}
        if activation is not None:
            node["activation"] = [activation.name, *map(_plain, activation.numbers)]
        if len(outputs) != 1:
            node["outputs"] = len(outputs)
        if not self.module:
            del node["name"]
        self.nodes.append(node)
        return tuple(self._value(dtype, sizes) for dtype, sizes in outputs)

    def _value(self, dtype: torch.dtype, sizes: Sequence[Size]) -> Operand:
        self._values += 1
        return Operand(self._values - 1, dtype, tuple(sizes))

    # Operators that others are made of.

    def unary(self, function: str, x: Operand) -> Operand:
        """A function of each number."""
        return self.node("unary", [x], torch.bool if function == "isnan" else x.dtype, x.sizes, function=function)

    def binary(self, function: str, a: Operand, b: Operand, dtype: torch.dtype | None = None) -> Operand:
        """A function of two numbers each, of one type; dtype is the result's if it is another."""
        return self.node("binary", [a, b], dtype or a.dtype, broadcast(a.sizes, b.sizes), function=function)

    def with_number(self, function: str, a: Operand, number: float) -> Operand:
        """A function of each number and a constant."""
        return self.binary(function, a, self.scalar(number, a.dtype))

    def cast(self, x: Operand, dtype: torch.dtype) -> Operand:
        """The numbers in another type."""
        if x.dtype == dtype:
            return x
        if x.tensor is not None:
            return self.tensor(x.tensor.to(dtype), f"{x.place} as {TYPES[dtype]}")
        return self.node("cast", [x], dtype, x.sizes, type=TYPES[dtype])

    def activate(self, x: Operand, name: str, *numbers: float) -> Operand:
        """An activation."""
        return self.node("activate", [x], x.dtype, x.sizes, activation=Activation(name, numbers))

    def reduce(
        self, function: str, x: Operand, dims: Iterable[int], *, keep: bool, dtype: torch.dtype | None = None
    ) -> Operand:
        """A reduction over dimensions."""
        dims = sorted({dim % max(x.rank, 1) for dim in dims})
        if not x.rank:
            dims = []
        kept = [1 if dim in dims else size for dim, size in enumerate(x.sizes) if keep or dim not in dims]
        return self.node("reduce", [x], dtype or x.dtype, kept, function=function, dims=dims, keep=keep)

    def reshape(self, x: Operand, sizes: Sequence[Size]) -> Operand:
        """The same numbers in another shape."""
        if x.sizes == tuple(sizes):
            return x
        return self.node("reshape", [x], x.dtype, sizes, shape=expressions(sizes))

    def permute(self, x: Operand, dims: Sequence[int]) -> Operand:
        """The dimensions in another order."""
        dims = [dim % x.rank for dim in dims]
        if dims == list(range(x.rank)):
            return x
        return self.node("permute", [x], x.dtype, [x.sizes[dim] for dim in dims], dims=dims)

    def transpose(self, x: Operand, a: int, b: int) -> Operand:
        """Two dimensions exchanged."""
        dims = list(range(x.rank))
        dims[a], dims[b] = dims[b], dims[a]
        return self.permute(x, dims)

    def expand(self, x: Operand, sizes: Sequence[Size]) -> Operand:
        """Repeated along dimensions of size 1."""
        if x.sizes == tuple(sizes):
            return x
        return self.node("expand", [x], x.dtype, sizes, shape=expressions(sizes))

    def slice(self, x: Operand, dim: int, start: Size, stop: Size, size: Size, step: int = 1) -> Operand:
        """A part of a dimension, of the given size."""
        dim %= x.rank
        sizes = [size if i == dim else s for i, s in enumerate(x.sizes)]
        first, last = expressions([start, stop])
        return self.node("slice", [x], x.dtype, sizes, dim=dim, start=first, stop=last, step=step)

    def concat(self, parts: Sequence[Operand], dim: int, sizes: Sequence[Size]) -> Operand:
        """Tensors one after another."""
        return self.node("concat", parts, parts[0].dtype, sizes, dim=dim % len(sizes))

    def matmul(self, a: Operand, b: Operand) -> Operand:
        """A product of matrices."""
        sizes = (*broadcast(a.sizes[:-2], b.sizes[:-2]), a.sizes[-2], b.sizes[-1])
        return self.node("matmul", [a, b], torch.float32, sizes)

    def fill(self, sizes: Sequence[Size], number: float | int | bool, dtype: torch.dtype) -> Operand:
        """A tensor of one number."""
        return self.node("fill", [], dtype, sizes, shape=expressions(sizes), value=number, type=TYPES[dtype])

    def arange(self, stop: Size) -> Operand:
        """The whole numbers from 0 to before stop."""
        (last,) = expressions([stop])
        return self.node("arange", [], torch.int64, [stop], start=0, stop=last, step=1, type="I64")


def broadcast(a: Sequence[Size], b: Sequence[Size]) -> tuple[Size, ...]:
    """The shape of two shapes broadcast."""
    if len(a) < len(b):
        a, b = b, a
    b = (*[1] * (len(a) - len(b)), *b)
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def _plain(value: Any) -> Any:
    """A value as JSON has it: numbers that JSON has not as texts."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, float) and value == int(value) and abs(value) < 2**53:
        return int(value) if value or math.copysign(1, value) > 0 else value
    if isinstance(value, (list, tuple)):
        return [_plain(x) for x in value]
    return value


def with_sizes(x: Operand, sizes: Sequence[Size]) -> Operand:
    """The same operand, its shape written as the graph writes it."""
    return replace(x, sizes=tuple(sizes))


Handler = Callable[["Writer", Call, dict[str, Any]], Operand | tuple[Operand, ...]]
