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
from fggp.ship.file import container, gaps, version2
from fggp.ship.file.dtypes import INTEGER_OF_SIZE, ROUNDABLE
from fggp.ship.file.state import ModelTensor, model_tensors
from fggp.ship.file.version2 import Coded

INDEX_BYTES_IF_SPARSE = 8
"""About the bytes of the compressed index that a sparse tensor takes beyond those of a dense one."""


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
    texts = {**registry.certificate(model), **checked_metadata(metadata or {})}
    for message in registry.complaints(model):
        warnings.warn(f"fggp.save: {message}", UserWarning, stacklevel=2)
    parts = version2.encode(texts, coded_tensors(model_tensors(model, model.state_dict()), values))
    with atomic_write(Path(path)) as file:
        file.writelines(parts)


def checked_metadata(metadata: Mapping[str, str]) -> dict[str, str]:
    """A copy of the caller's metadata; refused if a reader would take them for the file's own, or for damage.

    Raises:
        ValueError, TypeError: they are refused.
    """
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
def coded_tensors(tensors: Mapping[str, ModelTensor], values: torch.dtype | None) -> dict[str, Coded | str]:
    """The tensors as they are written, by name; for a tied one, the name of the first.

    Args:
        tensors: the model's tensors by plain name.
        values: the dtype to round the values of sparse tensors to; None: none.
    """
    coded: dict[str, Coded | str] = {}
    first_name: dict[Any, str] = {}
    for name, tensor in tensors.items():
        key = tensor.memory_key
        if key in first_name:
            coded[name] = first_name[key]
            continue
        if key is not None:
            first_name[key] = name
        dense = tensor.tensor.detach().cpu().contiguous()
        flat = container.flat_view(dense)
        sparse = _sparse_if_smaller(flat)
        if sparse is None:
            coded[name] = Coded(dense.dtype, list(dense.shape), flat, None)
        else:
            codes, nonzero = sparse
            if values is not None and dense.dtype in ROUNDABLE:
                nonzero = nonzero.to(values)
            coded[name] = Coded(dense.dtype, list(dense.shape), nonzero, codes)
    return coded


def _sparse_if_smaller(flat: Tensor) -> tuple[Tensor, Tensor] | None:
    """A tensor as gaps and values; None where that is not smaller than the tensor itself.

    The values count as incompressible, in both cases. The gaps count with the bits of a Huffman code: their entropy,
    and at least one bit each.

    Args:
        flat: [n]. An element is zero if all its bits are, so −0 is a value.
    """
    size = flat.element_size()
    bits = flat.view(INTEGER_OF_SIZE[size])
    zeros = len(flat) - int(bits.count_nonzero())
    if zeros * size <= INDEX_BYTES_IF_SPARSE:
        return None
    positions = bits.nonzero().squeeze(1)
    codes = gaps.encode(positions)
    if _huffman_bytes(codes) + INDEX_BYTES_IF_SPARSE >= zeros * size:
        return None
    return codes, bits[positions].view(flat.dtype)


def _huffman_bytes(codes: Tensor) -> float:
    """About the bytes that a Huffman code of these codes, uint8 [m], takes."""
    counts = codes.bincount(minlength=1).double()
    shares = counts[counts > 0] / max(len(codes), 1)
    entropy = -float((shares * shares.log2()).sum())
    return len(codes) * max(entropy, 1.0) / 8
