"""Writing a graph of PyTorch's operators, operation after operation, with the sizes of everything it computes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch
from torch import Tensor

from fggp.ship.graph.calls import Call
from fggp.ship.graph.operations import Op, Value
from fggp.ship.network.description import Inexpressible
from fggp.ship.onnx.operands import Constant, Operand, Running, Symbolic, as_tensor
from fggp.ship.onnx.sizes import Size, equal, product, quotient_up, simplest, text

aten = torch.ops.aten
_TAKING_NUMBERS = frozenset([aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor])


def size_of_inputs(*_: Any) -> Any:
    """The target of a call whose result is a size: the expression in the sizes of its output."""
    raise AssertionError("a size is evaluated from its expression, and never called")


class Builder:
    """The operations of a network that is being read.

    Attributes:
        ops: the operations so far.
        place: the ONNX node that is being read, for messages and the names of tensors.
        names: the name of each tensor of the file.
        tensors: the constants that the operations read, by the identity of their `Constant`.
        equalities: pairs of sizes that must be equal, or one of which must be 1.
        same_sizes: free sizes that must be another free size, or a number.
        all_sizes: those of all values, and what else must be at least 1.
        free: the free sizes of the inputs.
    """

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.place = ""
        self.names: dict[int, str] = {}
        self.tensors: dict[int, Tensor] = {}
        self.equalities: list[tuple[Size, Size]] = []
        self.same_sizes: dict[str, int | str] = {}
        self.all_sizes: set[Size] = set()
        self.free: list[sympy.Symbol] = []
        self._kept: list[Constant] = []  # so that no two have one address
        self._sizes: dict[Size, Value] = {}
        self._count = 0

    # Values.

    def value(self, sizes: Sequence[Size], dtype: torch.dtype) -> Running:
        """A new value."""
        self._count += 1
        self.all_sizes.update(sizes)
        shown = tuple(map(text, sizes))
        example = tuple(size if isinstance(size, int) else 2 for size in sizes)
        return Running(Value(f"v{self._count}", example, dtype, shown, self.place), tuple(sizes))

    def size(self, size: Size) -> Any:
        """A size as an argument of a call: a number, or a value that the graph computes."""
        if isinstance(size, int):
            return size
        if size not in self._sizes:
            self._count += 1
            value = Value(f"v{self._count}", (), None, (text(size),), self.place)
            self.ops.append(Call((), value, size_of_inputs, (), {}))
            self._sizes[size] = value
        return self._sizes[size]

    def tensor(self, x: Constant) -> Tensor:
        """A constant as a tensor, the same each time."""
        if id(x) not in self.tensors:
            self._kept.append(x)
            self.tensors[id(x)] = as_tensor(x.array, x.dtype)
        return self.tensors[id(x)]

    def argument(self, x: Operand) -> Any:
        """An operand as an argument of a call."""
        if isinstance(x, Running):
            return x.value
        return self.tensor(x) if isinstance(x, Constant) else self.computed(x).value

    def computed(self, x: Symbolic) -> Running:
        """Sizes as a tensor that is computed at run time."""
        flat = [self.number(number, x.dtype) for number in x.array.reshape(-1)]
        if not flat:
            return self.call(
                aten.zeros.default, list(x.sizes), sizes=x.sizes, dtype=x.dtype, options={"dtype": x.dtype}
            )
        if not x.rank:
            return flat[0]
        stacked = self.call(aten.stack.default, [y.value for y in flat], 0, sizes=(len(flat),), dtype=x.dtype)
        return self.reshape(stacked, x.sizes)

    def number(self, number: Any, dtype: torch.dtype) -> Running:
        """A number that may depend on sizes, as a tensor of rank 0."""
        number = sympy.sympify(number)
        if number.is_Boolean and number not in (sympy.true, sympy.false):
            raise Inexpressible(f"it computes with the condition {number} on free sizes")
        if dtype != torch.float32 or number.is_number:
            given = bool(number) if number.is_Boolean else simplest(number) if number.is_integer else float(number)
            return self.call(
                aten.scalar_tensor.default, self.size(given), sizes=(), dtype=dtype, options={"dtype": dtype}
            )
        above, below = sympy.fraction(sympy.together(number))
        if not (above.is_integer and below.is_integer):
            raise Inexpressible(f"it computes {number} from free sizes")
        top, bottom = (self.number(part, torch.int64) for part in (above, below))
        return self.call(aten.div.Tensor, top.value, bottom.value, sizes=(), dtype=torch.float32)

    # Calls.

    def call(
        self,
        target: Callable[..., Any],
        *args: Any,
        sizes: Sequence[Size],
        dtype: torch.dtype = torch.float32,
        options: dict[str, Any] | None = None,
    ) -> Running:
        """Add a call that returns one tensor of these sizes; options are its keyword arguments."""
        result = self.value(sizes, dtype)
        self.ops.append(Call.of(target, args, options or {}, result.value))
        return result

    def call_of_several(
        self, target: Callable[..., Any], *args: Any, results: Sequence[tuple[Sequence[Size], torch.dtype]]
    ) -> tuple[Running, ...]:
        """Add a call that returns several tensors."""
        self._count += 1
        together = Value(f"v{self._count}", (), None, (), self.place)
        self.ops.append(Call.of(target, args, {}, together))
        return tuple(
            self.call(operator.getitem, together, i, sizes=sizes, dtype=dtype)
            for i, (sizes, dtype) in enumerate(results)
        )

    def running(self, x: Operand) -> Running:
        """An operand as a value of the graph, for what takes no constants."""
        if isinstance(x, Running):
            return x
        if isinstance(x, Symbolic):
            return self.computed(x)
        return self.call(aten.clone.default, self.tensor(x), sizes=x.sizes, dtype=x.dtype)

    # Operators that others are made of.

    def same(self, a: Size, b: Size) -> Size:
        """One of two sizes that must be equal: the fixed one."""
        found = self._one(a, b)
        for one, other in ((a, b), (b, a)):
            if not isinstance(one, sympy.Symbol):
                continue
            if isinstance(other, int):
                self.same_sizes.setdefault(str(one), other)
            elif isinstance(other, sympy.Symbol) and self.free.index(other) < self.free.index(one):
                self.same_sizes.setdefault(str(one), str(other))  # the one that came first keeps its name
        return found

    def _one(self, a: Size, b: Size) -> Size:
        if equal(a, b):
            return a
        if isinstance(a, int) and isinstance(b, int):
            raise Inexpressible(f"its sizes {a} and {b} do not fit each other")
        self.equalities.append((a, b))
        return b if isinstance(b, int) else a

    def at_least(self, size: Size, least: Size) -> None:
        """Note that a size must be so large."""
        self.all_sizes.add(simplest(size - least + 1))

    def broadcast(self, *shapes: Sequence[Size]) -> tuple[Size, ...]:
        """The shape of several shapes broadcast. A free size is taken not to be repeated."""
        rank = max(map(len, shapes))
        result: list[Size] = [1] * rank
        for shape in shapes:
            for dim, size in enumerate(shape, rank - len(shape)):
                if size != 1:
                    result[dim] = size if result[dim] == 1 else self._one(result[dim], size)
        return tuple(result)

    def pointwise(
        self,
        target: Any,
        *inputs: Operand | float,
        dtype: torch.dtype | None = None,
        options: dict[str, Any] | None = None,
    ) -> Running:
        """A call that computes number by number of what is broadcast; dtype is the result's if it is another."""
        operands = [x for x in inputs if isinstance(x, (Constant, Symbolic, Running))]
        if not any(isinstance(x, (Running, Symbolic)) for x in operands):
            inputs = (self.running(operands[0]), *inputs[1:])
        sizes = self.broadcast(*(x.sizes for x in operands))
        args = [self.argument(x) if isinstance(x, (Constant, Symbolic, Running)) else x for x in inputs]
        if target in _TAKING_NUMBERS:
            args = [x.item() if isinstance(x, Tensor) and not x.dim() and x.dtype != torch.bool else x for x in args]
        return self.call(target, *args, sizes=sizes, dtype=dtype or operands[0].dtype, options=options)

    def cast(self, x: Operand, dtype: torch.dtype) -> Operand:
        """The numbers in another type."""
        if x.dtype == dtype:
            return x
        if isinstance(x, Constant):
            return Constant(as_tensor(x.array, x.dtype).to(dtype).numpy(), x.name)
        return self.call(aten._to_copy.default, self.argument(x), sizes=x.sizes, dtype=dtype, options={"dtype": dtype})

    def reshape(self, x: Operand, sizes: Sequence[Size]) -> Running:
        """The same numbers in another shape."""
        args = [self.size(size) for size in sizes]
        return self.call(aten.reshape.default, self.argument(x), args, sizes=sizes, dtype=x.dtype)

    def permute(self, x: Operand, dims: Sequence[int]) -> Running:
        """The dimensions in another order."""
        sizes = [x.sizes[dim] for dim in dims]
        return self.call(aten.permute.default, self.argument(x), list(dims), sizes=sizes, dtype=x.dtype)

    def expand(self, x: Operand, sizes: Sequence[Size]) -> Running:
        """Repeated along dimensions of size 1."""
        args = [self.size(size) for size in sizes]
        return self.call(aten.expand.default, self.argument(x), args, sizes=sizes, dtype=x.dtype)

    def slice(self, x: Operand, dim: int, start: Size, stop: Size, step: int = 1) -> Running:
        """A part of a dimension, whose bounds lie inside it."""
        count = quotient_up(simplest(stop - start), step)
        sizes = [count if i == dim else size for i, size in enumerate(x.sizes)]
        bounds = self.size(start), self.size(stop)
        return self.call(aten.slice.Tensor, self.argument(x), dim, *bounds, step, sizes=sizes, dtype=x.dtype)

    def concat(self, parts: Sequence[Operand], dim: int) -> Running:
        """Tensors one after another."""
        sizes = list(parts[0].sizes)
        for part in parts[1:]:
            sizes = [self.same(a, b) if i != dim else a for i, (a, b) in enumerate(zip(sizes, part.sizes, strict=True))]
        total: Any = 0
        for part in parts:
            total = total + part.sizes[dim]
        sizes[dim] = simplest(total)
        args = [self.argument(part) for part in parts]
        return self.call(aten.cat.default, args, dim, sizes=sizes, dtype=parts[0].dtype)

    def take(self, x: Operand, index: Operand, dim: int) -> Running:
        """Elements of a dimension; the index's dimensions replace it. Negative ones count from the end."""
        flat = self.reshape(index, (product(index.sizes),)) if index.rank != 1 else index
        sizes = (*x.sizes[:dim], flat.sizes[0], *x.sizes[dim + 1 :])
        args = self.argument(x), dim, self.argument(flat)
        taken = self.call(aten.index_select.default, *args, sizes=sizes, dtype=x.dtype)
        if index.rank == 1:
            return taken
        return self.reshape(taken, (*x.sizes[:dim], *index.sizes, *x.sizes[dim + 1 :]))

    def pad(self, x: Operand, pads: Sequence[tuple[Size, Size]], mode: str = "constant", value: float = 0) -> Running:
        """Numbers added before and after each dimension."""
        flat = [self.size(size) for pair in reversed(pads) for size in pair]
        sizes = [simplest(size + a + b) for size, (a, b) in zip(x.sizes, pads, strict=True)]
        given = value if mode == "constant" else None
        return self.call(aten.pad.default, self.argument(x), flat, mode, given, sizes=sizes, dtype=x.dtype)

    def arange(self, count: Size) -> Running:
        """The whole numbers from 0 on."""
        return self.call(aten.arange.default, self.size(count), sizes=(count,), dtype=torch.int64)

    def filled(self, sizes: Sequence[Size], number: float, dtype: torch.dtype) -> Running:
        """A tensor of one number."""
        args = [self.size(size) for size in sizes]
        return self.call(aten.full.default, args, number, sizes=sizes, dtype=dtype, options={"dtype": dtype})
