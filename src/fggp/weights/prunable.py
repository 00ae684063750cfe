"""Which weights of a model can be pruned, what they are called, and where they are kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from fggp.weights.dtensor import is_open_sum, unsharded_for_now

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
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
_EMBEDDING = (nn.Embedding, nn.EmbeddingBag)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_WRAPPER_PARTS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


@dataclass
class Prunable:
    """A weight to be pruned.

    Args:
        name: its plain name in the model, with no prefix from a wrapper; a tied weight's first name.
        parameter: the weight itself.
        owners: (module, attribute, full name) of every place that holds it; several where it is tied.
    """

    name: str
    parameter: nn.Parameter
    owners: list[tuple[nn.Module, str, str]]

    def current(self) -> nn.Parameter | None:
        """The parameter now in this one's place; None if there is none, or no longer one and the same (tied)."""
        module, attribute, _ = self.owners[0]
        first = module._parameters.get(attribute)
        same = all(module._parameters.get(attribute) is first for module, attribute, _ in self.owners[1:])
        if same and unsharded_for_now(self.parameter, first):
            return self.parameter
        return first if same else None


def find(
    model: nn.Module,
    include: Filter | Sequence[Filter] | None = None,
    exclude: Filter | Sequence[Filter] | None = None,
) -> list[Prunable]:
    """List the weights to be pruned, in the model's parameter order, each tied weight once.

    By default those of convolutions and linear layers of any dimension, attention's packed projections and the
    Transformers library's Conv1D; not biases, norms, embeddings, linear weights tied to an embedding, nor what is
    frozen (``requires_grad`` off).

    Args:
        model: any module, wrapped (DataParallel, DDP, ``torch.compile``) or not.
        include: prune only these. A name pattern (``"features.*"``) or a module type (all in and below it, but
            biases) picks from the default weights; where it matches none of them it picks any weights it matches
            (``"embedding.weight"``, ``"*.bias"``, ``nn.LSTM``).
        exclude: leave these alone, by name pattern or module type.

    Raises:
        ValueError: a filter matches nothing, or nothing is left to prune.
    """
    if any(type(m).__name__ == "FullyShardedDataParallel" for m in model.modules()):
        raise ValueError(
            "model is wrapped by FullyShardedDataParallel, which flattens weights and cuts them anywhere: "
            "use torch.distributed.fsdp.fully_shard (FSDP2)"
        )
    weights: dict[int, Prunable] = {}
    default: set[int] = set()
    embedded: set[int] = set()
    above: dict[int, list[nn.Module]] = {}
    for prefix, lineage in _lineages(model):
        module = lineage[-1]
        for attribute, parameter in module._parameters.items():
            if parameter is None or not parameter.requires_grad:
                continue
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise ValueError(f"weight {prefix + attribute!r} has no shape yet: run one batch before you prune")
            key, name = id(parameter), prefix + attribute
            weights.setdefault(key, Prunable(name, parameter, [])).owners.append((module, attribute, name))
            if "bias" not in attribute:
                above.setdefault(key, []).extend(lineage)
            if _is_default(module, attribute):
                default.add(key)
            if isinstance(module, _EMBEDDING):
                embedded.add(key)
    default -= embedded

    if include is None:
        chosen = default
        _warn_parametrized(model)
    else:
        chosen = set()
        for f in _filters("include", include):
            matched = _matches(f, weights, above, "include")
            chosen |= matched & default or matched
    if exclude is not None:
        for f in _filters("exclude", exclude):
            chosen -= _matches(f, weights, above, "exclude")
    # Scalars are no weights (and have the shape of Adam's step counter); an empty tensor has none.
    found = [w for key, w in weights.items() if key in chosen and w.parameter.ndim and w.parameter.numel()]
    for w in found:
        if is_open_sum(w.parameter):
            raise ValueError(f"weight {w.name!r} is a DTensor of summands (Partial): only parts can be pruned")
        if not w.parameter.is_floating_point():
            raise ValueError(f"weight {w.name!r} is {w.parameter.dtype}: only real floating-point weights are pruned")
    if not found:
        raise ValueError(
            f"model={type(model).__name__} has nothing to prune"
            + (f" with include={include!r}, exclude={exclude!r}" if include or exclude else "")
            + ": no convolution or linear weight that requires a gradient"
        )
    return found


def check_optimizer(weights: Iterable[Prunable], optimizer: torch.optim.Optimizer) -> None:
    """Refuse an optimizer that cannot be followed or does not hold every weight."""
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError("optimizer=LBFGS evaluates the loss several times a step: no one gradient belongs to a step")
    # Wrappers that inherit from Optimizer without initialising it have the methods but no hooks to add to.
    if not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        raise TypeError(
            f"optimizer={type(optimizer).__name__} has no step hooks: pass the torch.optim.Optimizer that it wraps"
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [w.name for w in weights if id(w.parameter) not in held]
    if missing:
        raise ValueError(
            f"optimizer={type(optimizer).__name__} does not hold {listing(missing)}: give it all weights to be "
            f"pruned, or leave these out with exclude="
        )


def check_attached(weights: Iterable[Prunable], model: nn.Module) -> None:
    """Refuse weights whose module has been taken out of the model, or replaced in it by another.

    Raises:
        RuntimeError: there are such weights.
    """
    present = {id(module) for _, module in named_modules(model)}
    gone = [w.name for w in weights if any(id(module) not in present for module, _, _ in w.owners)]
    if gone:
        raise RuntimeError(
            f"the module of {listing(gone)} is no longer part of the model: make optimizer and Pruner anew "
            f"(init='keep' goes on with the zeros)"
        )


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules, each once, with the prefix of their parameters' names, wrappers' parts of it left out."""
    for prefix, lineage in _lineages(model):
        yield prefix, lineage[-1]


def is_wrapped(module: nn.Module | None, child: str) -> bool:
    """Whether a child is what the module wraps: its name is then no part of plain names.

    Args:
        module: None where only the name is known.
        child: the child's name in the module.
    """
    return child in _WRAPPER_PARTS or (child == "module" and isinstance(module, _WRAPPERS))


def _lineages(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    """All modules, each once, as its prefix and the modules from the model down to it."""

    def walk(prefix: str, lineage: tuple[nn.Module, ...]) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
        module = lineage[-1]
        if id(module) in seen:
            return
        seen.add(id(module))
        yield prefix, lineage
        for name, child in module._modules.items():
            if child is not None:
                yield from walk(prefix if is_wrapped(module, name) else f"{prefix}{name}.", (*lineage, child))

    seen: set[int] = set()
    yield from walk("", (model,))


def _is_default(module: nn.Module, attribute: str) -> bool:
    if isinstance(module, nn.MultiheadAttention):
        return attribute in _ATTENTION
    # fully_shard gives modules classes of their own, derived from these.
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


def _matches(f: Filter, weights: dict[int, Prunable], above: dict[int, list[nn.Module]], argument: str) -> set[int]:
    if isinstance(f, str):
        matched = {key for key, w in weights.items() if any(fnmatchcase(name, f) for *_, name in w.owners)}
    else:
        matched = {key for key, modules in above.items() if any(isinstance(module, f) for module in modules)}
    if not matched:
        names = listing([w.name for w in weights.values()]) if weights else "nothing"
        raise ValueError(f"{argument}={f!r} matches no trainable weight; the model has {names}")
    return matched


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
            stacklevel=4,
        )


def listing(names: Sequence[str], most: int = 4) -> str:
    """The names for an error message: the first few, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
