"""Copies of a model, such as running averages of its weights: where they hold what the model holds."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from fggp.module_names import named_modules
from fggp.text import listing
from fggp.weights.dtensor import is_dtensor
from fggp.weights.prunable import Prunable


def parameters_like(copy: nn.Module, weights: Sequence[Prunable]) -> dict[str, Tensor]:
    """A copy's tensors for some weights, by the weights' names; see `places_like`."""
    parameters = {name: module._parameters[attribute] for module, attribute, name in places_like(copy, weights)}
    return {name: p for name, p in parameters.items() if p is not None}


def places_like(copy: nn.Module, weights: Sequence[Prunable]) -> list[tuple[nn.Module, str, str]]:
    """Where a copy of the model holds some weights: module, attribute and the weight's name.

    The copy may hold the model as an attribute ``module``, as torch's AveragedModel and timm's ModelEma do.

    Args:
        copy: the copy.
        weights: the model's weights.

    Raises:
        TypeError: the copy is no module.
        ValueError: it lacks a weight, or has one of another shape; the message names it.
    """
    if not isinstance(copy, nn.Module):
        raise TypeError(f"copy={copy!r:.80} must be a torch.nn.Module: a copy of the model, or one that holds it")
    candidates = [copy]
    while isinstance(inner := getattr(candidates[-1], "module", None), nn.Module):
        candidates.append(inner)
    best: dict[str, tuple[nn.Module, str]] = {}
    for candidate in reversed(candidates):  # innermost first: its names have no prefix
        named = {
            prefix + attribute: (module, attribute)
            for prefix, module in named_modules(candidate)
            for attribute, parameter in module._parameters.items()
            if parameter is not None
        }
        found = {w.name: named[w.name] for w in weights if w.name in named}
        if len(found) > len(best):
            best = found
    missing = [w.name for w in weights if w.name not in best]
    if missing:
        raise ValueError(f"copy={type(copy).__name__} has no weight {listing(missing)}: it must be a copy of the model")
    for w in weights:
        module, attribute = best[w.name]
        if is_dtensor(w.parameter) != is_dtensor(getattr(module, attribute)):
            raise ValueError(f"weight {w.name!r} of copy={type(copy).__name__} must be sharded as the model's is")
        shape = getattr(module, attribute).shape
        if shape != w.parameter.shape:
            raise ValueError(
                f"weight {w.name!r} of copy={type(copy).__name__} has shape {list(shape)}; the model's has "
                f"{list(w.parameter.shape)}"
            )
    return [(*place, name) for name, place in best.items()]
