"""`fggp.load`: a small file is compared with the model before its contents are decoded, and decoded into the model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor, nn

from fggp.ship.file import container, gaps
from fggp.ship.file.container import FileRefusedError, Header, Piece, damaged
from fggp.ship.file.dtypes import INTEGER_OF_SIZE, ROUNDABLE
from fggp.ship.file.state import ModelTensor, check_writable, model_tensors
from fggp.text import listing


def load(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Load a file that `save` wrote into a model, in place, as ``model.load_state_dict`` does.

    Parameters stay the same objects, on their devices and in their memory layout. The file is read and checked
    completely, by its checksum and against the model, before anything is changed.

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
            stored, data = _read(file, tensors)
        except FileRefusedError as reason:
            raise ValueError(f"path={os.fspath(path)!r} {reason}") from None
    for name, s in stored.items():
        _decode_into(tensors[name].tensor, s, data)
    # The state dict's tensors are the model's own, so this copies nothing. It calls the hooks that modules have for
    # their state.
    model.load_state_dict(state)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of the saved state dict: its type, and the pieces that hold it.

    Args:
        dtype: of the tensor; the stored values may have been rounded to a narrower one.
        shape: of the tensor.
        values: all its elements, or the non-zero ones.
        gaps: the positions of the non-zero ones; None where the tensor is stored dense.
    """

    dtype: torch.dtype
    shape: list[int]
    values: Piece
    gaps: Piece | None

    def __str__(self) -> str:
        return _type_text(self.dtype, self.shape)


