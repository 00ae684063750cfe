"""`fggp.load`: a small file is compared with the model before its contents are decoded, and decoded into the model."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor, nn

from fggp.ship.file import container, gaps, version1, version2
from fggp.ship.file.container import FileRefusedError, damaged
from fggp.ship.file.dtypes import CHUNK, INTEGER_OF_SIZE
from fggp.ship.file.state import ModelTensor, check_writable, model_tensors
from fggp.ship.file.stored import StoredTensor

READERS = {"1": version1.read, "2": version2.read}


def load(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Load a file that `save` wrote into a model, in place, as ``model.load_state_dict`` does.

    Parameters stay the same objects, on their devices and in their memory layout. The file is read and checked
    completely, by its checksum and against the model, before anything is changed. Files of all versions are read.

    Args:
        path: the file.
        model: a model of the same state-dict names, shapes and dtypes as the saved one; either may be wrapped.

    Raises:
        ValueError: the file is damaged, of another kind or of another model; the model is unchanged.
        TypeError, NotImplementedError: nothing can be loaded into this model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r:.80} must be a torch.nn.Module: load(path, model)")
    state = model.state_dict()
    tensors = model_tensors(model, state)
    check_writable(tensors)
    with open(path, "rb") as file:
        try:
            stored = _read(file, tensors)
        except FileRefusedError as reason:
            raise ValueError(f"path={os.fspath(path)!r} {reason}") from None
    for name, s in stored.items():
        _decode_into(tensors[name].tensor, s)
    # The state dict's tensors are the model's own, so this copies nothing. It calls the hooks that modules have for
    # their state.
    model.load_state_dict(state)


def _read(file: BufferedReader, tensors: Mapping[str, ModelTensor]) -> dict[str, StoredTensor]:
    """Read a small file of a model with these tensors, and check all that decoding relies on.

    Returns:
        The stored tensors by plain name.

    Raises:
        FileRefusedError: the file is damaged or of another model.
    """
    header = container.read_header(file, tensors)
    stored = READERS[header.version](file, header, tensors)
    _check_contents(stored, tensors)
    return stored


def _check_contents(stored: Mapping[str, StoredTensor], tensors: Mapping[str, ModelTensor]) -> None:
    """Refuse contents that cannot be decoded, and different contents for tensors that are tied in the model."""
    first_name: dict[Any, str] = {}
    for name, s in stored.items():
        if s.dtype == torch.bool and s.planes[0].gt(1).any():
            raise damaged(f"{name!r} has bytes that are no bool")
        if s.gaps is not None:
            try:
                gaps.check(s.gaps, s.count(), tensors[name].tensor.numel())
            except ValueError as error:
                raise damaged(f"{name!r}: {error}") from None
        if tensors[name].fixed and not _has_bits_of(s, tensors[name].tensor):
            raise FileRefusedError(
                f"is of another model: {name!r} differs, so that the file's whole numbers stand for other values than "
                f"the model's; quantise with the same batches and the same calibration"
            )
        key = tensors[name].memory_key
        first = first_name.setdefault(key, name) if key else name
        if s is not stored[first]:
            a, b = (_decoded_bits(stored[n], tensors[n].tensor) for n in (first, name))
            if not torch.equal(a, b):
                raise FileRefusedError(
                    f"is of another model: {first!r} and {name!r} are tied in the model and differ in the file"
                )


def _has_bits_of(stored: StoredTensor, tensor: Tensor) -> bool:
    wanted = container.flat_view(tensor.detach().cpu().contiguous()).view(INTEGER_OF_SIZE[tensor.element_size()])
    return torch.equal(_decoded_bits(stored, tensor), wanted)


def _decoded_bits(stored: StoredTensor, like: Tensor) -> Tensor:
    """A stored tensor decoded for a tensor of the model, as integers [n]."""
    decoded = torch.empty(like.shape, dtype=like.dtype, device="cpu")
    _decode_into(decoded, stored)
    return decoded.view(-1).view(INTEGER_OF_SIZE[like.element_size()])


@torch.no_grad()
def _decode_into(tensor: Tensor, stored: StoredTensor) -> None:
    """Write a stored tensor into a tensor of the model, in place."""
    # Written as integers, which can be assigned by index whatever the dtype, and keep the payload of a NaN. A tensor
    # whose memory order is not the logical one is written by way of a copy.
    target = tensor if tensor.is_contiguous() else torch.empty_like(tensor, memory_format=torch.contiguous_format)
    bits = container.flat_view(target).view(INTEGER_OF_SIZE[tensor.element_size()])
    if stored.gaps is None:
        for begin in range(0, len(bits), CHUNK):
            chunk = bits[begin : begin + CHUNK]
            chunk.copy_(stored.values(begin, begin + len(chunk)).view(bits.dtype))
    else:
        bits.zero_()
        done = 0
        for positions in gaps.decode(stored.gaps):
            values = stored.values(done, done + len(positions)).view(bits.dtype)
            bits.index_copy_(0, positions.to(bits.device), values.to(bits.device))
            done += len(positions)
    if target is not tensor:
        tensor.copy_(target)
