"""Bytes in zstd frames (RFC 8878). A frame from a file is decompressed only if it claims the size that is expected."""

from __future__ import annotations

import zstandard

from fggp.ship.file.container import damaged

SMALL = 1 << 16
"""Bytes up to which the highest level is used: it takes milliseconds there, and makes small networks 1 % smaller."""
LEVEL_OF_SMALL, LEVEL = 19, 1
"""Level 1 finds few repetitions, and its Huffman codes are most of what there is to gain."""


def compress(data: bytes | bytearray) -> bytes:
    """A frame of these bytes."""
    level = LEVEL_OF_SMALL if len(data) <= SMALL else LEVEL
    return zstandard.ZstdCompressor(level=level).compress(data)


def decompress(frame: memoryview, smallest: int, largest: int, what: str) -> bytes:
    """The bytes of a frame, which is not trusted. Never allocates more than ``largest`` bytes for them.

    Args:
        frame: one frame, and nothing after it.
        smallest: the number of bytes that it must hold at least.
        largest: the number of bytes that it may hold.
        what: what it holds, as "its gaps", for messages.

    Raises:
        FileRefusedError: it is no frame, or it does not hold as many bytes.
    """
    try:
        size = zstandard.frame_content_size(frame)
        if not smallest <= size <= largest:
            expected = f"{smallest:,}" if smallest == largest else f"{largest:,} at most"
            raise damaged(f"{what} hold {size:,} bytes, but must hold {expected}")
        data = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise damaged(f"{what} cannot be decompressed ({error})") from None
    if len(data) != size:
        raise damaged(f"{what} are not of the size that they claim")
    return data
