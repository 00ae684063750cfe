"""The small file: of a pruned model only what is left, as safetensors. docs/small-file.md describes its bytes.

What of a model is stored, how it is coded, and what a file must say before anything of it goes into a model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fggp.atomic import atomic_write
from fggp.ship.file import container, gaps
from fggp.ship.file.container import CODES, Header, Piece, Refused, damaged
from fggp.ship.file.state import Own, check_writable, own_tensors
from fggp.weights.prunable import listing

_ROUNDED = (torch.float32, torch.float64)
"""The dtypes whose values bfloat16 can stand for at less than their size."""

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    values: torch.dtype | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
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
        metadata: texts of your own by name, such as what the classes are called, for whoever opens the file:
            ``safetensors.safe_open(path, "pt").metadata()`` has them among the file's own.

    Raises:
        ValueError, TypeError, NotImplementedError: an argument is not as it should be, or the model has something that
            the file cannot hold, named; nothing is written then.
    """
    if values not in (None, torch.bfloat16):
        raise ValueError(f"values={values!r} must be torch.bfloat16, or left out to keep every bit")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r:.80} must be a torch.nn.Module: save(model, path)")
    yours = _checked(metadata or {})
    ours, pieces = _coded(own_tensors(model, model.state_dict()), values)
    with atomic_write(Path(path)) as file:
        file.writelines(container.encode({**yours, **ours}, pieces))


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
    own = own_tensors(model, state)
    check_writable(own)
    with open(path, "rb") as file:
        try:
            stored, data = _read(file, own)
        except Refused as reason:
            raise ValueError(f"path={os.fspath(path)!r} {reason}") from None
    for name, s in stored.items():
        _fill(own[name].tensor, s, data)
    # The state dict's tensors are the model's own, so this copies nothing; but what a module's hooks make of its state,
    # they do here.
    model.load_state_dict(state)


# Coding


def _checked(metadata: Mapping[str, str]) -> dict[str, str]:
    """A caller's metadata, refused where a reader would take them for the file's own, or for damage."""
    for name, text in metadata.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise TypeError(f"metadata={{{name!r}: {text!r:.40}}} must be texts by name: use json.dumps")
        if ":" in name or name == "fggp":
            raise ValueError(f"metadata has {name!r}, which the file keeps for itself: no ':' in names, and not 'fggp'")
    size = len(json.dumps(dict(metadata)))
    if size > container.ROOM:
        raise ValueError(f"metadata takes {size:,} bytes; it must be {container.ROOM:,} at most")
    return dict(metadata)


@torch.no_grad()
def _coded(tensors: Mapping[str, Own], values: torch.dtype | None) -> tuple[dict[str, str], dict[str, Tensor]]:
    """What to write: the metadata, and contiguous tensors by name."""
    metadata: dict[str, str] = {}
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
        sparse = _sparse(container.flat(plain), 2 * len(json.dumps(name)))
        if sparse is None:
            new = {name: plain}
        else:
            codes, kept = sparse
            if values is not None and plain.dtype in _ROUNDED:
                kept = kept.to(values)
            metadata[f"sparse:{name}"] = f"{CODES[plain.dtype]} {json.dumps(list(plain.shape))}"
            new = {f"{name}:gaps": codes, f"{name}:values": kept}
        for piece in new:
            if piece in pieces or piece in container.RESERVED:
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
    return codes, bits[positions].view(flat.dtype)


# Reading: what a file holds is compared with the model before its contents are looked at


@dataclass(frozen=True)
class _Stored:
    """A tensor of the saved state dict: what it is, and the pieces that hold it; gaps is None where it is dense."""

    dtype: torch.dtype
    shape: list[int]
    values: Piece
    gaps: Piece | None

    def __str__(self) -> str:
        return _what(self.dtype, self.shape)


