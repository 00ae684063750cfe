"""Files of version 2, taken apart and put together again."""

import json
import zlib
from dataclasses import dataclass

import zstandard


@dataclass
class Parts:
    """A file: its metadata, its index, and what its frames hold, by kind."""

    metadata: dict
    index: dict
    contents: dict


def taken_apart(raw):
    """A file's parts; its checksum and sizes are asserted."""
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    assert zlib.crc32(raw[:-4]) == int.from_bytes(raw[-4:], "little")
    size = len(raw) - start
    assert header.pop("tensors") == {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}
    assert list(header) == ["__metadata__"]
    end = start + 4 + int.from_bytes(raw[start : start + 4], "little")
    index = json.loads(decompressed(raw[start + 4 : end]))
    contents = {}
    for kind, sizes in index["frames"].items():
        contents[kind] = []
        for size in sizes:
            contents[kind].append(decompressed(raw[end : end + size]))
            end += size
    assert end == len(raw) - 4
    return Parts(header["__metadata__"], index, contents)


def decompressed(frame):
    return zstandard.ZstdDecompressor().decompress(frame)


def compressed(data):
    return zstandard.ZstdCompressor(level=1).compress(data)


def put_together(parts, frames=None, index=None, header=None):
    """A file of these parts, with the checksum that it should have.

    Args:
        frames: the frames by kind, instead of those that are made from the contents; the index lists their sizes.
        index: the frame of the index, instead of the one that is made.
        header: the header, instead of the one that is made.
    """
    if frames is None:
        frames = {kind: [compressed(data) for data in own] for kind, own in parts.contents.items()}
    if index is None:
        sizes = {kind: [len(frame) for frame in own] for kind, own in frames.items()}
        index = compressed(json.dumps({**parts.index, "frames": sizes}).encode())
    body = len(index).to_bytes(4, "little") + index + b"".join(frame for own in frames.values() for frame in own)
    return enclosed(parts.metadata, body, header)


def enclosed(metadata, body, header=None):
    """A file of this metadata and body, sealed."""
    if header is None:
        size = len(body) + 4
        header = {"__metadata__": metadata, "tensors": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    text = json.dumps(header).encode()
    raw = len(text).to_bytes(8, "little") + text + body
    return raw + zlib.crc32(raw).to_bytes(4, "little")


def entry_of(index, name):
    """What an index says of a tensor."""
    return next(entry for entry in index["tensors"] if entry[0] == name)
