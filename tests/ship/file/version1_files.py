"""Files of version 1, which fggp reads and does not write any more: written, altered and sealed."""

import json
import zlib

import torch

from fggp.ship.file.dtypes import CODE_OF_DTYPE
from fggp.ship.file.state import model_tensors
from small_files import bits

META, GAPS, VALUES = "__metadata__", "0.weight:gaps", "0.weight:values"


def save(path, model, values=None):
    """Write a model's file. A tensor of 100 elements or more is sparse if a quarter of it is zero."""
    metadata, pieces, first_name = {"fggp": "1"}, {}, {}
    for name, t in model_tensors(model, model.state_dict()).items():
        tensor = t.tensor.detach()
        if t.memory_key in first_name:
            metadata[f"shared:{name}"] = first_name[t.memory_key]
            continue
        if t.memory_key is not None:
            first_name[t.memory_key] = name
        flat = bits(tensor)
        if len(flat) >= 100 and flat.count_nonzero() < 0.75 * len(flat):
            nonzero = flat[flat != 0].view(tensor.dtype)
            metadata[f"sparse:{name}"] = f"{CODE_OF_DTYPE[tensor.dtype]} {list(tensor.shape)}"
            pieces[f"{name}:gaps"] = torch.tensor(gap_codes(flat.nonzero().flatten().tolist()), dtype=torch.uint8)
            rounded = values is not None and tensor.dtype in (torch.float32, torch.float64)
            pieces[f"{name}:values"] = nonzero.to(values) if rounded else nonzero
        else:
            pieces[name] = tensor.contiguous()
    header, data = {"__metadata__": metadata}, b""
    for name, piece in sorted(pieces.items(), key=lambda item: -item[1].element_size()):
        raw = bits(piece).numpy().tobytes()
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": CODE_OF_DTYPE[piece.dtype], "shape": list(piece.shape), "data_offsets": place}
        data += raw
    header[":crc32"] = {"dtype": "U8", "shape": [4], "data_offsets": [len(data), len(data) + 4]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    raw = len(text).to_bytes(8, "little") + text + data
    path.write_bytes(raw + zlib.crc32(raw).to_bytes(4, "little"))


def gap_codes(positions):
    """Positions as gaps, by the obvious loop."""
    codes, following = [], 0
    for position in positions:
        gap = position - following
        while gap >= 255:
            codes.append(255)
            gap -= 255
        codes.append(gap)
        following = position + 1
    return codes


def header_and_data(raw):
    """A file's header, parsed, and its data without the checksum."""
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:start]), raw[start:-4]


def sealed(header, data):
    """A file of this header (text or object) and data, with the checksum that it should have."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    body = len(text).to_bytes(8, "little") + text + data
    return body + zlib.crc32(body).to_bytes(4, "little")


def set_header(*keys, value):
    """Set one entry of a header."""

    def apply(header, data):
        inner = header
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return header, data

    return apply


def rename_piece(old, new):
    """Give a piece another name."""
    return lambda header, data: ({new if name == old else name: entry for name, entry in header.items()}, data)


def move_piece(name, place, more):
    """Move a piece to another place in the order (-1: before 0.weight's gaps), with more bytes at its end."""

    def apply(header, data):
        ends = {n: entry["data_offsets"] for n, entry in header.items() if n != META}
        contents = {n: data[begin:end] for n, (begin, end) in ends.items()}
        contents[name] += more
        order = [n for n in ends if n != name]
        order.insert(place if place >= 0 else order.index(GAPS), name)
        new, body = {META: header[META]}, b""
        for n in order:
            size = 4 if n == ":crc32" else len(contents[n])
            new[n] = {**header[n], "data_offsets": [len(body), len(body) + size]}
            body += contents[n]
        return new, body

    return apply


def set_data_bytes(name, **bytes_at):
    """Overwrite bytes of a piece; ``_3=255`` sets its byte 3."""

    def apply(header, data):
        changed = bytearray(data)
        begin = header[name]["data_offsets"][0]
        for at, byte in bytes_at.items():
            changed[begin + int(at[1:])] = byte
        return header, bytes(changed)

    return apply


def with_long_checksum(header, data):
    """A file of a checksum alone, 8 bytes long."""
    return {META: header[META], ":crc32": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, data[:4]
