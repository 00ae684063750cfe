"""What every parameter of a model is: a weight that is pruned by default, or one that is not and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from torch import nn

from fggp.model.adapters import is_adapter, pairs_beside_a_frozen_matrix
from fggp.model.experts import stacked_matrices
from fggp.model.parametrized import computed_from
from fggp.module_names import lineages
from fggp.weights.prunable import Prunable


class Kind(Enum):
    """What a parameter is; the values are read by people."""

    DEFAULT = "pruned by default"
    FROZEN = "frozen"
    ADAPTER = "adapters"
    EMBEDDING = "embeddings"
    RECURRENT = "recurrent"
    COMPUTED = "under a parametrization"
    VECTOR = "biases, norms, other vectors"
    OTHER = "parameters of other modules"


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
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@dataclass
class Known:
    """A parameter and what it is.

    Args:
        weight: the parameter with all places that hold it.
        kind: what it is.
        by: what computes a weight from it, if something does and it is not the direction of a weight norm.
        names: its full names, and for the direction of a weight norm those of the weight.
        modules: the modules it lies in, from the model down; none for a bias and for the length of a weight norm.
    """

    weight: Prunable
    kind: Kind
    by: str = ""
    names: list[str] = field(default_factory=list)
    modules: list[nn.Module] = field(default_factory=list)


# A tied parameter is the first of these that it is in any place.
_ORDER = (
    Kind.FROZEN,
    Kind.ADAPTER,
    Kind.EMBEDDING,
    Kind.COMPUTED,
    Kind.DEFAULT,
    Kind.RECURRENT,
    Kind.VECTOR,
    Kind.OTHER,
)


def known_parameters(model: nn.Module) -> list[Known]:
    """All parameters of a model, in its order, each tied one once.

    Args:
        model: any module, wrapped or not.

    Raises:
        ValueError: a trainable parameter has no shape yet.
    """
    found: dict[int, Known] = {}
    adapters: set[int] = set()
    for prefix, lineage in lineages(model):
        module = lineage[-1]
        adapters.update(map(id, pairs_beside_a_frozen_matrix(module)))
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                known = _of_place(lineage, attribute, prefix + attribute, parameter)
                if id(parameter) in found:
                    _merge(found[id(parameter)], known)
                else:
                    found[id(parameter)] = known
    for key in adapters & found.keys():
        found[key].kind = Kind.ADAPTER
    return list(found.values())


def _of_place(lineage: Sequence[nn.Module], attribute: str, name: str, parameter: nn.Parameter) -> Known:
    """What a parameter is in one place of the model."""
    module = lineage[-1]
    weight = Prunable(name, parameter, [(module, attribute, name)])
    known = Known(weight, Kind.FROZEN, names=[name])
    if not parameter.requires_grad:
        return known
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise ValueError(f"weight {name!r} has no shape yet: run one batch before you prune")
    user, used_as = module, attribute  # the module that uses the weight, and the weight's name there
    computed = computed_from(lineage, attribute)
    if computed is not None:
        user, used_as = computed.module, computed.weight
        weight.norm_dim = computed.norm_dim
        if computed.norm_dim is None:
            known.by = computed.by
        else:
            known.names.append(name.removesuffix(computed.suffix) + used_as)
    if "bias" not in used_as and known.by != "weight norm":
        known.modules = list(lineage)
    known.kind = _kind(lineage, user, used_as, name, known)
    return known


def _kind(lineage: Sequence[nn.Module], user: nn.Module, used_as: str, name: str, known: Known) -> Kind:
    parameter = known.weight.parameter
    if is_adapter(lineage, name):
        return Kind.ADAPTER
    if isinstance(user, _EMBEDDING):
        return Kind.EMBEDDING
    is_vector = sum(n > 1 for n in parameter.shape) <= 1
    if known.by == "weight norm":  # its lengths g
        return Kind.VECTOR
    if known.by:
        return Kind.COMPUTED if _is_default(user, used_as) or not is_vector else Kind.VECTOR
    if _is_default(user, used_as):
        return Kind.DEFAULT
    if isinstance(user, _RECURRENT) and not is_vector:
        return Kind.RECURRENT
    matrices = 0 if known.weight.norm_dim is not None else stacked_matrices(user, used_as, name, parameter)
    if matrices:
        known.weight.matrices = matrices
        return Kind.DEFAULT
    is_norm = any("norm" in kind.__name__.lower() for kind in type(user).__mro__)
    return Kind.VECTOR if is_vector or is_norm or "bias" in used_as else Kind.OTHER


def _is_default(module: nn.Module, attribute: str) -> bool:
    """Whether this is the weight of a convolution or a linear layer, or a packed projection of attention."""
    if isinstance(module, nn.MultiheadAttention):
        return attribute in _ATTENTION_WEIGHTS
    # Not type(module) alone: fully_shard replaces a module's class by a subclass of it.
    transformers_conv1d = any(
        kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.") for kind in type(module).__mro__
    )
    return attribute == "weight" and (isinstance(module, _CONV_LINEAR) or transformers_conv1d)


def _merge(first: Known, also: Known) -> None:
    """Add another place that holds the same parameter."""
    first.weight.owners += also.weight.owners
    first.names += also.names
    first.modules += also.modules
    dims = {first.weight.norm_dim, also.weight.norm_dim} - {None}
    if len(dims) > 1:  # two weight norms divide it by the norms of different rows
        first.kind, first.by = Kind.COMPUTED, "two weight norms"
        return
    first.weight.norm_dim = next(iter(dims), None)
    first.weight.matrices = max(first.weight.matrices, also.weight.matrices)
    if _ORDER.index(also.kind) < _ORDER.index(first.kind):
        first.kind, first.by = also.kind, also.by
