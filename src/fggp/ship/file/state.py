"""A model's tensors as a small file knows them: by plain names, whether they can be stored, whether loaded into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fggp.ship.file.container import CODES
from fggp.weights.prunable import is_wrapped


@dataclass(frozen=True)
class Own:
    """A tensor of a model's state dict, and its key there."""

    key: str
    tensor: Tensor

    @property
    def place(self) -> tuple[Any, ...] | None:
        """The same for tied tensors, and for no others; None where there is nothing to share."""
        t = self.tensor
        return (t.device, t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else None


def own_tensors(model: nn.Module, state: Mapping[str, Any]) -> dict[str, Own]:
    """List a model's state dict by plain names.

    Raises:
        ValueError, TypeError, NotImplementedError: a small file cannot hold it all.
    """
    own: dict[str, Own] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{key!r} in the state dict is of type {type(tensor).__name__}: a small file holds tensors only, so no "
                f"extra state (get_extra_state)"
            )
        if isinstance(tensor, DTensor) or hasattr(type(tensor), "__tensor_flatten__"):
            raise NotImplementedError(f"{key!r} is a {type(tensor).__name__}: only plain tensors can be stored")
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise ValueError(f"{key!r} has no values yet: run one batch, or materialise it (to_empty), first")
        if tensor.is_conj() or tensor.is_neg():
            raise ValueError(
                f"{key!r} is conjugated or negated lazily: make it a tensor of its own (resolve_conj) first"
            )
        if tensor.layout != torch.strided or tensor.dtype not in CODES:
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise ValueError(f"{key!r} is {kind}, for which safetensors has no name")
        name = _plain_name(model, key)
        if name in own:
            raise ValueError(f"{key!r} and {own[name].key!r} have the same name without their wrappers' prefixes")
        own[name] = Own(key, tensor)
    return own


def _plain_name(model: nn.Module, key: str) -> str:
    """A state-dict key without wrappers' parts."""
    module: nn.Module | None = model
    kept = []
    for part in key.split("."):
        if not is_wrapped(module, part):
            kept.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(kept)


def check_writable(own: Mapping[str, Own]) -> None:
    """Refuse what torch would refuse to write to halfway through."""
    for o in own.values():
        strides = zip(o.tensor.stride(), o.tensor.shape, strict=True)
        if any(stride == 0 and n > 1 for stride, n in strides):
            raise ValueError(f"{o.key!r} is expanded, its elements share memory: nothing can be loaded into it")
        if o.tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"{o.key!r} was made in torch.inference_mode(): it can be loaded into only there")
