"""Version 2: an index of all tensors, and their gaps and byte planes, each kind of all tensors in one zstd frame.

The one piece of the file holds: the length of the index's frame (4 bytes), the index's frame, the other frames in the
index's order, and the checksum. docs/small-file.md describes the index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor

from fggp.ship.file import container, frames, planes
from fggp.ship.file.container import CHECKSUM_BYTES, FileRefusedError, Header, damaged
from fggp.ship.file.dtypes import CODE_OF_DTYPE, DTYPE_OF_CODE, ROUNDABLE
from fggp.ship.file.state import ModelTensor
from fggp.ship.file.stored import StoredTensor, TensorType, check_same_model

PIECE = "tensors"
GAPS = "gaps"
NETWORK = "network"
"""The entry of the index that only a network file has (docs/network-file.md)."""
LENGTH_BYTES = 4
"""Bytes that hold the length of the index's frame."""


@dataclass(frozen=True)
class Coded:
    """A tensor as it is to be written.

    Args:
        dtype: of the tensor.
        shape: of the tensor.
        values: its elements, or the non-zero ones, [k], contiguous, on the CPU.
        gaps: positions of the non-zero ones, uint8 [m] on the CPU; None: the values are all elements.
    """

    dtype: torch.dtype
    shape: list[int]
    values: Tensor
    gaps: Tensor | None


def encode(
    metadata: Mapping[str, str], tensors: Mapping[str, Coded | str], network: Mapping[str, Any] | None = None
) -> list[bytes]:
    """All bytes of a file, in parts.

    Args:
        metadata: any texts by name.
        tensors: the tensors by name, or the name of an earlier one that a tensor is tied to.
        network: of a network file, the description of the network.

    Raises:
        ValueError, TypeError: the description cannot be written as JSON.
    """
    coded = [t for t in tensors.values() if isinstance(t, Coded)]
    data: dict[str, list[bytes]] = {}
    if codes := _filled(t.gaps for t in coded if t.gaps is not None):
        data[GAPS] = [frames.compress(codes)]
    for dtype in dict.fromkeys(t.values.dtype for t in coded):
        values = [t.values for t in coded if t.values.dtype == dtype and t.values.numel()]
        if values:
            data[CODE_OF_DTYPE[dtype]] = [
                frames.compress(_filled(part for v in values for part in planes.split(v, i)))
                for i in range(planes.count(dtype))
            ]
    index = {
        "tensors": [[name, *_entry(t)] for name, t in tensors.items()],
        "frames": {kind: [len(frame) for frame in own] for kind, own in data.items()},
        **({} if network is None else {NETWORK: network}),
    }
    head = frames.compress(json.dumps(index, separators=(",", ":"), allow_nan=False).encode())
    body = [frame for own in data.values() for frame in own]
    return container.encode(metadata, PIECE, [len(head).to_bytes(LENGTH_BYTES, "little"), head, *body])


def _filled(parts: Iterable[Tensor]) -> bytearray:
    """The bytes of tensors, one after the other."""
    listed = list(parts)
    data = bytearray(sum(part.numel() for part in listed))
    rest = container.as_tensor(data)
    for part in listed:
        rest[: len(part)] = part
        rest = rest[len(part) :]
    return data


def _entry(tensor: Coded | str) -> list[Any]:
    """What the index says of a tensor, after its name."""
    if isinstance(tensor, str):
        return [tensor]
    entry: list[Any] = [CODE_OF_DTYPE[tensor.dtype], tensor.shape]
    if tensor.gaps is not None:
        entry += [len(tensor.values), len(tensor.gaps)]
        if tensor.values.dtype != tensor.dtype:
            entry.append(CODE_OF_DTYPE[tensor.values.dtype])
    return entry


@dataclass(frozen=True, eq=False)
class _Entry:
    """A tensor in the index: its type, the dtype and number of its values, and the number of its gaps, if sparse."""

    type: TensorType
    value_dtype: torch.dtype
    values: int
    gaps: int | None


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
    if list(header.pieces) != [PIECE] or header.pieces[PIECE].dtype != torch.uint8:
        raise damaged(f"it has other pieces than {PIECE!r}")
    if header.pieces[PIECE].shape != [header.size] or header.size < LENGTH_BYTES + CHECKSUM_BYTES:
        raise damaged(f"{PIECE!r} is not as long as it should be")
    # Where the data are larger than the model can need, whatever size the file claims, only the index is read. The
    # comparison then says what differs. Frames add less than 1 % to what cannot be compressed.
    raw = sum(t.tensor.numel() * (1 + t.tensor.element_size()) for t in tensors.values())
    limit = raw + raw // 100 + container.description_limit(tensors) + (1 << 14)
    if header.size > limit:
        _entries(_index(file.read(_index_length(file.read(LENGTH_BYTES), header, tensors)), tensors), tensors)
        raise damaged(f"it has {header.size:,} bytes of data, and this model needs {limit:,} at most")
    data = memoryview(container.read_data(file, header))[:-CHECKSUM_BYTES]
    length = _index_length(data[:LENGTH_BYTES], header, tensors)
    index = _index(data[LENGTH_BYTES : LENGTH_BYTES + length], tensors)
    entries = _entries(index, tensors)
    return _stored(entries, _frames(index, data[LENGTH_BYTES + length :]))


def _index_length(field: bytes | memoryview, header: Header, tensors: Mapping[str, ModelTensor]) -> int:
    """The length of the index's frame."""
    length = int.from_bytes(field, "little")
    if length > min(header.size - LENGTH_BYTES - CHECKSUM_BYTES, container.description_limit(tensors)):
        raise damaged(f"{header.size:,} bytes of data for {len(tensors)} tensors cannot have an index of {length:,}")
    return length


