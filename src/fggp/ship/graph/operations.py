"""A network as a list of operations in an order they can be run in: what `capture` makes and the compiler reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Value:
    """What an operation produces, or the network is given: a tensor; for some Calls a number or a tuple of tensors.

    Args:
        name: unique in its graph.
        shape: for the example; () for what is not a tensor; a size that depends on the data is -1.
        dtype: None for what is not a tensor.
        sizes: the shape for any batch size N: a number where it is always the same, else an expression like "N".
        module: the path of the module it is computed in, such as "layer1.0.conv1".
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype | None
    sizes: tuple[int | str, ...]
    module: str = ""

    @property
    def batched(self) -> bool:
        """Whether dimension 0 is the batch and nothing else changes with it; never, in a graph of fixed batch."""
        return self.sizes[:1] == ("N",) and all(isinstance(size, int) for size in self.sizes[1:])

    @property
    def varies(self) -> bool:
        """Whether the shape depends on the batch size, be it as the batched ones do or otherwise."""
        return any(isinstance(size, str) for size in self.sizes)

    def __str__(self) -> str:
        if self.dtype is None:
            return self.name
        return f"{self.name}: {str(self.dtype).removeprefix('torch.')}[{', '.join(map(str, self.sizes))}]"


@dataclass(frozen=True, eq=False)
class Op:
    """One operation.

    Args:
        inputs: the values it reads, each as often as it does.
        output: the value it produces.
    """

    inputs: tuple[Value, ...]
    output: Value

    def reading(self: Operation, instead: Mapping[Value, Any]) -> Operation:
        """The same operation on other values."""
        return replace(self, inputs=tuple(instead.get(v, v) for v in self.inputs))

    def constants(self) -> Iterator[Tensor]:
        """The tensors it holds."""
        for f in fields(self):
            if isinstance(tensor := getattr(self, f.name), Tensor):
                yield tensor

    def holding(self: Operation, instead: Callable[[Tensor], Tensor]) -> Operation:
        """The same operation with other constants."""
        held: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        swapped: dict[str, Any] = {name: instead(x) for name, x in held.items() if isinstance(x, Tensor)}
        return replace(self, **swapped)

    def __str__(self) -> str:
        read = [v.name for v in self.inputs]
        held = [
            f"{f.name} {list(value.shape) if isinstance(value, Tensor) else value}"
            for f in fields(self)
            if f.name not in ("inputs", "output", "relu", "layer") and (value := getattr(self, f.name)) is not None
        ]
        relu = ["relu"] if getattr(self, "relu", False) else []
        return f"{self.output} = {type(self).__name__}({', '.join(read + held + relu)})"


Operation = TypeVar("Operation", bound=Op)


@dataclass(frozen=True, eq=False)
class _Weighted(Op):
    """Inputs: (x,) or (x, residual). Computes the product, + bias, + residual, then ReLU;
    layer is the weight's module."""

    weight: Tensor
    bias: Tensor | None

    @property
    def residual(self) -> Value | None:
        """What is added to the product, of the output's shape."""
        return self.inputs[1] if len(self.inputs) == 2 else None


@dataclass(frozen=True, eq=False)
class Conv2d(_Weighted):
    """A convolution of float32 images [N, C, H, W], with what follows it: + bias, + residual, ReLU, in this order."""

    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    relu: bool = False
    layer: str = ""


@dataclass(frozen=True, eq=False)
class Linear(_Weighted):
    """x weightᵀ over the last dimension of float32 x, rank 2 or more; then + bias, + residual, ReLU."""

    relu: bool = False
    layer: str = ""


@dataclass(frozen=True, eq=False)
class MaxPool2d(Op):
    """The largest value of each window of [N, C, H, W]."""

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
    """The sum of two values of the same shape, then ReLU."""

    relu: bool = False


@dataclass(frozen=True, eq=False)
class ReLU(Op):
    """max(x, 0)."""


@dataclass(frozen=True, eq=False)
class Affine(Op):
    """x · scale + shift for each channel (dimension 1), then ReLU: a batch norm that no product could take in.

    Args:
        inputs: one value, [N, C, …].
        output: of the same shape.
        scale: [C]; float64 until the graph is simplified, so that folding rounds once, float32 after.
        shift: like scale.
        relu: whether ReLU follows.
    """

    scale: Tensor
    shift: Tensor
    relu: bool = False


@dataclass(frozen=True, eq=False)
class Concat(Op):
    """The inputs one after another along a dimension."""

    dim: int


@dataclass(frozen=True, eq=False)
class Flatten(Op):
    """[N, C, H, W] to [N, C · H · W], in this order whatever the layout in memory."""


