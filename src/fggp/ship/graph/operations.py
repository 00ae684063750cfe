"""A network as a list of operations in execution order: `capture` builds it, and the compiler reads it."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Value:
    """An input of the network or the output of an operation: a tensor; for some Calls a number or a tuple of tensors.

    Args:
        name: unique in its graph.
        shape: for the example; () if this is no tensor; -1 for a size that depends on the data.
        dtype: None if this is no tensor.
        sizes: the shape for any batch size N: a number for a constant size, else an expression such as "N".
        module: the path of the module that computes it, such as "layer1.0.conv1".
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    sizes: tuple[int | str, ...]
    module: str = ""

    @property
    def batched(self) -> bool:
        """Whether dimension 0, and no other, is the batch size; False in a graph of fixed batch size."""
        return self.sizes[:1] == ("N",) and not any(re.search(r"\bN\b", str(size)) for size in self.sizes[1:])

    def __str__(self) -> str:
        if self.dtype is None:
            return self.name
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.sizes))}]"


@dataclass(frozen=True, eq=False)
class Op:
    """One operation.

    Args:
        inputs: the values it reads; a value that it reads twice is listed twice.
        output: the value it produces.
    """

    inputs: tuple[Value, ...]
    output: Value

    @property
    def module(self) -> str:
        """The path of the module whose weight it has, or else of the one that computes it; "" for the model itself."""
        return self.output.module

    @property
    def place(self) -> str:
        """What people call it: `module`, or else the name of its output."""
        return self.module or self.output.name

    def with_inputs(self: Operation, replaced: Mapping[Value, Any]) -> Operation:
        """The same operation with some of its input values replaced."""
        return replace(self, inputs=tuple(replaced.get(v, v) for v in self.inputs))

    def constants(self) -> Iterator[Tensor]:
        """The tensors it holds."""
        for f in fields(self):
            if isinstance(tensor := getattr(self, f.name), Tensor):
                yield tensor

    def with_constants(self: Operation, convert: Callable[[Tensor], Tensor]) -> Operation:
        """The same operation with each constant converted."""
        held: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        converted: dict[str, Any] = {name: convert(x) for name, x in held.items() if isinstance(x, Tensor)}
        return replace(self, **converted)

    def __str__(self) -> str:
        read = [v.name for v in self.inputs]
        held = [
            f"{f.name} {list(value.shape) if isinstance(value, Tensor) else value}"
            for f in fields(self)
            if f.name not in ("inputs", "output", "activation", "layer")
            and (value := getattr(self, f.name)) is not None
        ]
        then = [str(activation)] if (activation := getattr(self, "activation", None)) is not None else []
        return f"{self.output} = {type(self).__name__}({', '.join(read + held + then)})"


Operation = TypeVar("Operation", bound=Op)


@dataclass(frozen=True)
class Activation:
    """A function that is applied to each number.

    Args:
        name: of one of `fggp.ship.graph.activations.FUNCTIONS`, such as "clamp".
        numbers: its settings, up to three; for "clamp" the least and the largest result.
    """

    name: str
    numbers: tuple[float, ...] = ()

    def __str__(self) -> str:
        if self == RELU:
            return "relu"
        return f"{self.name}({', '.join(f'{x:g}' for x in self.numbers)})" if self.numbers else self.name


RELU = Activation("clamp", (0.0, math.inf))


@dataclass(frozen=True, eq=False)
class Product(Op):
    """A product with a weight (a convolution or a linear layer), then + bias, + residual, activation.

    Inputs are (x,) or (x, residual). ``layer`` is the path of the weight's module, where that is not the output's.
    """

    weight: Tensor
    bias: Tensor | None
    layer: str = field(default="", kw_only=True)

    @property
    def module(self) -> str:
        """The path of the module whose weight it has."""
        return self.layer or self.output.module

    @property
    def residual(self) -> Value | None:
        """The value added to the product, of the output's shape; None: none."""
        return self.inputs[1] if len(self.inputs) == 2 else None


@dataclass(frozen=True, eq=False)
class Conv2d(Product):
    """A convolution of float32 images [N, C, H, W]; then + bias, + residual, activation."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class Linear(Product):
    """x weightᵀ over the last dimension of x, float32 of rank 2 or more; then + bias, + residual, activation."""

    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class MaxPool2d(Op):
    """The largest value of each window of [N, C, H, W]; also of uint8."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    ceil_mode: bool


