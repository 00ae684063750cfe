"""The small file's envelope: header length (8 bytes), header (JSON), data, checksum. All that is read is checked.

The file is a safetensors file, and any reader of safetensors can open it. It is written and read here and not by the
safetensors package, because the checksum must cover the header too, and because that package needs NumPy to write.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor

from fggp.ship.file.dtypes import DTYPE_OF_CODE

VERSION = "2"
"""The version that is written."""
VERSIONS = ("1", VERSION)
"""The versions that are read."""

METADATA = "__metadata__"
CHECKSUM_BYTES = 4
CALLER_METADATA_MAX = 1 << 19
"""Bytes that the caller's metadata may take in the header."""


class FileRefusedError(Exception):
    """A file is not loaded. The message continues the sentence "PATH …", such as "is damaged: …"."""


def damaged(detail: str) -> FileRefusedError:
    """The error for bytes that `fggp.save` does not write."""
    return FileRefusedError(f"is damaged, or not a file that fggp.save wrote: {detail}")


@dataclass(frozen=True)
class Piece:
    """A tensor in the container: its type, and where it begins and ends in the data, in bytes."""

    dtype: torch.dtype
    shape: list[int]
    begin: int
    end: int

    def bytes(self, data: Tensor) -> Tensor:
        """The piece's bytes, uint8 [n]: a view of all data, uint8 [n]."""
        return data[self.begin : self.end]


def encode(metadata: Mapping[str, str], name: str, contents: Sequence[bytes]) -> list[bytes]:
    """All bytes of a file of one piece, in parts.

    Args:
        metadata: any texts by name; the version is added.
        name: of the piece.
        contents: the piece's bytes, in parts. The checksum is added to it.
    """
    size = sum(map(len, contents)) + CHECKSUM_BYTES
    entry = {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    text = json.dumps({METADATA: {"fggp": VERSION, **metadata}, name: entry}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    parts = [len(text).to_bytes(8, "little") + text, *contents]
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return [*parts, crc.to_bytes(CHECKSUM_BYTES, "little")]


@dataclass(frozen=True)
class Header:
    """What a file's header says.

    Args:
        head: the bytes before the data.
        size: the number of bytes after the header. The pieces fill them.
        version: one of `VERSIONS`.
        metadata: texts by name.
        pieces: types and places of the pieces, by name, in order.
    """

    head: bytes
    size: int
    version: str
    metadata: dict[str, str]
    pieces: dict[str, Piece]


def description_limit(names: Collection[str]) -> int:
    """The most bytes that describe tensors of these names in a file. It is generous, but far from gigabytes."""
    # A name is written up to three times, at up to 12 bytes a character.
    return 2 * CALLER_METADATA_MAX + len(names) * ((1 << 12) + 48 * max(map(len, names), default=0))


def read_header(file: BufferedReader, names: Collection[str]) -> Header:
    """Read a file's header, and none of its data, whatever their size.

    Args:
        file: at its beginning.
        names: the names of the model's tensors, which bound the length of the header.

    Raises:
        FileRefusedError: this is no header, or it describes other data than the file has.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if not 0 < length <= size - 8:
        raise damaged(f"a file of {size:,} bytes cannot have a header of {length:,}")
    if length > description_limit(names):
        raise damaged(f"its header of {length:,} bytes is too long for a model of {len(names)} tensors")
    head += file.read(length)
    header = parse_json(head[8:], "its header")
    if not isinstance(header, dict):
        raise damaged("its header is not a JSON object")
    metadata = _metadata(header.pop(METADATA, None))
    return Header(head, size - len(head), metadata["fggp"], metadata, _pieces(header, size - len(head)))


def _metadata(entry: Any) -> dict[str, str]:
    """The metadata, checked to be of a version that is read."""
    if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
        raise damaged("its header has no metadata")
    if "fggp" not in entry:
        raise damaged("its metadata do not name fggp; safetensors.torch.load_file reads plain safetensors")
    if entry["fggp"] not in VERSIONS:
        raise FileRefusedError(f"has version {entry['fggp']!r:.20}; this fggp reads versions {' and '.join(VERSIONS)}")
    return entry


def _pieces(entries: Mapping[str, Any], size: int) -> dict[str, Piece]:
    """The pieces in order. They must fill ``size`` bytes without gap or overlap."""
    pieces: dict[str, Piece] = {}
    cursor = 0
    for name, entry in entries.items():
        match entry:
            case {"dtype": str(code), "shape": shape, "data_offsets": [int(begin), int(end)]}:
                piece = Piece(*tensor_type(code, shape), begin, end)
            case _:
                raise damaged(f"its header has {name!r:.80}, which is no tensor")
        if begin != cursor or end < begin or begin % piece.dtype.itemsize:
            raise damaged(f"{name!r:.80} is at bytes {begin} to {end}, but must be aligned and begin at {cursor}")
        pieces[name] = piece
        cursor = end
    if cursor != size:
        raise damaged(f"it has {size:,} bytes of data; its header describes {cursor:,}")
    return pieces


def tensor_type(code: str, shape: Any) -> tuple[torch.dtype, list[int]]:
    """A tensor's dtype and shape, from safetensors' name of the dtype and a JSON value that should be the shape.

    The integers of the shape may be any, negative ones included: compare it with the model's before you use it.

    Raises:
        FileRefusedError: the dtype is unknown, or the value is not a list of integers.
    """
    if code not in DTYPE_OF_CODE or not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise damaged(f"it has a tensor of dtype {code:.80} and shape {shape!r:.80}")
    return DTYPE_OF_CODE[code], shape


def parse_json(text: str | bytes, what: str) -> Any:
    """JSON from a file.

    Args:
        text: the JSON; bytes are UTF-8.
        what: what it is, as "its header", for messages.

    Raises:
        FileRefusedError: it is no text or no JSON, is nested too deep, or has an integer of more than 19 digits.
    """

    def short_integer(digits: str) -> int:
        if len(digits) > 19:  # int() takes quadratic time
            raise ValueError
        return int(digits)

    try:
        return json.loads(text if isinstance(text, str) else text.decode(), parse_int=short_integer)
    except UnicodeDecodeError:
        raise damaged(f"{what} is not text") from None
    except (ValueError, RecursionError):
        raise damaged(f"{what} is not JSON") from None


def read_data(file: BufferedReader, header: Header) -> bytearray:
    """All bytes after the header; the last 4 are the CRC-32 of all bytes before them in the file.

    Args:
        file: as `read_header` left it.
        header: what `read_header` returned. Check ``header.size`` first: that number of bytes is allocated.

    Raises:
        FileRefusedError: the checksum is wrong.
    """
    data = bytearray(header.size)
    file.readinto(data)
    before = memoryview(data)[:-CHECKSUM_BYTES]
    if zlib.crc32(before, zlib.crc32(header.head)) != int.from_bytes(data[-CHECKSUM_BYTES:], "little"):
        raise damaged("its checksum is wrong")
    return data


def flat_view(contiguous: Tensor) -> Tensor:
    """A view [n] of stride 1, which ``view(-1)`` does not return for a single element of another stride."""
    return contiguous.as_strided((contiguous.numel(),), (1,))


def as_tensor(data: bytearray) -> Tensor:
    """Bytes as uint8 [n], without a copy."""
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8, device="cpu")
