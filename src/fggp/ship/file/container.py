"""The small file's bytes: header length (8 bytes), header (JSON), data, checksum; nothing that is read is trusted.

A safetensors file, but written and read here, not by that package, because the checksum must cover the header too and
because the package needs NumPy to write; whatever reads safetensors reads these files.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import torch
from torch import Tensor

VERSION = "1"

CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.complex64: "C64",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""safetensors' names of dtypes."""

_DTYPES = {code: dtype for dtype, code in CODES.items()}
_CHECKSUM, _METADATA = ":crc32", "__metadata__"
RESERVED = frozenset({_CHECKSUM, _METADATA})
"""Names that no piece can have."""
ROOM = 1 << 19
"""Bytes of a header that texts of the caller may take."""


class Refused(Exception):
    """Why a file is not loaded, as what follows its name."""


def damaged(detail: str) -> Refused:
    """A refusal of what `fggp.save` did not write like this."""
    return Refused(f"is damaged, or not a file that fggp.save wrote: {detail}")


@dataclass(frozen=True)
class Piece:
    """A tensor of the container: what it is, and where in the data."""

    dtype: torch.dtype
    shape: list[int]
    begin: int
    end: int

    def bytes(self, data: Tensor) -> Tensor:
        """The piece's bytes, uint8 [n]: a view of all data."""
        return data[self.begin : self.end]

    def of(self, data: Tensor) -> Tensor:
        """The piece, [n]: a view of all data, uint8 [n]."""
        return self.bytes(data).view(self.dtype)


def encode(metadata: Mapping[str, str], pieces: Mapping[str, Tensor]) -> Iterator[bytes | bytearray]:
    """All bytes of a file, in parts.

    Args:
        metadata: any texts by name; the version is added.
        pieces: contiguous CPU tensors of dtypes in `CODES`, by names not in `RESERVED`.
    """
    # Largest elements first: every piece is aligned.
    ordered = sorted(pieces.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {_METADATA: {"fggp": VERSION, **metadata}}
    end = 0
    for name, piece in [*ordered, (_CHECKSUM, torch.empty(4, dtype=torch.uint8, device="cpu"))]:
        begin, end = end, end + piece.nbytes
        header[name] = {"dtype": CODES[piece.dtype], "shape": list(piece.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    yield head
    crc = zlib.crc32(head)
    for _, piece in ordered:
        if piece.numel():
            data = bytearray(piece.nbytes)
            _as_tensor(data).copy_(flat(piece).view(torch.uint8))
            yield data
            crc = zlib.crc32(data, crc)
    yield crc.to_bytes(4, "little")


@dataclass(frozen=True)
class Header:
    """What a file says that it holds.

    Args:
        head: the bytes up to the data.
        size: how many bytes of data the file has, the checksum included; pieces and checksum fill them.
        metadata: texts by name.
        pieces: where they lie and what they are, by name, in order.
    """

    head: bytes
    size: int
    metadata: dict[str, str]
    pieces: dict[str, Piece]


def read_header(file: BufferedReader, names: Collection[str]) -> Header:
    """Read a file up to its data; those are not read, however many it claims.

    Args:
        file: at its beginning.
        names: those of the model's tensors, which tell how long a header can be.

    Raises:
        Refused: the header cannot be one, or tells of other data than the file has.
    """
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if not 0 < length <= size - 8:
        raise damaged(f"a file of {size:,} bytes cannot have a header of {length:,}")
    # A name is written up to three times, at up to 12 bytes a character. Far more than it takes, but no gigabytes.
    most = 2 * ROOM + len(names) * ((1 << 12) + 48 * max(map(len, names), default=0))
    if length > most:
        raise damaged(f"its header of {length:,} bytes is too long for a model of {len(names)} tensors")
    head += file.read(length)
    try:
        header = parse(head[8:].decode())
    except UnicodeDecodeError:
        raise damaged("its header is not text") from None
    if not isinstance(header, dict):
        raise damaged("its header is not a JSON object")
    metadata = _metadata(header.pop(_METADATA, None))
    return Header(head, size - len(head), metadata, _pieces(header, size - len(head)))


def _metadata(entry: Any) -> dict[str, str]:
    """A header's metadata, of this version."""
    if not isinstance(entry, dict) or not all(isinstance(text, str) for text in entry.values()):
        raise damaged("its header has no metadata")
    if "fggp" not in entry:
        raise damaged("its metadata do not name fggp; safetensors.torch.load_file reads plain safetensors")
    if entry["fggp"] != VERSION:
        raise Refused(f"has version {entry['fggp']!r:.20}; this fggp reads version {VERSION}")
    return entry


def _pieces(entries: Mapping[str, Any], size: int) -> dict[str, Piece]:
    """The pieces in order, which must fill so many bytes of data without gap or overlap, the checksum the last."""
    pieces: dict[str, Piece] = {}
    cursor = 0
    for name, entry in entries.items():
        match entry:
            case {"dtype": str(code), "shape": shape, "data_offsets": [int(begin), int(end)]}:
                piece = Piece(*kind(code, shape), begin, end)
            case _:
                raise damaged(f"its header has {name!r:.80}, which is no tensor")
        if begin != cursor or end < begin or begin % piece.dtype.itemsize:
            raise damaged(f"{name!r:.80} lies at bytes {begin} to {end}, after one that ends at {cursor}")
        pieces[name] = piece
        cursor = end
    if cursor != size:
        raise damaged(f"it has {size:,} bytes of data; its header tells of {cursor:,}")
    if list(pieces)[-1:] != [_CHECKSUM] or pieces[_CHECKSUM].end - pieces[_CHECKSUM].begin != 4:
        raise damaged("it has no checksum at its end")
    del pieces[_CHECKSUM]
    return pieces


def kind(code: str, shape: Any) -> tuple[torch.dtype, list[int]]:
    """What a tensor is, from safetensors' name of its dtype and a JSON value that should be its shape.

    The integers of the shape may be any: whoever goes by it compares it with the model's first.

    Raises:
        Refused: there is no such dtype, or the value is not a list of integers.
    """
    if code not in _DTYPES or not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise damaged(f"it has a tensor that is {code:.80}")
    return _DTYPES[code], shape


def parse(text: str) -> Any:
    """JSON from a file.

    Raises:
        Refused: it is none, or is nested too deep, or has an integer of more than 19 digits.
    """

    def whole(digits: str) -> int:
        if len(digits) > 19:  # int() takes quadratic time
            raise ValueError
        return int(digits)

    try:
        return json.loads(text, parse_int=whole)
    except (ValueError, RecursionError):
        raise damaged("its header is not JSON") from None


def read_data(file: BufferedReader, header: Header) -> Tensor:
    """All bytes after the header, uint8 [n]; the last 4 are the CRC-32 of all others in the file.

    Args:
        file: as `read_header` left it.
        header: what that returned. So much memory as it tells of is allocated: see that it is not too much.

    Raises:
        Refused: the checksum is wrong.
    """
    data = bytearray(header.size)
    file.readinto(data)
    if zlib.crc32(memoryview(data)[:-4], zlib.crc32(header.head)) != int.from_bytes(data[-4:], "little"):
        raise damaged("its checksum is wrong")
    return _as_tensor(data)


def flat(contiguous: Tensor) -> Tensor:
    """A view [n] of stride 1, which ``view(-1)`` does not give where a single element has another stride."""
    return contiguous.as_strided((contiguous.numel(),), (1,))


def _as_tensor(data: bytearray) -> Tensor:
    """Bytes as uint8 [n], without a copy."""
    return torch.frombuffer(data, dtype=torch.uint8)