def _type_text(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _read(file: BufferedReader, tensors: Mapping[str, ModelTensor]) -> tuple[dict[str, StoredTensor], Tensor]:
    """Read a small file of a model with these tensors, and check all that decoding relies on.

    Returns:
        The stored tensors by plain name, and the file's data, uint8 [n].

    Raises:
        FileRefusedError: the file is damaged or of another model.
    """
    header = container.read_header(file, tensors)
    data = None
    # The data are not read where they are larger than the model can need, whatever size the file claims. The comparison
    # below then refuses the file with a reason.
    if header.size <= 4 + sum(t.tensor.numel() * (1 + t.tensor.element_size()) for t in tensors.values()):
        data = container.read_data(file, header)
    stored = _stored_tensors(header)
    _check_same_model(stored, tensors)
    assert data is not None
    _check_contents(stored, tensors, data)
    return stored, data


def _stored_tensors(header: Header) -> dict[str, StoredTensor]:
    """The tensors of the saved state dict, by name."""
    stored: dict[str, StoredTensor] = {}
    shared: dict[str, str] = {}
    dense = dict(header.pieces)
    for key, text in header.metadata.items():
        kind, _, name = key.partition(":")
        if kind == "sparse":
            code, _, shape = text.partition(" ")
            codes, values = dense.pop(f"{name}:gaps", None), dense.pop(f"{name}:values", None)
            if codes is None or values is None:
                raise damaged(f"it lacks gaps or values of {name!r:.80}")
            stored[name] = StoredTensor(*container.tensor_type(code, container.parse_json(shape)), values, codes)
        elif kind == "shared":
            shared[name] = text
    for name, piece in dense.items():
        if name in stored:
            raise damaged(f"it has {name!r:.80} both sparse and dense")
        stored[name] = StoredTensor(piece.dtype, piece.shape, piece, None)
    for name, first in shared.items():
        if name in stored or first not in stored:
            raise damaged(f"it says that {name!r:.80} is the same as {first!r:.80}, which cannot be")
        stored[name] = stored[first]
    return stored


def _check_same_model(stored: Mapping[str, StoredTensor], tensors: Mapping[str, ModelTensor]) -> None:
    """Refuse a file of another model, and pieces that do not fit the tensor they are of."""
    missing = [name for name in tensors if name not in stored]
    unexpected = [name for name in stored if name not in tensors]
    if missing or unexpected:
        lacks = [f"lacks {listing(missing)}"] if missing else []
        has = [f"has {listing(unexpected)}, which the model lacks"] if unexpected else []
        raise FileRefusedError(f"is of another model: it {', and '.join(lacks + has)}")
    different = []
    for name, s in stored.items():
        tensor = tensors[name].tensor
        if (s.dtype, s.shape) != (tensor.dtype, list(tensor.shape)):
            different.append(
                f"{name!r} is {s!s:.80} in the file, {_type_text(tensor.dtype, tensor.shape)} in the model"
            )
    if different:
        more = f"; and {len(different) - 4} more" if len(different) > 4 else ""
        raise FileRefusedError(f"is of another model: {'; '.join(different[:4])}{more}")
    for name, s in stored.items():
        if not _pieces_fit(s, tensors[name].tensor.numel()):
            raise damaged(f"the pieces of {name!r} are not those of {s}")


def _pieces_fit(stored: StoredTensor, elements: int) -> bool:
    """Whether a tensor with this number of elements can have these pieces, by their types and sizes."""
    value_bytes = stored.values.end - stored.values.begin
    if stored.gaps is None:
        return value_bytes == elements * stored.dtype.itemsize
    gap_bytes = stored.gaps.end - stored.gaps.begin
    size = stored.values.dtype.itemsize
    rounded = stored.values.dtype == torch.bfloat16 and stored.dtype in ROUNDABLE
    return (
        (stored.values.dtype == stored.dtype or rounded)
        and value_bytes % size == 0
        and stored.values.shape == [value_bytes // size]
        and stored.gaps.dtype == torch.uint8
        and stored.gaps.shape == [gap_bytes]
        and value_bytes // size <= gap_bytes <= elements
    )


def _check_contents(stored: Mapping[str, StoredTensor], tensors: Mapping[str, ModelTensor], data: Tensor) -> None:
    """Refuse contents that cannot be decoded, and different contents for tensors that are tied in the model."""
    first_name: dict[Any, str] = {}
    for name, s in stored.items():
        if s.dtype == torch.bool and s.values.bytes(data).gt(1).any():
            raise damaged(f"{name!r} has bytes that are no bool")
        if s.gaps is not None:
            try:
                gaps.check(s.gaps.bytes(data), len(s.values.tensor(data)), tensors[name].tensor.numel())
            except ValueError as error:
                raise damaged(f"{name!r}: {error}") from None
        key = tensors[name].memory_key
        first = first_name.setdefault(key, name) if key else name
        if s is not stored[first]:
            a, b = (_decoded_bits(stored[n], tensors[n].tensor, data) for n in (first, name))
            if not torch.equal(a, b):
                raise FileRefusedError(
                    f"is of another model: {first!r} and {name!r} are tied in the model and differ in the file"
                )


def _decoded_bits(stored: StoredTensor, like: Tensor, data: Tensor) -> Tensor:
    """A stored tensor decoded for a tensor of the model, as integers [n]."""
    decoded = torch.empty(like.shape, dtype=like.dtype, device="cpu")
    _decode_into(decoded, stored, data)
    return decoded.view(-1).view(INTEGER_OF_SIZE[like.element_size()])


@torch.no_grad()
def _decode_into(tensor: Tensor, stored: StoredTensor, data: Tensor) -> None:
    """Write a stored tensor into a tensor of the model, in place."""
    values = stored.values.tensor(data).to(tensor.device)
    if stored.gaps is None:
        tensor.copy_(values.view(tensor.shape))
        return
    # Written as integers, which can be assigned by index whatever the dtype, and keep the payload of a NaN. A tensor
    # whose memory order is not the logical one is written by way of a copy.
    target = tensor if tensor.is_contiguous() else torch.empty_like(tensor, memory_format=torch.contiguous_format)
    bits = container.flat_view(target).view(INTEGER_OF_SIZE[tensor.element_size()])
    bits.zero_()
    bits[gaps.decode(stored.gaps.tensor(data).to(tensor.device))] = values.to(stored.dtype).view(bits.dtype)
    if target is not tensor:
        tensor.copy_(target)