def _index(frame: bytes | memoryview, tensors: Mapping[str, ModelTensor]) -> dict[str, Any]:
    """The index, which has an entry "tensors" and an entry "frames" of any kind."""
    text = frames.decompress(memoryview(frame), 0, container.description_limit(tensors), "the bytes of its index")
    index = container.parse_json(text, "its index")
    if isinstance(index, dict) and NETWORK in index:
        raise FileRefusedError(
            "is a network file: it holds a network's operations for fggp's C library to run, not a model's state"
        )
    if not isinstance(index, dict) or set(index) != {"tensors", "frames"}:
        raise damaged("its index is not of tensors and frames")
    return index


def _entries(index: Mapping[str, Any], tensors: Mapping[str, ModelTensor]) -> dict[str, _Entry]:
    """The tensors in the index, by name, checked to be those of the model and to fit them."""
    entries: dict[str, _Entry] = {}
    if not isinstance(index["tensors"], list):
        raise damaged("its index has no list of tensors")
    for item in index["tensors"]:
        match item:
            case [str(name), str(first)] if first in entries:
                entry = entries[first]
            case [str(name), str(code), shape]:
                own = TensorType(*container.tensor_type(code, shape))
                # Until the shape is known to be the model's, the number of elements is not.
                elements = tensors[name].tensor.numel() if name in tensors else 0
                entry = _Entry(own, own.dtype, elements, None)
            case [str(name), str(code), shape, int(values), int(gaps)]:
                own = TensorType(*container.tensor_type(code, shape))
                entry = _Entry(own, own.dtype, values, gaps)
            case [str(name), str(code), shape, int(values), int(gaps), "BF16"]:
                own = TensorType(*container.tensor_type(code, shape))
                if own.dtype not in ROUNDABLE:
                    raise damaged(f"it has values of {name!r:.80}, {own!s:.80}, that are rounded")
                entry = _Entry(own, torch.bfloat16, values, gaps)
            case _:
                raise damaged(f"its index has {item!r:.80}, which is no tensor")
        if name in entries:
            raise damaged(f"its index has {name!r:.80} twice")
        entries[name] = entry
    check_same_model({name: entry.type for name, entry in entries.items()}, tensors)
    for name, entry in entries.items():
        if entry.gaps is not None and not 0 <= entry.values <= entry.gaps <= tensors[name].tensor.numel():
            raise damaged(f"{name!r}, {entry.type}, cannot have {entry.values} values and {entry.gaps} gaps")
    return entries


def _frames(index: Mapping[str, Any], data: memoryview) -> dict[str, list[memoryview]]:
    """The frames by what they hold. Those that the index lists fill the data."""
    sizes = index["frames"]
    if not isinstance(sizes, dict) or not all(isinstance(own, list) for own in sizes.values()):
        raise damaged("its index has no lists of frames")
    if not all(type(size) is int and size > 0 for own in sizes.values() for size in own):
        raise damaged("its index has a frame of no size")
    described = sum(size for own in sizes.values() for size in own)
    if described != len(data):
        raise damaged(f"it has {len(data):,} bytes of frames; its index describes {described:,}")
    found: dict[str, list[memoryview]] = {}
    for kind, own in sizes.items():
        found[kind] = []
        for size in own:
            found[kind].append(data[:size])
            data = data[size:]
    return found


def _stored(entries: Mapping[str, _Entry], found: Mapping[str, list[memoryview]]) -> dict[str, StoredTensor]:
    """Decompress all frames, and divide what they hold among the tensors."""
    different = list(dict.fromkeys(entries.values()))
    kinds = {GAPS: sum(entry.gaps or 0 for entry in different)}
    for entry in different:
        code = CODE_OF_DTYPE[entry.value_dtype]
        kinds[code] = kinds.get(code, 0) + entry.values
    kinds = {kind: size for kind, size in kinds.items() if size}
    if set(found) != set(kinds):
        raise damaged(f"it has frames of {', '.join(found)!r:.80}, and must have them of {', '.join(kinds)!r:.80}")
    rest: dict[str, list[Tensor]] = {}
    for kind, size in kinds.items():
        dtype = DTYPE_OF_CODE[kind] if kind != GAPS else torch.uint8
        if len(found[kind]) != planes.count(dtype):
            raise damaged(f"it has {len(found[kind])} frames of {kind}, and must have {planes.count(dtype)}")
        rest[kind] = [_decompressed(frame, size * _plane_bytes(dtype), kind) for frame in found[kind]]

    def take(kind: str, size: int) -> list[Tensor]:
        taken = [plane[:size] for plane in rest[kind]]
        rest[kind] = [plane[size:] for plane in rest[kind]]
        return taken

    empty = torch.empty(0, dtype=torch.uint8, device="cpu")
    stored = {}
    for entry in different:
        dtype = entry.value_dtype
        size = entry.values * _plane_bytes(dtype)
        own = take(CODE_OF_DTYPE[dtype], size) if size else [empty] * planes.count(dtype)
        gaps = None if entry.gaps is None else take(GAPS, entry.gaps)[0] if entry.gaps else empty
        stored[entry] = StoredTensor(entry.type.dtype, dtype, own, gaps)
    return {name: stored[entry] for name, entry in entries.items()}


def _plane_bytes(dtype: torch.dtype) -> int:
    """The bytes of a value in each plane."""
    return dtype.itemsize // planes.count(dtype)


def _decompressed(frame: memoryview, size: int, kind: str) -> Tensor:
    """The bytes of a frame, uint8 [n]."""
    return container.as_tensor(bytearray(frames.decompress(frame, size, size, f"the frames of {kind}")))
