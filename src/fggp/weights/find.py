"""Which weights of a model can be pruned, and the filters that choose among them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from fggp.module_names import lineages, named_modules
from fggp.text import listing
from fggp.weights.dtensor import is_partial_sum
from fggp.weights.prunable import Prunable

Filter = str | type[nn.Module]
"""A shell-style pattern of weight names, or a module type."""

_CONV_LINEAR = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_ATTENTION_WEIGHTS = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_EMBEDDING = (nn.Embedding, nn.EmbeddingBag)


def find_prunable(
    model: nn.Module,
    include: Filter | Sequence[Filter] | None = None,
    exclude: Filter | Sequence[Filter] | None = None,
) -> list[Prunable]:
    """List the weights to be pruned, in the model's parameter order, each tied weight once.

    By default these are the weights of convolutions and linear layers of any dimension, of attention's packed
    projections and of the Transformers library's Conv1D. Biases, norms, embeddings, linear weights tied to an
    embedding, and frozen weights (``requires_grad`` off) are left alone.

    Args:
        model: any module, wrapped (DataParallel, DDP, ``torch.compile``) or not.
        include: prune only these. A name pattern (``"features.*"``) or a module type (every weight in and below
            such a module, except biases) selects from the default weights. If it matches none of them, it selects
            all weights it matches (``"embedding.weight"``, ``"*.bias"``, ``nn.LSTM``).
        exclude: leave these alone, by name pattern or module type.

    Raises:
        ValueError: a filter matches nothing, no weight remains to prune, or a weight cannot be pruned (it has no
            shape yet, is no real floating-point tensor, or is a DTensor of partial sums).
        TypeError: a filter is neither a pattern nor a module type.
    """
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise ValueError(
            "model is wrapped by FullyShardedDataParallel, which flattens weights and cuts them anywhere: "
            "use torch.distributed.fsdp.fully_shard (FSDP2)"
        )
    candidates = _candidates(model)
    if include is None:
        chosen = candidates.default
        _warn_parametrized(model)
    else:
        chosen = set()
        for f in _filters("include", include):
            matched = candidates.matching(f, "include")
            chosen |= matched & candidates.default or matched
    if exclude is not None:
        for f in _filters("exclude", exclude):
            chosen = chosen - candidates.matching(f, "exclude")
    # A scalar has the shape of Adam's step counter, which masking would zero; an empty tensor has no weights.
    found = [w for key, w in candidates.weights.items() if key in chosen and w.parameter.ndim and w.parameter.numel()]
    for w in found:
        _check_kind(w)
    if not found:
        raise ValueError(
            f"model={type(model).__name__} has nothing to prune"
            + (f" with include={include!r}, exclude={exclude!r}" if include or exclude else "")
            + ": no convolution or linear weight that requires a gradient"
        )
    return found


@dataclass
class _Candidates:
    """The trainable weights of a model, by the id of their parameter.

    Args:
        weights: all of them, in the model's parameter order.
        default: those that are pruned if no filter says otherwise.
        modules: for each the modules it lies in, from the model down; a bias has none.
    """

    weights: dict[int, Prunable]
    default: set[int]
    modules: dict[int, list[nn.Module]]

    def matching(self, f: Filter, argument: str) -> set[int]:
        """The ids that a filter matches.

        Raises:
            ValueError: there are none.
        """
        if isinstance(f, str):
            matched = {key for key, w in self.weights.items() if any(fnmatchcase(name, f) for *_, name in w.owners)}
        else:
            matched = {key for key, modules in self.modules.items() if any(isinstance(m, f) for m in modules)}
        if not matched:
            names = listing([w.name for w in self.weights.values()]) if self.weights else "nothing"
            raise ValueError(f"{argument}={f!r} matches no trainable weight; the model has {names}")
        return matched


def _candidates(model: nn.Module) -> _Candidates:
    found = _Candidates({}, set(), {})
    embedded: set[int] = set()
    for prefix, lineage in lineages(model):
        module = lineage[-1]
        for attribute, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(f"weight {prefix + attribute!r} has no shape yet: run one batch before you prune")
            key, name = id(parameter), prefix + attribute
            found.weights.setdefault(key, Prunable(name, parameter, [])).owners.append((module, attribute, name))
            if "bias" not in attribute:
                found.modules.setdefault(key, []).extend(lineage)
            if _is_default(module, attribute):
                found.default.add(key)
            if isinstance(module, _EMBEDDING):
                embedded.add(key)
    found.default -= embedded
    return found


def _check_kind(weight: Prunable) -> None:
    if is_partial_sum(weight.parameter):
        raise ValueError(
            f"weight {weight.name!r} is a DTensor with a Partial placement: only sharded and replicated weights can "
            f"be pruned"
        )
    if not weight.parameter.is_floating_point():
        raise ValueError(
            f"weight {weight.name!r} is {weight.parameter.dtype}: only real floating-point weights are pruned"
        )


def _is_default(module: nn.Module, attribute: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return attribute in _ATTENTION_WEIGHTS
    # Not type(module) alone: fully_shard replaces a module's class by a subclass of it.
    transformers_conv1d = any(
        kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.") for kind in type(module).__mro__
    )
    return attribute == "weight" and (isinstance(module, _CONV_LINEAR) or transformers_conv1d)


def _filters(argument: str, given: Filter | Sequence[Filter]) -> list[Filter]:
    filters = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, type)) else [given]
    for f in filters:
        if not (isinstance(f, str) or (isinstance(f, type) and issubclass(f, nn.Module))):
            raise TypeError(f"{argument}={f!r} must be a pattern of weight names or a module type")
    return filters


def _warn_parametrized(model: nn.Module) -> None:
    computed = [
        prefix + "weight"
        for prefix, module in named_modules(model)
        if isinstance(module, _CONV_LINEAR) and "weight" not in module._parameters
    ]
    if computed:
        warnings.warn(
            f"{listing(computed)} will not be pruned: computed at each forward pass (a parametrization, weight norm), "
            f"not a parameter",
            UserWarning,
            stacklevel=4,  # the caller of Pruner
        )
