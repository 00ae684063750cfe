"""The tensors of a model's state dict by plain names, and checks that a small file can hold them and can be loaded
into them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fggp.module_names import is_wrapped
from fggp.ship.file.dtypes import CODE_OF_DTYPE


@dataclass(frozen=True)
class ModelTensor:
    """A tensor of a model's state dict.

    Args:
        key: its name there.
        tensor: it.
        fixed: whether it says what others mean, so that only an equal one can be loaded.
    """

    key: str
    tensor: Tensor
    fixed: bool = False

    @property
    def memory_key(self) -> tuple[Any, ...] | None:
        """Equal for tied tensors only; None for an empty tensor, which shares no memory."""
        t = self.tensor
        return (t.device, t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else None


def model_tensors(model: nn.Module, state: Mapping[str, Any]) -> dict[str, ModelTensor]:
    """List the tensors of a model's state dict by plain names: without the parts that wrappers add.

    Args:
        model: the model, wrapped or not.
        state: its state dict.

    Raises:
        ValueError, TypeError, NotImplementedError: a small file cannot hold one of the entries.
    """
    fixed = {
        f"{path}.{name}".lstrip(".")
        for path, module in model.named_modules(remove_duplicate=False)
        for name in vars(module).get("fixed_buffers", ())
    }
    tensors: dict[str, ModelTensor] = {}
    for key, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{key!r} in the state dict is of type {type(tensor).__name__}: a small file holds tensors only, and "
                f"no extra state (get_extra_state)"
            )
        if hasattr(type(tensor), "__tensor_flatten__"):
            raise NotImplementedError(f"{key!r} is a {type(tensor).__name__}: only plain tensors can be stored")
        if nn.parameter.is_lazy(tensor) or tensor.is_meta:
            raise ValueError(f"{key!r} has no values yet: run one batch, or materialise it (to_empty), first")
        if tensor.is_conj() or tensor.is_neg():
            raise ValueError(f"{key!r} is conjugated or negated lazily: write it out (resolve_conj, resolve_neg) first")
        if tensor.layout != torch.strided or tensor.dtype not in CODE_OF_DTYPE:
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise ValueError(f"{key!r} is {kind}, for which safetensors has no name")
        name = _plain_name(model, key)
        if name in tensors:
            raise ValueError(f"{key!r} and {tensors[name].key!r} have the same name without their wrappers' prefixes")
        tensors[name] = ModelTensor(key, tensor, key in fixed)
    return tensors


def _plain_name(model: nn.Module, key: str) -> str:
    """A state-dict key without wrappers' parts."""
    module: nn.Module | None = model
    kept = []
    for part in key.split("."):
        if not is_wrapped(module, part):
            kept.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(kept)


def check_writable(tensors: Mapping[str, ModelTensor]) -> None:
    """Refuse tensors that torch cannot write to, before any tensor is written.

    Raises:
        ValueError: there is one.
    """
    for t in tensors.values():
        strides = zip(t.tensor.stride(), t.tensor.shape, strict=True)
        if any(stride == 0 and size > 1 for stride, size in strides):
            raise ValueError(f"{t.key!r} is expanded, so its elements share memory: nothing can be loaded into it")
        if t.tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"{t.key!r} was made in torch.inference_mode(): it can be loaded into only there")
