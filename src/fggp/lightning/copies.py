"""The copies of a model that averages of its weights are, in callbacks and in the model itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn
from torch.optim.swa_utils import AveragedModel


def copies_in_callbacks(callbacks: Iterable[Any], model: nn.Module) -> Iterator[nn.Module]:
    """The copies of a model that callbacks keep, as they are or in an AveragedModel."""
    for callback in callbacks:
        for value in vars(callback).values():
            if isinstance(value, nn.Module):
                inner = getattr(value, "module", None)
                copy = inner if isinstance(inner, type(model)) else value
                if isinstance(copy, type(model)) and copy is not model:
                    yield copy


def averages_within(model: nn.Module) -> dict[str, nn.Module]:
    """The averages that a model keeps of a part of itself, by name: torch's AveragedModel or timm's ModelEma."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, AveragedModel) or type(module).__name__.startswith("ModelEma")
    }


def stand_in(model: nn.Module, average: str) -> nn.Module:
    """A module like the model, in which an average has the place of what it is the average of.

    Args:
        model: the model.
        average: the name of the average in it.

    Raises:
        ValueError: the model has no part, or several, that it may be the average of.
    """
    inner: Any = model.get_submodule(average).module
    within = tuple(f"{name}." for name in averages_within(model))
    shapes = _shapes(inner)
    parts = [
        name
        for name, module in model.named_modules()
        if type(module) is type(inner) and _shapes(module) == shapes and not f"{name}.".startswith(within)
    ]
    if len(parts) != 1:
        raise ValueError(
            f"{average!r} may be the average of {' or '.join(map(repr, parts)) or 'nothing'} in {type(model).__name__}"
        )
    return _replaced(model, parts[0], inner)


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in module.named_parameters()}


def _replaced(model: nn.Module, path: str, replacement: Any) -> nn.Module:
    """A shallow copy of a model's tree with another module at a path."""
    copy, (head, _, rest) = nn.Module(), path.partition(".")
    for name, parameter in model.named_parameters(recurse=False):
        copy.register_parameter(name, parameter)
    for name, child in model.named_children():
        if name == head:
            child = _replaced(child, rest, replacement) if rest else replacement
        copy.add_module(name, child)
    return copy