def _what(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"


def _read(file: BufferedReader, own: Mapping[str, Own]) -> tuple[dict[str, _Stored], Tensor]:
    """Read a small file of a model of these tensors: what it holds by plain name, and its data, uint8 [n].

    All that could go wrong when those are decoded is checked here.
    """
    header = container.read_header(file, own)
    data = None
    # A file that holds more than the model does is not read, however large it claims to be: the comparison says why.
    if header.size <= 4 + sum(o.tensor.numel() * (1 + o.tensor.element_size()) for o in own.values()):
        data = container.read_data(file, header)
    stored = _stored(header)
    _compare(stored, own)
    assert data is not None
    _check_contents(stored, own, data)
    return stored, data


def _stored(header: Header) -> dict[str, _Stored]:
    """The tensors of the saved state dict."""
    stored: dict[str, _Stored] = {}
    shared: dict[str, str] = {}
    dense = dict(header.pieces)
    for key, text in header.metadata.items():
        kind, _, name = key.partition(":")
        if kind == "sparse":
            code, _, shape = text.partition(" ")
            codes, values = dense.pop(f"{name}:gaps", None), dense.pop(f"{name}:values", None)
            if codes is None or values is None:
                raise damaged(f"it lacks gaps or values of {name!r:.80}")
            stored[name] = _Stored(*container.kind(code, container.parse(shape)), values, codes)
        elif kind == "shared":
            shared[name] = text
    for name, piece in dense.items():
        if name in stored:
            raise damaged(f"it has {name!r:.80} both sparse and dense")
        stored[name] = _Stored(piece.dtype, piece.shape, piece, None)
    for name, first in shared.items():
        if name in stored or first not in stored:
            raise damaged(f"it has {name!r:.80} as the same as {first!r:.80}")
        stored[name] = stored[first]
    return stored


def _compare(stored: Mapping[str, _Stored], own: Mapping[str, Own]) -> None:
    """Refuse what is not of a model of these tensors, and pieces that do not fit their tensor."""
    missing = [name for name in own if name not in stored]
    unexpected = [name for name in stored if name not in own]
    if missing or unexpected:
        lacks = [f"lacks {listing(missing)}"] if missing else []
        has = [f"has {listing(unexpected)}, which the model lacks"] if unexpected else []
        raise Refused(f"is of another model: it {', and '.join(lacks + has)}")
    other = []
    for name, s in stored.items():
        tensor = own[name].tensor
        if (s.dtype, s.shape) != (tensor.dtype, list(tensor.shape)):
            other.append(f"{name!r} is {s!s:.80} in the file, {_what(tensor.dtype, tensor.shape)} in the model")
    if other:
        more = f"; and {len(other) - 4} more" if len(other) > 4 else ""
        raise Refused(f"is of another model: {'; '.join(other[:4])}{more}")
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
            raise damaged(f"what it holds of {name!r} cannot be {s}")


def _check_contents(stored: Mapping[str, _Stored], own: Mapping[str, Own], data: Tensor) -> None:
    """Refuse contents that would not decode, and different ones for tensors that are one in the model."""
    first: dict[Any, str] = {}
    for name, s in stored.items():
        if s.dtype == torch.bool and s.values.bytes(data).gt(1).any():
            raise damaged(f"{name!r} has bytes that are no bool")
        if s.gaps is not None:
            try:
                gaps.check(s.gaps.bytes(data), len(s.values.of(data)), own[name].tensor.numel())
            except ValueError as error:
                raise damaged(f"{name!r}: {error}") from None
        place = own[name].place
        one = first.setdefault(place, name) if place else name
        if s is not stored[one] and not torch.equal(*(_bits(stored[n], own[n].tensor, data) for n in (one, name))):
            raise Refused(f"is of another model: {one!r} and {name!r} are tied in the model and differ in the file")


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
    bits = container.flat(whole).view(_BITS[tensor.element_size()])
    bits.zero_()
    bits[gaps.decode(stored.gaps.of(data).to(tensor.device))] = values.to(stored.dtype).view(bits.dtype)
    if whole is not tensor:
        tensor.copy_(whole)