@dataclass(frozen=True, eq=False)
class Call(Op):
    """Anything else: a function that PyTorch runs.

    Args:
        inputs: the values anywhere inside ``args`` and ``kwargs``.
        output: what the function returns; of several tensors, each is picked by a Call of `operator.getitem`.
        target: the function, an ATen operator mostly.
        args: values, and constants: tensors, numbers, graph modules, and tuples, lists and dicts of all these.
        kwargs: likewise.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Value) -> Call:
        """A call whose inputs are found in its arguments."""
        read = tuple(x for x in leaves((args, kwargs)) if isinstance(x, Value))
        return cls(read, output, target, args, kwargs)

    def reading(self, instead: Mapping[Value, Any]) -> Call:
        """The same call on other values; here they may also be constants."""
        args, kwargs = swap((self.args, self.kwargs), lambda x: instead.get(x, x) if isinstance(x, Value) else x)
        return Call.of(self.target, args, kwargs, self.output)

    def constants(self) -> Iterator[Tensor]:
        """The tensors among the arguments."""
        return (x for x in leaves((self.args, self.kwargs)) if isinstance(x, Tensor))

    def holding(self, instead: Callable[[Tensor], Tensor]) -> Call:
        """The same call with other constants."""
        args, kwargs = swap((self.args, self.kwargs), lambda x: instead(x) if isinstance(x, Tensor) else x)
        return replace(self, args=args, kwargs=kwargs)

    def __str__(self) -> str:
        given = [_shown(x) for x in self.args] + [f"{name}={_shown(x)}" for name, x in self.kwargs.items()]
        name = str(self.target) if "." in str(self.target) else getattr(self.target, "__name__", str(self.target))
        return f"{self.output} = {name}({', '.join(given)})"


@dataclass(frozen=True, eq=False)
class Graph:
    """A network.

    Args:
        inputs: what it is given, all tensors: the positional arguments, then the keyword arguments.
        keywords: the names of the latter, in order.
        ops: each reads only inputs and what ops before it produce.
        outputs: the leaves of what the network returns: values, and constants of any type.
        out_spec: the structure they are put into (`torch.utils._pytree`).
        batch: the one batch size it can run, or None: any.
    """

    inputs: tuple[Value, ...]
    keywords: tuple[str, ...]
    ops: tuple[Op, ...]
    outputs: tuple[Any, ...]
    out_spec: TreeSpec
    batch: int | None = field(default=None)

    def uses(self) -> Counter[Value]:
        """How often each value is read or returned."""
        read = Counter(v for op in self.ops for v in op.inputs)
        read.update(v for v in self.outputs if isinstance(v, Value))
        return read

    def constants(self) -> Iterator[Tensor]:
        """All tensors it holds; one that is shared comes more than once."""
        for op in self.ops:
            yield from op.constants()
        yield from (x for x in self.outputs if isinstance(x, Tensor))

    def flatten(self, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> list[Tensor]:
        """The arguments of one call as a flat list like ``inputs``.

        Raises:
            TypeError: not as many positional arguments, or not the keywords, that the network was captured with.
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
        return "\n".join([*lines, f"  return {', '.join(map(_shown, self.outputs))}"])


def arguments(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of an `OpOverload` by name, defaults filled in."""
    given = dict(zip((a.name for a in target._schema.arguments), args, strict=False))
    defaults = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    return {**defaults, **given, **kwargs}


def swap(tree: Any, leaf: Callable[[Any], Any]) -> Any:
    """Arguments of a call, with what is in them replaced: what ``leaf`` makes of everything that is no container."""
    if isinstance(tree, (tuple, list)):
        swapped = [swap(x, leaf) for x in tree]
        return tuple(swapped) if isinstance(tree, tuple) else swapped
    if isinstance(tree, dict):
        return {key: swap(x, leaf) for key, x in tree.items()}
    if isinstance(tree, slice):
        return slice(swap(tree.start, leaf), swap(tree.stop, leaf), swap(tree.step, leaf))
    return leaf(tree)


def leaves(tree: Any) -> Iterable[Any]:
    """Everything in the arguments of a call that is no container, in order."""
    found: list[Any] = []
    swap(tree, found.append)
    return found


def _shown(x: Any) -> str:
    if isinstance(x, Value):
        return x.name
    if isinstance(x, Tensor):
        return f"<{str(x.dtype).removeprefix('torch.')}{list(x.shape)}>"
    if isinstance(x, (list, tuple)):
        return f"[{', '.join(map(_shown, x))}]"
    return f"<{type(x).__name__}>" if isinstance(x, torch.nn.Module) else str(x)
