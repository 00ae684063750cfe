"""`fggp.save`: which tensors of a model are stored, and how they are coded. docs/small-file.md describes the bytes."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fggp import registry
from fggp.atomic import atomic_write
from fggp.ship.file import container, gaps
from fggp.ship.file.dtypes import CODE_OF_DTYPE, INTEGER_OF_SIZE, ROUNDABLE
from fggp.ship.file.state import ModelTensor, model_tensors

HEADER_BYTES_IF_SPARSE = 160
"""Header bytes of a sparse tensor beyond those of a dense one, names not counted: an entry and a line of metadata."""


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    values: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a model's state dict as a small file, which stores only the non-zero values of mostly zero tensors.

    Without ``values`` the file is lossless: `load` restores the state dict to the bit, −0 and NaN included. A tensor,
    whichever it is, is stored sparse where that is smaller. Tied tensors are stored once. Names have no prefix from a
    wrapper (DataParallel, DDP, ``torch.compile``), so the file fits the wrapped and the bare model.

    If a Pruner pruned the model, the metadata say how far it got: ``pruning-method``, ``-target``, ``-reached``,
    ``-step`` and ``-coverage``.

    Args:
        model: the model, on any device.
        path: the file. It is replaced in one step: a crash leaves the old file or the new one, at worst with a
            ``.partial`` beside it.
        values: ``torch.bfloat16`` rounds the float32 and float64 values of tensors that are stored sparse. Tensors
            that are stored dense (biases, norms, all of an unpruned model) are never rounded.
        metadata: texts of your own by name, such as the names of the classes, for readers of the file:
            ``safetensors.safe_open(path, "pt").metadata()`` returns them among the file's own.

    Raises:
        ValueError, TypeError, NotImplementedError: an argument is wrong, or the file cannot hold a tensor of the model;
            the message names it, and nothing is written.

    Warns:
        UserWarning: the model's pruning did not reach its target, or pruned weights are not zero.
    """
    if values not in (None, torch.bfloat16):
        raise ValueError(f"values={values!r} must be torch.bfloat16, or left out to keep every bit")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r:.80} must be a torch.nn.Module: save(model, path)")
    texts = {**registry.certificate(model), **_checked_metadata(metadata or {})}
    for message in registry.complaints(model):
        warnings.warn(f"fggp.save: {message}", UserWarning, stacklevel=2)
    coding, pieces = _encoded(model_tensors(model, model.state_dict()), values)
    with atomic_write(Path(path)) as file:
        file.writelines(container.encode({**texts, **coding}, pieces))


def _checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """A copy of the caller's metadata; refused if a reader would take them for the file's own, or for damage."""
    for name, text in metadata.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"metadata={{{name!r}: {text!r:.40}}} must be texts by name: use json.dumps")
        if ":" in name or name == "fggp":
            raise ValueError(
                f"metadata has the name {name!r}, which is reserved for the file: use a name without ':' other than "
                f"'fggp'"
            )
    size = len(json.dumps(dict(metadata)))
    if size > container.CALLER_METADATA_MAX:
        raise ValueError(f"metadata takes {size:,} bytes; it must be {container.CALLER_METADATA_MAX:,} at most")
    return dict(metadata)


@torch.no_grad()
def _encoded(
    tensors: Mapping[str, ModelTensor], values: torch.dtype | None
) -> tuple[dict[str, str], dict[str, Tensor]]:
    """The metadata that say how tensors are coded, and the contiguous tensors to write by name.

    Args:
        tensors: the model's tensors by plain name.
        values: the dtype to round the values of sparse tensors to; None: none.
    """
    metadata: dict[str, str] = {}
    pieces: dict[str, Tensor] = {}
    first_name: dict[Any, str] = {}
    for name, tensor in tensors.items():
        key = tensor.memory_key
        if key in first_name:
            metadata[f"shared:{name}"] = first_name[key]
            continue
        if key is not None:
            first_name[key] = name
        dense = tensor.tensor.detach().cpu().contiguous()
        sparse = _sparse_if_smaller(container.flat_view(dense), 2 * len(json.dumps(name)))
        if sparse is None:
            new = {name: dense}
        else:
            codes, nonzero = sparse
            if values is not None and dense.dtype in ROUNDABLE:
                nonzero = nonzero.to(values)
            metadata[f"sparse:{name}"] = f"{CODE_OF_DTYPE[dense.dtype]} {json.dumps(list(dense.shape))}"
            new = {f"{name}:gaps": codes, f"{name}:values": nonzero}
        for piece in new:
            if piece in pieces or piece in container.RESERVED:
                raise ValueError(
                    f"the name {piece!r} is taken in a small file, so {name!r} cannot be stored: rename it in the model"
                )
        pieces |= new
    return metadata, pieces


def _sparse_if_smaller(flat: Tensor, name_bytes: int) -> tuple[Tensor, Tensor] | None:
    """A tensor as gaps and values; None where that is not smaller than the tensor itself.

    Args:
        flat: [n]. An element is zero if all its bits are, so −0 is a value.
        name_bytes: bytes that the tensor's name takes in the header if it is sparse, beyond those if it is dense.
    """
    size = flat.element_size()
    bits = flat.view(INTEGER_OF_SIZE[size])
    budget = len(flat) * size - HEADER_BYTES_IF_SPARSE - name_bytes
    if int(bits.count_nonzero()) * (1 + size) >= budget:
        return None
    positions = bits.nonzero().squeeze(1)
    codes = gaps.encode(positions)
    if len(codes) + len(positions) * size >= budget:
        return None
    return codes, bits[positions].view(flat.dtype)
