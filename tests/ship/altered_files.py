"""Files altered after they were saved, for the tests of damaged and hostile files."""

import copy
import json
import zlib

import fggp
from small_files import (
    states_equal,
    with_other_bits,
)

META, GAPS, VALUES = "__metadata__", "0.weight:gaps", "0.weight:values"


def load_or_refuse(path, raw, model):
    """Load these bytes, which yields this model or an error that leaves the old values. Returns whether it loaded."""
    path.write_bytes(raw)
    loaded = with_other_bits(model)
    before = copy.deepcopy(loaded)
    try:
        fggp.load(path, loaded)
    except ValueError:
        assert states_equal(loaded, before)
        return False
    assert states_equal(loaded, model)
    return True


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
