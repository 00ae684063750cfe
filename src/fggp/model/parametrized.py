"""Parameters from which a module computes a weight: weight norm, other parametrizations, hooks of torch.nn.utils."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm


@dataclass(frozen=True)
class Computed:
    """The weight that a parameter is a part of.

    Args:
        module: the module that the weight belongs to.
        weight: the weight's name in that module.
        by: what computes it, for messages: ``"weight norm"``, or the name of a class.
        suffix: the end of the parameter's name that ``weight`` replaces to give the weight's name in the model.
        norm_dim: `Prunable.norm_dim` if the parameter is the direction of a weight norm; else None.
    """

    module: nn.Module
    weight: str
    by: str
    suffix: str
    norm_dim: int | None = None


def computed_from(lineage: Sequence[nn.Module], attribute: str) -> Computed | None:
    """The weight that a parameter is a part of; None if the parameter is used as it is.

    Args:
        lineage: the modules from the model down to the one that holds the parameter.
        attribute: the parameter's name there.
    """
    module = lineage[-1]
    if isinstance(module, ParametrizationList) and len(lineage) >= 3:
        *_, host, table, _ = lineage
        weight = next(name for name, child in table._modules.items() if child is module)
        steps = list(module)
        by = ", ".join("weight norm" if isinstance(s, _WeightNorm) else type(s).__name__.strip("_") for s in steps)
        direction = module._parameters.get("original1") if attribute == "original1" and len(steps) == 1 else None
        dim = None
        if direction is not None and isinstance(steps[0], _WeightNorm):
            dim = _plain_dim(steps[0].dim, direction.ndim)
        return Computed(host, weight, by, f"parametrizations.{weight}.{attribute}", dim)
    for hook in module._forward_pre_hooks.values():
        # Weight norm and spectral norm of before the parametrizations, and torch.nn.utils.prune.
        name = str(getattr(hook, "name", None) or getattr(hook, "_tensor_name", ""))
        if attribute not in (f"{name}_g", f"{name}_v", f"{name}_orig"):
            continue
        if isinstance(hook, WeightNorm):
            v = module._parameters[f"{name}_v"]
            dim = _plain_dim(hook.dim, v.ndim) if attribute.endswith("_v") and v is not None else None
            return Computed(module, name, "weight norm", attribute, dim)
        if attribute.endswith("_orig"):
            return Computed(module, name, type(hook).__name__, attribute)
    return None


def _plain_dim(dim: int, ndim: int) -> int:
    """A dimension of `torch._weight_norm`, to which −1 is no dimension: there is one norm then, of the whole tensor."""
    return dim if dim == -1 else dim % ndim