@dataclass(frozen=True, eq=False)
class AvgPool2d(Op):
    """The mean of each window of [N, C, H, W]."""

    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None


@dataclass(frozen=True, eq=False)
class AdaptiveAvgPool2d(Op):
    """Means of [N, C, H, W] over a grid of the given size; (1, 1) is the mean over H and W."""

    size: Pair


@dataclass(frozen=True, eq=False)
class Add(Op):
    """The sum of two values of the same shape, then an activation."""

    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class Gate(Op):
    """x · gate, then an activation. Inputs are (x, gate): [N, C, H, W] and [N, C, 1, 1]."""

    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class Activate(Op):
    """An activation that is not fused into another operation."""

    activation: Activation


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """x · scale + shift for each channel (dimension 1), then an activation: a batch norm that no product could take in.

    Args:
        inputs: one value, [N, C, …].
        output: of the same shape.
        scale: [C]; float64 until the graph is simplified, so that folding rounds once; float32 afterwards.
        shift: like scale.
        activation: what follows.
    """

    scale: Tensor
    shift: Tensor
    activation: Activation | None = None


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """The inputs concatenated along a dimension."""

    dim: int


@dataclass(frozen=True, eq=False)
class Channels(Op):
    """Channels of images: a part of them, several images' side by side, or in another order.

    Args:
        inputs: one or more values [N, C, H, W], which differ only in C.
        output: [N, len(index), H, W].
        index: for each channel of the output, which channel it is of the inputs' channels side by side.
    """

    index: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Flatten(Op):
    """[N, C, H, W] to [N, C · H · W], in the logical order, whatever the layout in memory."""


@dataclass(frozen=True, eq=False)
class Graph:
    """A network.

    Args:
        inputs: its arguments, all tensors: the positional ones, then the keyword arguments.
        keywords: the names of the keyword arguments, in order.
        ops: the operations. Each reads only inputs and outputs of operations before it.
        outputs: the elements of the return value, flattened: values, and constants of any type.
        out_spec: the structure of the return value (`torch.utils._pytree`).
        batch: the only batch size it can run; None: any.
    """

    inputs: tuple[Value, ...]
    keywords: tuple[str, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Any, ...]
    out_spec: TreeSpec
    batch: int | None = field(default=None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Graph:
        """A copy with tensors of its own. The structure is shared: PyTorch 2.10 warns of its copies."""
        memo[id(self.out_spec)] = self.out_spec
        return Graph(*(copy.deepcopy(getattr(self, part.name), memo) for part in fields(self)))

    def uses(self) -> Counter[Value]:
        """How often each value is read or returned."""
        read = Counter(v for op in self.ops for v in op.inputs)
        read.update(v for v in self.outputs if isinstance(v, Value))
        return read

    def constants(self) -> Iterator[Tensor]:
        """All tensors it holds; a shared one is listed more than once."""
        for op in self.ops:
            yield from op.constants()
        yield from (x for x in self.outputs if isinstance(x, Tensor))

    def flatten(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> list[Tensor]:
        """The arguments of one call as a flat list in the order of ``inputs``.

        Raises:
            TypeError: the number of positional arguments, or the keywords, differ from those of the example.
        """
        count = len(self.inputs) - len(self.keywords)
        if len(args) != count or set(kwargs) != set(self.keywords):
            raise TypeError(
                f"got {len(args)} positional arguments and the keywords {sorted(kwargs)}; this network was captured "
                f"with {count} and {sorted(self.keywords)}"
            )
        return [*args, *(kwargs[name] for name in self.keywords)]

    def __str__(self) -> str:
        batch = "any batch size N" if self.batch is None else f"batch size {self.batch}"
        lines = [f"Graph of {len(self.ops)} operations, {batch}"]
        lines += [f"  input {v}" for v in self.inputs]
        lines += [f"  {op}" for op in self.ops]
        return "\n".join([*lines, f"  return {', '.join(map(short_text, self.outputs))}"])


def is_size(value: Value) -> bool:
    """Whether a value is a whole number that follows from the sizes of the inputs."""
    return value.dtype is None and bool(value.sizes)


def short_text(x: Any) -> str:
    """An argument of a call, or something that a network returns, in a line of text."""
    if isinstance(x, Value):
        return x.name
    if isinstance(x, Tensor):
        return f"<{str(x.dtype).removeprefix('torch.')}{list(x.shape)}>"
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(short_text, x))}]"
    return f"<{type(x).__name__}>" if isinstance(x, torch.nn.Module) else str(x)
