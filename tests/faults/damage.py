"""Damage to a file: cut, a bit flipped, emptied, overwritten, replaced by a trap, removed."""

import hashlib
import pickle
import random
from collections.abc import Callable
from pathlib import Path

import torch

from fggp.lab.training import checkpoint


class Trap:
    """Unpickled by a reader that runs what it reads, leaves a file."""

    def __init__(self, left: Path) -> None:
        self.left = left

    def __reduce__(self):
        return open, (str(self.left), "w")


def cut(file: Path, chance: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def flip(file: Path, chance: random.Random) -> None:
    data = bytearray(file.read_bytes())
    bit = chance.randrange(8 * len(data))
    data[bit // 8] ^= 1 << bit % 8
    file.write_bytes(data)


def empty(file: Path, chance: random.Random) -> None:
    file.write_bytes(b"")


def overwrite(file: Path, chance: random.Random) -> None:
    file.write_bytes(chance.randbytes(file.stat().st_size))


def delete(file: Path, chance: random.Random) -> None:
    file.unlink()


def replace_by_trap(file: Path, chance: random.Random) -> None:
    """Put a pickle there that leaves a file named "trapped" beside it, in a wrapping that holds."""
    file.write_bytes(sealed(pickle.dumps({"state": Trap(file.with_name("trapped"))})))


def sealed(content: bytes) -> bytes:
    """Give any content the end of a checkpoint, with a right checksum."""
    end = checkpoint.TRAILER.pack(checkpoint.MARK, checkpoint.VERSION, len(content))
    return content + end + hashlib.blake2b(content + end, digest_size=32).digest()


def trapped_archive(file: Path, left: Path) -> None:
    """Write a trap as `torch.save` would, with a right checksum."""
    torch.save({"state": {"trap": Trap(left)}, "settings": {}, "metrics": ""}, file)
    file.write_bytes(sealed(file.read_bytes()))


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "cut": cut,
    "a bit flipped": flip,
    "emptied": empty,
    "overwritten": overwrite,
    "deleted": delete,
    "a trap": replace_by_trap,
}
