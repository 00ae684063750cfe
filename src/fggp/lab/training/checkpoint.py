"""The checkpoints of a run: two of them, as files with a checksum.

A file is what ``torch.save`` writes, which ``torch.load`` reads as it is, and 64 bytes after it: a mark of 16 bytes,
the version and the length of what is before, 8 bytes each, little-endian, and BLAKE2b of all of it, 32 bytes. The
checksum detects accidents; against files made with malice, ``weights_only`` makes sure that no code in them is run.
"""

import errno
import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import torch

from fggp.atomic import atomic_write
from fggp.lab.base import Json
from fggp.lab.base.disk import tell, writing
from fggp.lab.base.errors import UsageError

VERSION = 1
MARK = b"fggp checkpoint\n"
TRAILER = struct.Struct("<16sQQ")
# BLAKE2b: CRC-32 misses one damage in four billion, and SHA-256 is slow on processors without instructions for it.
CHECKSUM_BYTES = 32
CHUNK_BYTES = 1 << 20


class DamagedError(UsageError):
    """A file is not what was once written."""


@dataclass(frozen=True)
class Checkpoint:
    """A run between two epochs, with copies of the other files of its folder.

    Attributes:
        state: of the training; ``torch.load(weights_only=True)`` must read it.
        settings: of the run.
        metrics: all lines until then.
    """

    state: Json
    settings: Json
    metrics: str


class Checkpoints:
    """The last two checkpoints in a folder: if the newest is damaged, the previous one is still there.

    A damaged newest one is renamed to ``checkpoint.damaged.pt`` once the previous one has proved to be good. Otherwise
    the next checkpoint would push the good one out.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.newest = folder / "checkpoint.pt"
        self.previous = folder / "checkpoint.previous.pt"
        self.damaged = folder / "checkpoint.damaged.pt"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the newest checkpoint; the newest until now becomes the previous one.

        Whenever this is interrupted, at least one whole checkpoint exists that is no older than the newest before.
        """
        write(self.newest, checkpoint, keep=self.previous)

    def load(self) -> Checkpoint | None:
        """Return the newest good checkpoint, None if none was ever written.

        Raises:
            UsageError: there are checkpoints, but none that can be read.
        """
        reasons = []
        for file in (self.newest, self.previous):
            try:
                checkpoint = read(file)
            except FileNotFoundError:
                reasons.append(f"{file} is not there")
            except DamagedError as error:
                reasons.append(str(error))
            else:
                if file == self.previous:
                    self._report_damage(reasons[0])
                return checkpoint
        if not self.exist():
            return None
        raise UsageError(
            f"no checkpoint can be read: {'; '.join(reasons)}; restore a copy of one, or remove both files and resume "
            "the run, which then starts from the beginning"
        )

    def _report_damage(self, reason: str) -> None:
        if self.newest.exists():
            with writing(self.damaged):
                os.replace(self.newest, self.damaged)
            reason += f" (it is now {self.damaged.name})"
        tell(f"{reason}; continuing from the checkpoint before it, {self.previous.name}")

    def exist(self) -> bool:
        """Whether there is a checkpoint, damaged or not."""
        return self.newest.exists() or self.previous.exists()

    def keep_newest(self) -> None:
        """Remove all but the newest, which is enough once the run is finished."""
        self.previous.unlink(missing_ok=True)
        self.damaged.unlink(missing_ok=True)


def write(path: Path, checkpoint: Checkpoint, keep: Path | None = None) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: the file.
        checkpoint: its content.
        keep: new name for the file that is at ``path`` now.

    Raises:
        UsageError: the disk refuses it.
    """
    with writing(path), atomic_write(path, keep) as file:
        checked = ChecksummedFile(file)
        try:
            torch.save(vars(checkpoint), cast(IO[bytes], checked))  # it has the methods that PyTorch calls
        except RuntimeError:
            # PyTorch's writer only reports that it was not finished; the disk's error is the reason.
            if checked.error is not None:
                raise checked.error from None
            raise
        checked.write(TRAILER.pack(MARK, VERSION, checked.length))
        file.write(checked.checksum.digest())


def read(path: Path) -> Checkpoint:
    """Read a checkpoint, without running code that is in the file.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: it is not whole, or no checkpoint.
        UsageError: it cannot be opened, or has another version.
    """
    try:
        with path.open("rb") as file:
            verify(path, file)
            file.seek(0)
            return _parse(path, file)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.EIO:  # the disk cannot read its own data
            raise _damaged(path, str(error.strerror)) from error
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def verify(path: Path, file: IO[bytes]) -> None:
    """Refuse a file that differs in any bit from what was written.

    Raises:
        DamagedError: it differs.
        UsageError: it has another version.
    """
    size = file.seek(0, os.SEEK_END)
    length = size - TRAILER.size - CHECKSUM_BYTES
    if length < 0:
        raise _damaged(path, "it is empty" if size == 0 else f"it ends after {size} bytes")
    file.seek(length)
    trailer = file.read(TRAILER.size)
    mark, version, recorded_length = TRAILER.unpack(trailer)
    if mark != MARK:
        raise _damaged(path, f"its end is not a checkpoint's: it was cut to {size:,} bytes, or is something else")
    checksum = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
    file.seek(0)
    for start in range(0, length, CHUNK_BYTES):
        checksum.update(file.read(min(CHUNK_BYTES, length - start)))
    checksum.update(trailer)
    file.seek(length + TRAILER.size)
    if recorded_length != length or file.read(CHECKSUM_BYTES) != checksum.digest():
        raise _damaged(path, "its checksum is wrong")
    if version != VERSION:
        raise UsageError(f"{path} has version {version}; this fggp reads version {VERSION}: resume with the other one")


def _parse(path: Path, file: IO[bytes]) -> Checkpoint:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # unpickling a file that was made to be refused can raise anything
        # The message continues with how to run the file's code; its first sentence is the reason.
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise _damaged(path, f"it holds what no checkpoint does: {reason}") from error
    match content:
        case {"state": dict(state), "settings": dict(settings), "metrics": str(metrics)}:
            return Checkpoint(state, settings, metrics)
    raise _damaged(path, "it holds something else than a run")


class ChecksummedFile:
    """A file for ``torch.save`` that counts bytes, sums them up, and remembers the disk's error.

    Args:
        file: receives the bytes.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.checksum = hashlib.blake2b(digest_size=CHECKSUM_BYTES)
        self.length = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of the data."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.checksum.update(data)
        self.length += len(data)
        return len(data)

    def flush(self) -> None:
        """Write what is buffered."""
        self.file.flush()


def _damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(f"{path} is damaged: {reason}")
