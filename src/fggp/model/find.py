"""Which weights of a model can be pruned, and the filters that choose among them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from fggp.model.kinds import Kind, Known, known_parameters
from fggp.text import listing
from fggp.weights.dtensor import is_partial_sum
from fggp.weights.prunable import Prunable

Filter = str | type[nn.Module]
"""A shell-style pattern of weight names, or a module type."""


def find_prunable(
    model: nn.Module,
    include: Filter | Sequence[Filter] | None = None,
    exclude: Filter | Sequence[Filter] | None = None,
) -> list[Prunable]:
    """List the weights to be pruned, in the model's parameter order, each tied weight once.

    By default these are

    - the weights of convolutions and linear layers of any dimension, of attention's packed projections and of the
      Transformers library's Conv1D,
    - weights that stack the matrices of experts (`fggp.model.experts.stacked_matrices` states the rule),
    - and of such layers under ``torch.nn.utils.weight_norm``, old or new, the direction v.

    Biases, norms, embeddings, linear weights tied to an embedding, recurrent weights, weights under other
    parametrizations, adapters (`fggp.model.adapters`) and frozen weights (``requires_grad`` off) are left alone.

    Args:
        model: any module, wrapped (DataParallel, DDP, ``torch.compile``) or not.
        include: prune only these. A name pattern (``"features.*"``) or a module type (every weight in and below
            such a module, except biases) selects from the default weights. If it matches none of them, it selects
            all weights it matches (``"embedding.weight"``, ``"*.bias"``, ``nn.LSTM``). The direction of a weight norm
            also has the name of the weight that it is a part of.
        exclude: leave these alone, by name pattern or module type.

    Raises:
        ValueError: a filter matches nothing, no weight remains to prune, or a weight cannot be pruned (it has no
            shape yet, is no real floating-point tensor, or is a DTensor of partial sums or of cut rows under weight
            norm).
        TypeError: a filter is neither a pattern nor a module type.
    """
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise ValueError(
            "model is wrapped by FullyShardedDataParallel, which flattens weights and cuts them anywhere: "
            "use torch.distributed.fsdp.fully_shard (FSDP2)"
        )
    candidates = _Candidates([k for k in known_parameters(model) if k.kind is not Kind.FROZEN])
    if include is None:
        chosen = candidates.default
        _warn_computed(candidates.known)
    else:
        chosen = set()
        for f in _filters("include", include):
            matched = candidates.matching(f, "include")
            chosen |= matched & candidates.default or matched
    if exclude is not None:
        for f in _filters("exclude", exclude):
            chosen = chosen - candidates.matching(f, "exclude")
    weights = [k.weight for i, k in enumerate(candidates.known) if i in chosen]
    # A scalar has the shape of Adam's step counter, which masking would zero; an empty tensor has no weights.
    found = [w for w in weights if w.parameter.ndim and w.parameter.numel()]
    for w in found:
        _check_kind(w)
    if not found:
        raise ValueError(_nothing_to_prune(model, candidates.known, include, exclude))
    return found


@dataclass
class _Candidates:
    """The trainable weights of a model, in its parameter order; sets hold indices of them."""

    known: list[Known]

    @property
    def default(self) -> set[int]:
        """Those that are pruned if no filter says otherwise."""
        return {i for i, k in enumerate(self.known) if k.kind is Kind.DEFAULT}

    def matching(self, f: Filter, argument: str) -> set[int]:
        """Those that a filter matches.

        Raises:
            ValueError: there are none.
        """
        if isinstance(f, str):
            matched = {i for i, k in enumerate(self.known) if any(fnmatchcase(name, f) for name in k.names)}
        else:
            matched = {i for i, k in enumerate(self.known) if any(isinstance(m, f) for m in k.modules)}
        if not matched:
            names = listing([k.weight.name for k in self.known]) if self.known else "nothing"
            raise ValueError(f"{argument}={f!r} matches no trainable weight; the model has {names}")
        return matched


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
    if weight.rows_are_cut:
        rows = "all of it" if weight.norm_dim == -1 else f"each index of dimension {weight.norm_dim}"
        raise ValueError(
            f"weight {weight.name!r} is the direction of a weight norm, which has a norm for {rows}, and its shards "
            f"cut that: shard it along the dimension of its norms, or leave it out with exclude="
        )


def _nothing_to_prune(model: nn.Module, known: Sequence[Known], include: object, exclude: object) -> str:
    head = f"model={type(model).__name__} has nothing to prune"
    adapters = [k.weight.name for k in known if k.kind is Kind.ADAPTER]
    if include is None and exclude is None and adapters:
        return (
            f"{head}: its only trainable matrices are adapters, {listing(adapters)}. Merge them and train the weights "
            f"that they adapt (requires_grad on), or prune the adapters themselves with include={adapters[0]!r}, …"
        )
    given = f" with include={include!r}, exclude={exclude!r}" if include or exclude else ""
    return f"{head}{given}: no convolution or linear weight that requires a gradient"


def _filters(argument: str, given: Filter | Sequence[Filter]) -> list[Filter]:
    filters = list(given) if isinstance(given, Iterable) and not isinstance(given, (str, type)) else [given]
    for f in filters:
        if not (isinstance(f, str) or (isinstance(f, type) and issubclass(f, nn.Module))):
            raise TypeError(f"{argument}={f!r} must be a pattern of weight names or a module type")
    return filters


def _warn_computed(known: Sequence[Known]) -> None:
    computed = [f"{k.weight.name!r} ({k.by})" for k in known if k.kind is Kind.COMPUTED]
    if computed:
        more = f" and {len(computed) - 4} more" if len(computed) > 4 else ""
        warnings.warn(
            f"{', '.join(computed[:4])}{more} will not be pruned: the weight that is used is computed from it at each "
            f"forward pass, and need not be zero where it is",
            UserWarning,
            stacklevel=4,  # the caller of Pruner
        )
