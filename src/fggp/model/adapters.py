"""Low-rank and other adapters: small trainable weights beside a frozen one, which are not pruned by default."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import Tensor, nn

_LORA = re.compile(r"(^|[._])lora([._]|$)", re.IGNORECASE)
# The children by which modules of the peft library hold what they adapt, or full copies of it.
_ADAPTED = ("base_layer", "base_model", "model", "original_module", "modules_to_save")


def is_adapter(lineage: Sequence[nn.Module], name: str) -> bool:
    """Whether a parameter is known to be an adapter's, by the library that made it or by its name.

    It is one if it belongs to a module of ``peft.tuners`` and not to what this adapts; or if "lora" stands between dots
    or underscores of its full name (``q.lora_a.weight``).

    Args:
        lineage: the modules from the model down to the one that holds the parameter.
        name: the parameter's full name.
    """
    if _LORA.search(name):
        return True
    inside = False
    for parent, module in zip((None, *lineage), lineage, strict=False):
        if parent is not None and _is_of_peft(parent) and any(parent._modules.get(c) is module for c in _ADAPTED):
            inside = False
        if _is_of_peft(module, "peft.tuners"):
            inside = True
    return inside


def _is_of_peft(module: nn.Module, package: str = "peft") -> bool:
    # Not type(module) alone: fully_shard replaces a module's class by a subclass of it.
    return any(f"{kind.__module__}.".startswith(f"{package}.") for kind in type(module).__mro__)


def pairs_beside_a_frozen_matrix(module: nn.Module) -> list[nn.Parameter]:
    """The trainable matrices of a module that is shaped like a layer with low-rank adapters.

    It is if its parameters are one frozen matrix [out, in], trainable matrices that form pairs [r, in] and [out, r]
    with r < in, out (or transposed), and vectors. Convolutions count by their first two dimensions. The frozen matrix
    may also be a quantised layer, of which only ``in_features`` and ``out_features`` are read.

    A small network of one frozen layer with an autoencoder behind it has the same shapes: name its layers with
    ``include=``.

    Args:
        module: any.

    Returns:
        The matrices of the pairs; nothing if the module is shaped otherwise.
    """
    frozen: list[tuple[int, ...]] = []
    trainable: list[nn.Parameter] = []
    for p in module.parameters():
        if isinstance(p, nn.parameter.UninitializedParameter):
            return []
        if p.ndim >= 2 and p.requires_grad:
            trainable.append(p)
        elif p.ndim >= 2:
            frozen.append(tuple(p.shape[:2]))
            if len(frozen) > 1:
                return []
    if not trainable or len(trainable) % 2:
        return []
    bases = set(_declared_shapes(module)) | set(frozen)
    fits = any(_form_pairs(trainable, *shape) for base in bases for shape in (base, base[::-1]))
    return trainable if fits else []


def _declared_shapes(module: nn.Module) -> Iterator[tuple[int, int]]:
    """(out, in) of the layers in a module that have tensors of their own, none of which is a trainable matrix."""
    for layer in module.modules():
        out, into = getattr(layer, "out_features", None), getattr(layer, "in_features", None)
        own = [t for t in (*layer._parameters.values(), *layer._buffers.values()) if t is not None]
        if type(out) is int and type(into) is int and own and not any(t.requires_grad and t.ndim >= 2 for t in own):
            yield out, into


def _form_pairs(matrices: Sequence[Tensor], out: int, into: int) -> bool:
    """Whether these are as many [r, into] as [out, r] for each rank r, all ranks below both."""
    down: Counter[int] = Counter()
    up: Counter[int] = Counter()
    for m in matrices:
        first, second = m.shape[:2]
        if second == into:
            down[first] += 1
        elif first == out:
            up[second] += 1
        else:
            return False
    return down == up and max(down) < min(out, into)
