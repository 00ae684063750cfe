"""Operations that are calls of PyTorch's functions, and their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fggp.ship.graph.operations import Op, Value, short_text


@dataclass(frozen=True, eq=False)
class Call(Op):
    """An operation that has no class of its own: a function that PyTorch runs.

    Args:
        inputs: the values anywhere inside ``args`` and ``kwargs``.
        output: the return value. If that is a tuple of tensors, Calls of `operator.getitem` pick the tensors.
        target: the function, mostly an ATen operator.
        args: values, and constants: tensors, numbers, graph modules, and tuples, lists and dicts of all these.
        kwargs: of the same.
    """

    target: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], output: Value) -> Call:
        """A call whose inputs are collected from its arguments."""
        read = tuple(x for x in leaves((args, kwargs)) if isinstance(x, Value))
        return cls(read, output, target, args, kwargs)

    @property
    def target_name(self) -> str:
        """The function's name, such as "aten.mean.dim"."""
        name = str(self.target)
        return name if "." in name else getattr(self.target, "__name__", name)

    def with_inputs(self, replaced: Mapping[Value, Any]) -> Call:
        """The same call with some of its input values replaced, by other values or by constants."""
        args, kwargs = map_leaves((self.args, self.kwargs), lambda x: replaced.get(x, x) if isinstance(x, Value) else x)
        return Call.of(self.target, args, kwargs, self.output)

    def constants(self) -> Iterator[Tensor]:
        """The tensors among the arguments."""
        return (x for x in leaves((self.args, self.kwargs)) if isinstance(x, Tensor))

    def with_constants(self, convert: Callable[[Tensor], Tensor]) -> Call:
        """The same call with each constant converted."""
        args, kwargs = map_leaves((self.args, self.kwargs), lambda x: convert(x) if isinstance(x, Tensor) else x)
        return replace(self, args=args, kwargs=kwargs)

    def __str__(self) -> str:
        given = [short_text(x) for x in self.args] + [f"{name}={short_text(x)}" for name, x in self.kwargs.items()]
        return f"{self.output} = {self.target_name}({', '.join(given)})"


def arguments(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of an `OpOverload` by name, with defaults filled in."""
    given = dict(zip((a.name for a in target._schema.arguments), args, strict=False))
    defaults = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    return {**defaults, **given, **kwargs}


def map_leaves(tree: Any, function: Callable[[Any], Any]) -> Any:
    """Apply a function to everything in a call's arguments that is no container, and keep the containers."""
    if isinstance(tree, (tuple, list)):
        mapped = [map_leaves(x, function) for x in tree]
        return tuple(mapped) if isinstance(tree, tuple) else mapped
    if isinstance(tree, dict):
        return {key: map_leaves(x, function) for key, x in tree.items()}
    if isinstance(tree, slice):
        return slice(*(map_leaves(x, function) for x in (tree.start, tree.stop, tree.step)))
    return function(tree)


def leaves(tree: Any) -> Iterable[Any]:
    """Everything in a call's arguments that is no container, in order."""
    found: list[Any] = []
    map_leaves(tree, found.append)
    return found
