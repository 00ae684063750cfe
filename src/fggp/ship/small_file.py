"""The small file: of a pruned model only what is left, as safetensors. docs/small-file.md describes its bytes.

The container is written and read here, not by the safetensors package, because a checksum must cover its header too
and because that package needs NumPy to write; whatever reads safetensors reads these files.
"""

from __future__ import annotations

import json
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from fggp.prunable import _WRAPPER_PARTS, _WRAPPERS, _listing
from fggp.ship import gaps

VERSION = "1"

_CODES = {
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

_DTYPES = {code: dtype for dtype, code in _CODES.items()}
_ROUNDED = (torch.float32, torch.float64)
"""The dtypes whose values bfloat16 can stand for at less than their size."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_CHECKSUM = ":crc32"


def save(model: nn.Module, path: str | os.PathLike[str], *, values: torch.dtype | None = None) -> None:
    """Write a model's state dict as a small file: of every mostly zero tensor only what is not zero, and where it is.

    Without ``values`` nothing is lost: the state dict comes back to the bit, −0 and NaN included. A tensor is stored
    sparse where that is smaller, whichever tensor it is; tied tensors are stored once. Names have no prefix from a
    wrapper (DataParallel, DDP, ``torch.compile``), so the file fits the wrapped and the bare model.

    Args:
        model: whose state dict to write; on any device.
        path: the file. It is replaced in one go: a crash leaves the old file or the new one, at worst with a
            ``.partial`` beside it.
        values: ``torch.bfloat16`` rounds the float32 and float64 values of tensors that are stored sparse. What is
            stored dense (biases, norms, all of an unpruned model) is never rounded.

    Raises:
        ValueError, TypeError, NotImplementedError: the model has something that the file cannot hold, named; nothing
            is written then.
    """
    if values not in (None, torch.bfloat16):
        raise ValueError(f"values={values!r} must be torch.bfloat16, or left out to keep every bit")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r:.80} must be a torch.nn.Module: save(model, path)")
    metadata, pieces = _coded(_tensors(model, model.state_dict()), values)
    _write(Path(path), _container(metadata, pieces))


def load(path: str | os.PathLike[str], model: nn.Module) -> None:
    """Load a file that `save` wrote into a model, in place, as ``model.load_state_dict`` does.

    Parameters stay the same objects, on their devices and in their memory layout. The file is read and checked
    completely, by its checksum and against the model, before anything is changed.

    Args:
        path: the file.
        model: of the same state-dict names, shapes and dtypes as the one saved; either may be wrapped.

    Raises:
        ValueError: the file is damaged, of another kind or of another model; the model is as it was.
        TypeError, NotImplementedError: the model cannot be loaded into.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r:.80} must be a torch.nn.Module: load(path, model)")
    state = model.state_dict()
    own = _tensors(model, state)
    _check_writable(own)
    with open(path, "rb") as file:
        try:
            stored, data = _read(file, own)
        except _Refused as reason:
            raise ValueError(f"path={os.fspath(path)!r} {reason}") from None
    for name, s in stored.items():
        _fill(own[name].tensor, s, data)
    # The state dict's tensors are the model's own, so this copies nothing; but what a module's hooks make of its state,
    # they do here.
    model.load_state_dict(state)


class _Refused(Exception):
    """Why a file is not loaded, as what follows its name."""


# The model's side


@dataclass(frozen=True)
class _Own:
    """A tensor of a model's state dict, and its key there."""

    key: str
    tensor: Tensor

    @property
    def place(self) -> tuple[Any, ...] | None:
        """The same for tied tensors, and for no others; None where there is nothing to share."""
        t = self.tensor
        return (t.device, t.data_ptr(), t.dtype, t.shape, t.stride()) if t.numel() else None


def _tensors(model: nn.Module, state: Mapping[str, Any]) -> dict[str, _Own]:
    """A model's state dict by plain names."""
    own: dict[str, _Own] = {}
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
        if tensor.layout != torch.strided or tensor.dtype not in _CODES:
            kind = tensor.dtype if tensor.layout == torch.strided else tensor.layout
            raise ValueError(f"{key!r} is {kind}, for which safetensors has no name")
        name = _plain(model, key)
        if name in own:
            raise ValueError(f"{key!r} and {own[name].key!r} have the same name without their wrappers' prefixes")
        own[name] = _Own(key, tensor)
    return own


def _plain(model: nn.Module, key: str) -> str:
    """A state-dict key without wrappers' parts."""
    module: nn.Module | None = model
    kept = []
    for part in key.split("."):
        if part not in _WRAPPER_PARTS and not (part == "module" and isinstance(module, _WRAPPERS)):
            kept.append(part)
        module = None if module is None else module._modules.get(part)
    return ".".join(kept)


