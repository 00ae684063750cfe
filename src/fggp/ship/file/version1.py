"""Reads version 1, which is not written any more: a piece for each dense tensor, two for each sparse one, raw.

The metadata have ``sparse:NAME`` with the dtype and shape of a tensor whose pieces are ``NAME:values`` and
``NAME:gaps``, and ``shared:NAME`` with the name of the tensor that NAME is tied to. The last piece is ``:crc32``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import BufferedReader

import torch

from fggp.ship.file import container
from fggp.ship.file.container import Header, Piece, damaged
from fggp.ship.file.dtypes import ROUNDABLE
from fggp.ship.file.state import ModelTensor
from fggp.ship.file.stored import StoredTensor, TensorType, check_same_model

CHECKSUM = ":crc32"


@dataclass(frozen=True, eq=False)
class _Entry:
    """A tensor of the saved state dict: its type, and the pieces that hold it."""

    type: TensorType
    values: Piece
    gaps: Piece | None


def read(file: BufferedReader, header: Header, tensors: Mapping[str, ModelTensor]) -> dict[str, StoredTensor]:
    """Read the data of a file, and check that they are of a model with these tensors.

    Args:
        file: after its header.
        header: the header.
        tensors: the tensors of the model, by plain name.

    Returns:
        The stored tensors by plain name. What the values and gaps say is still to be checked.

    Raises:
        FileRefusedError: the file is damaged or of another model.
    """
    pieces = dict(header.pieces)
    last = pieces.popitem() if pieces else ("", None)
    if last[0] != CHECKSUM or last[1] is None or last[1].end - last[1].begin != container.CHECKSUM_BYTES:
        raise damaged("it has no checksum at its end")
    data = None
    # The data are not read where they are larger than the model can need, whatever size the file claims. The comparison
    # below then refuses the file with a reason.
    if header.size <= 4 + sum(t.tensor.numel() * (1 + t.tensor.element_size()) for t in tensors.values()):
        data = container.as_tensor(container.read_data(file, header))
    entries = _entries(header.metadata, pieces)
    check_same_model({name: entry.type for name, entry in entries.items()}, tensors)
    for name, entry in entries.items():
        if not _pieces_fit(entry, tensors[name].tensor.numel()):
            raise damaged(f"the pieces of {name!r} are not those of {entry.type}")
    assert data is not None
    stored = {}
    for entry in dict.fromkeys(entries.values()):
        gaps = None if entry.gaps is None else entry.gaps.bytes(data)
        stored[entry] = StoredTensor(entry.type.dtype, entry.values.dtype, (entry.values.bytes(data),), gaps)
    return {name: stored[entry] for name, entry in entries.items()}


def _entries(metadata: Mapping[str, str], pieces: Mapping[str, Piece]) -> dict[str, _Entry]:
    """The tensors of the saved state dict, by name."""
    entries: dict[str, _Entry] = {}
    shared: dict[str, str] = {}
    dense = dict(pieces)
    for key, text in metadata.items():
        kind, _, name = key.partition(":")
        if kind == "sparse":
            code, _, shape = text.partition(" ")
            codes, values = dense.pop(f"{name}:gaps", None), dense.pop(f"{name}:values", None)
            if codes is None or values is None:
                raise damaged(f"it lacks gaps or values of {name!r:.80}")
            own = TensorType(*container.tensor_type(code, container.parse_json(shape, "its header")))
            entries[name] = _Entry(own, values, codes)
        elif kind == "shared":
            shared[name] = text
    for name, piece in dense.items():
        if name in entries:
            raise damaged(f"it has {name!r:.80} both sparse and dense")
        entries[name] = _Entry(TensorType(piece.dtype, piece.shape), piece, None)
    for name, first in shared.items():
        if name in entries or first not in entries:
            raise damaged(f"it says that {name!r:.80} is the same as {first!r:.80}, which cannot be")
        entries[name] = entries[first]
    return entries


def _pieces_fit(entry: _Entry, elements: int) -> bool:
    """Whether a tensor with this number of elements can have these pieces, by their types and sizes."""
    value_bytes = entry.values.end - entry.values.begin
    if entry.gaps is None:
        return value_bytes == elements * entry.type.dtype.itemsize
    gap_bytes = entry.gaps.end - entry.gaps.begin
    size = entry.values.dtype.itemsize
    rounded = entry.values.dtype == torch.bfloat16 and entry.type.dtype in ROUNDABLE
    return (
        (entry.values.dtype == entry.type.dtype or rounded)
        and value_bytes % size == 0
        and entry.values.shape == [value_bytes // size]
        and entry.gaps.dtype == torch.uint8
        and entry.gaps.shape == [gap_bytes]
        and value_bytes // size <= gap_bytes <= elements
    )