def _check_writable(own: Mapping[str, _Own]) -> None:
    """Refuse what torch would refuse to write to halfway through."""
    for o in own.values():
        strides = zip(o.tensor.stride(), o.tensor.shape, strict=True)
        if any(stride == 0 and n > 1 for stride, n in strides):
            raise ValueError(f"{o.key!r} is expanded, its elements share memory: nothing can be loaded into it")
        if o.tensor.is_inference() and not torch.is_inference_mode_enabled():
            raise ValueError(f"{o.key!r} was made in torch.inference_mode(): it can be loaded into only there")


# Coding


@torch.no_grad()
def _coded(tensors: Mapping[str, _Own], values: torch.dtype | None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What to write: the metadata, and contiguous tensors by name."""
    metadata = {"fggp": VERSION}
    pieces: dict[str, Tensor] = {}
    first: dict[Any, str] = {}
    for name, own in tensors.items():
        place = own.place
        if place in first:
            metadata[f"shared:{name}"] = first[place]
            continue
        if place is not None:
            first[place] = name
        plain = own.tensor.detach().cpu().contiguous()
        sparse = _sparse(_flat(plain), 2 * len(json.dumps(name)))
        if sparse is None:
            new = {name: plain}
        else:
            codes, kept = sparse
            if values is not None and plain.dtype in _ROUNDED:
                kept = kept.to(values)
            metadata[f"sparse:{name}"] = f"{_CODES[plain.dtype]} {json.dumps(list(plain.shape))}"
            new = {f"{name}:gaps": codes, f"{name}:values": kept}
        for piece in new:
            if piece in pieces or piece in (_CHECKSUM, "__metadata__"):
                raise ValueError(f"the state dict's name {name!r} is taken in a small file: rename it")
        pieces |= new
    return metadata, pieces


def _sparse(flat: Tensor, names: int) -> tuple[Tensor, Tensor] | None:
    """A tensor [n] as gaps and values, if that is smaller.

    Args:
        flat: the tensor; what is zero is decided on its bits, so −0 is a value.
        names: bytes that its name takes in the header when it is sparse, over those when it is dense.
    """
    size = flat.element_size()
    bits = flat.view(_BITS[size])
    # Two entries and a line of metadata in place of one entry.
    room = len(flat) * size - 160 - names
    if int(bits.count_nonzero()) * (1 + size) >= room:
        return None
    positions = bits.nonzero().squeeze(1)
    codes = gaps.encode(positions)
    if len(codes) + len(positions) * size >= room:
        return None
    return codes, flat[positions]


# The container: header length (8 bytes), header (JSON), data


def _container(metadata: dict[str, str], pieces: Mapping[str, Tensor]) -> Iterator[bytes | bytearray]:
    """All bytes of a file, in parts."""
    # Largest elements first: every piece is aligned.
    ordered = sorted(pieces.items(), key=lambda item: -item[1].element_size())
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, piece in [*ordered, (_CHECKSUM, torch.empty(4, dtype=torch.uint8, device="cpu"))]:
        begin, end = end, end + piece.nbytes
        header[name] = {"dtype": _CODES[piece.dtype], "shape": list(piece.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    yield head
    crc = zlib.crc32(head)
    for _, piece in ordered:
        if piece.numel():
            data = bytearray(piece.nbytes)
            _as_tensor(data).copy_(_flat(piece).view(torch.uint8))
            yield data
            crc = zlib.crc32(data, crc)
    yield crc.to_bytes(4, "little")


def _write(path: Path, parts: Iterable[bytes | bytearray]) -> None:
    """Replace a file in one go."""
    # A name of its own: the ranks of a distributed run may all save.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # The rename itself is in the folder; only POSIX can and must flush that.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# Reading: nothing in the file is trusted, least of all its sizes


@dataclass(frozen=True)
class _Piece:
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


@dataclass(frozen=True)
class _Stored:
    """A tensor of the saved state dict: what it is, and the pieces that hold it; gaps is None where it is dense."""

    dtype: torch.dtype
    shape: list[int]
    values: _Piece
    gaps: _Piece | None

    def __str__(self) -> str:
        return _what(self.dtype, self.shape)


def _what(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _damaged(detail: str) -> _Refused:
    return _Refused(f"is damaged, or not a file that fggp.save wrote: {detail}")


def _read(file: BufferedReader, own: Mapping[str, _Own]) -> tuple[dict[str, _Stored], Tensor]:
    """Read a small file of a model of these tensors: what it holds by plain name, and its data, uint8 [n].

    All that could go wrong when those are decoded is checked here.
    """
    head, size, header = _read_header(file, own)
    metadata, pieces = _pieces(header, size - len(head))
    data = None
    # A file that holds more than the model does is not read, however large it claims to be: the comparison says why.
    if size - len(head) <= 4 + sum(o.tensor.numel() * (1 + o.tensor.element_size()) for o in own.values()):
        data = _read_data(file, head, size)
    stored = _stored(metadata, pieces)
    _compare(stored, own)
    assert data is not None
    _check_contents(stored, own, data)
    return stored, data


def _read_header(file: BufferedReader, own: Mapping[str, _Own]) -> tuple[bytes, int, dict[str, Any]]:
    """The bytes up to the data, the size of the file, the header."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    length = int.from_bytes(head, "little")
    if not 0 < length <= size - 8:
        raise _damaged(f"a file of {size:,} bytes cannot have a header of {length:,}")
    # A name is written up to three times, at up to 12 bytes a character. Far more than it takes, but no gigabytes.
    most = (1 << 20) + len(own) * ((1 << 12) + 48 * max(map(len, own), default=0))
    if length > most:
        raise _damaged(f"its header of {length:,} bytes is too long for a model of {len(own)} tensors")
    head += file.read(length)
    try:
        header = _parse(head[8:].decode())
    except UnicodeDecodeError:
        raise _damaged("its header is not text") from None
    if not isinstance(header, dict):
        raise _damaged("its header is not a JSON object")
    return head, size, header


def _parse(text: str) -> Any:
    def whole(digits: str) -> int:
        if len(digits) > 19:  # int() takes quadratic time
            raise ValueError
        return int(digits)

    try:
        return json.loads(text, parse_int=whole)
    except (ValueError, RecursionError):
        raise _damaged("its header is not JSON") from None


def _pieces(header: dict[str, Any], size: int) -> tuple[dict[str, str], dict[str, _Piece]]:
    """The metadata, and the pieces in order, which must fill so many bytes of data without gap or overlap."""
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _damaged("its header has no metadata")
    if "fggp" not in metadata:
        raise _damaged("its metadata do not name fggp; safetensors.torch.load_file reads plain safetensors")
    if metadata["fggp"] != VERSION:
        raise _Refused(f"has version {metadata['fggp']!r:.20}; this fggp reads version {VERSION}")
    pieces: dict[str, _Piece] = {}
    cursor = 0
    for name, entry in header.items():
        match entry:
            case {"dtype": str(code), "shape": shape, "data_offsets": [int(begin), int(end)]}:
                piece = _Piece(*_kind(code, shape), begin, end)
            case _:
                raise _damaged(f"its header has {name!r:.80}, which is no tensor")
        if begin != cursor or end < begin or begin % piece.dtype.itemsize:
            raise _damaged(f"{name!r:.80} lies at bytes {begin} to {end}, after one that ends at {cursor}")
        pieces[name] = piece
        cursor = end
    if cursor != size:
        raise _damaged(f"it has {size:,} bytes of data; its header tells of {cursor:,}")
    if list(pieces)[-1:] != [_CHECKSUM] or pieces[_CHECKSUM].end - pieces[_CHECKSUM].begin != 4:
        raise _damaged("it has no checksum at its end")
    del pieces[_CHECKSUM]
    return metadata, pieces


def _kind(code: str, shape: Any) -> tuple[torch.dtype, list[int]]:
    if code not in _DTYPES or not isinstance(shape, list) or not all(type(n) is int for n in shape):
        raise _damaged(f"it has a tensor that is {code:.80}")
    return _DTYPES[code], shape


def _read_data(file: BufferedReader, head: bytes, size: int) -> Tensor:
    """All bytes after the header, uint8 [n]; the last 4 must be the CRC-32 of all others in the file."""
    data = bytearray(size - len(head))
    file.readinto(data)
    if zlib.crc32(memoryview(data)[:-4], zlib.crc32(head)) != int.from_bytes(data[-4:], "little"):
        raise _damaged("its checksum is wrong")
    return _as_tensor(data)


def _stored(metadata: Mapping[str, str], pieces: dict[str, _Piece]) -> dict[str, _Stored]:
    """The tensors of the saved state dict."""
    stored: dict[str, _Stored] = {}
    shared: dict[str, str] = {}
    dense = dict(pieces)
    for key, text in metadata.items():
        kind, _, name = key.partition(":")
        if kind == "sparse":
            code, _, shape = text.partition(" ")
            codes, values = dense.pop(f"{name}:gaps", None), dense.pop(f"{name}:values", None)
            if codes is None or values is None:
                raise _damaged(f"it lacks gaps or values of {name!r:.80}")
            stored[name] = _Stored(*_kind(code, _parse(shape)), values, codes)
        elif kind == "shared":
            shared[name] = text
    for name, piece in dense.items():
        if name in stored:
            raise _damaged(f"it has {name!r:.80} both sparse and dense")
        stored[name] = _Stored(piece.dtype, piece.shape, piece, None)
    for name, first in shared.items():
        if name in stored or first not in stored:
            raise _damaged(f"it has {name!r:.80} as the same as {first!r:.80}")
        stored[name] = stored[first]
    return stored


def _compare(stored: Mapping[str, _Stored], own: Mapping[str, _Own]) -> None:
    """Refuse what is not of a model of these tensors, and pieces that do not fit their tensor."""
    missing = [name for name in own if name not in stored]
    unexpected = [name for name in stored if name not in own]
    if missing or unexpected:
        lacks = [f"lacks {_listing(missing)}"] if missing else []
        has = [f"has {_listing(unexpected)}, which the model lacks"] if unexpected else []
        raise _Refused(f"is of another model: it {', and '.join(lacks + has)}")
    other = []
    for name, s in stored.items():
        tensor = own[name].tensor
        if (s.dtype, s.shape) != (tensor.dtype, list(tensor.shape)):
            other.append(f"{name!r} is {s!s:.80} in the file, {_what(tensor.dtype, tensor.shape)} in the model")
    if other:
        more = f"; and {len(other) - 4} more" if len(other) > 4 else ""
        raise _Refused(f"is of another model: {'; '.join(other[:4])}{more}")
    for name, s in stored.items():
        n, held = own[name].tensor.numel(), s.values.end - s.values.begin
        if s.gaps is None:
            fits = held == n * s.dtype.itemsize
        else:
            size = s.values.dtype.itemsize
            fits = (
                (s.values.dtype == s.dtype or (s.values.dtype == torch.bfloat16 and s.dtype in _ROUNDED))
                and held % size == 0
                and s.values.shape == [held // size]
                and s.gaps.dtype == torch.uint8
                and s.gaps.shape == [s.gaps.end - s.gaps.begin]
                and held // size <= s.gaps.end - s.gaps.begin <= n
            )
        if not fits:
            raise _damaged(f"what it holds of {name!r} cannot be {s}")


def _check_contents(stored: Mapping[str, _Stored], own: Mapping[str, _Own], data: Tensor) -> None:
    """Refuse contents that would not decode, and different ones for tensors that are one in the model."""
    first: dict[Any, str] = {}
    for name, s in stored.items():
        if s.dtype == torch.bool and s.values.bytes(data).gt(1).any():
            raise _damaged(f"{name!r} has bytes that are no bool")
        if s.gaps is not None:
            try:
                gaps.check(s.gaps.bytes(data), len(s.values.of(data)), own[name].tensor.numel())
            except ValueError as error:
                raise _damaged(f"{name!r}: {error}") from None
        place = own[name].place
        one = first.setdefault(place, name) if place else name
        if s is not stored[one] and not torch.equal(*(_bits(stored[n], own[n].tensor, data) for n in (one, name))):
            raise _Refused(f"is of another model: {one!r} and {name!r} are tied in the model and differ in the file")


def _bits(stored: _Stored, tensor: Tensor, data: Tensor) -> Tensor:
    """What would be written into a tensor, as integers [n]."""
    filled = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
    _fill(filled, stored, data)
    return filled.view(-1).view(_BITS[tensor.element_size()])


@torch.no_grad()
def _fill(tensor: Tensor, stored: _Stored, data: Tensor) -> None:
    """Write what is stored into a tensor, where it is."""
    values = stored.values.of(data).to(tensor.device)
    if stored.gaps is None:
        tensor.copy_(values.view(tensor.shape))
        return
    # On bits: an index assignment of every dtype, and NaN keeps its payload. A tensor whose memory order is not the
    # logical one gets a copy.
    whole = tensor if tensor.is_contiguous() else torch.empty_like(tensor, memory_format=torch.contiguous_format)
    bits = _flat(whole).view(_BITS[tensor.element_size()])
    bits.zero_()
    bits[gaps.decode(stored.gaps.of(data).to(tensor.device))] = values.to(stored.dtype).view(bits.dtype)
    if whole is not tensor:
        tensor.copy_(whole)


def _flat(contiguous: Tensor) -> Tensor:
    """A view [n] of stride 1, which ``view(-1)`` does not give where a single element has another stride."""
    return contiguous.as_strided((contiguous.numel(),), (1,))


def _as_tensor(data: bytearray) -> Tensor:
    """Bytes as uint8 [n], without a copy."""
    return torch.frombuffer(data, dtype=torch.uint8)
