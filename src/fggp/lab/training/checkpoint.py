"""The checkpoints of a run: files that know whether they are whole, and two of them.

A file is what ``torch.save`` writes, which ``torch.load`` reads as it is, and 64 bytes after it: a mark of 16 bytes,
the version and the length of what is before, 8 bytes each, little-endian, and BLAKE2b of all of it, 32 bytes. The
checksum is there for accidents; that a file made with malice runs no code is ``weights_only``'s doing.
"""

import errno
import hashlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import torch

from fggp.atomic import atomic_write
from fggp.lab.base.disk import tell, writing
from fggp.lab.base.errors import UsageError

Json = dict[str, Any]

VERSION = 1
_MARK = b"fggp checkpoint\n"
_END = struct.Struct("<16sQQ")
# Of BLAKE2b and not CRC-32, which misses one damage in four billion and need not be faster than disks either, and not
# SHA-256, which is slow on processors that have no instructions for it.
_CHECKSUM_BYTES = 32
_CHUNK = 1 << 20


class DamagedError(UsageError):
    """A file is not what was once written."""


@dataclass(frozen=True)
class Checkpoint:
    """A run between two epochs, and what it takes to mend the other files of its folder.

    Attributes:
        state: of the training; ``torch.load(weights_only=True)`` must read it.
        settings: of the run.
        metrics: all lines until then.
    """

    state: Json
    settings: Json
    metrics: str


class Checkpoints:
    """The last two checkpoints in a folder: should the newest be damaged, the one before it is still there.

    A damaged newest one is moved to ``checkpoint.damaged.pt`` once the one before it has proved to be good, or the
    next one would take the good one's place.

    Args:
        folder: where they are.
    """

    def __init__(self, folder: Path) -> None:
        self.newest = folder / "checkpoint.pt"
        self.previous = folder / "checkpoint.previous.pt"
        self.damaged = folder / "checkpoint.damaged.pt"

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the newest one; the one that was it becomes the previous one.

        Whenever this is cut short, one whole checkpoint is left at least, and it is no older than the newest that was
        there.
        """
        write(self.newest, checkpoint, keep=self.previous)

    def load(self) -> Checkpoint | None:
        """Return the newest good checkpoint, None where none was ever written.

        Raises:
            UsageError: there are some, but none that can be read.
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
                    self._fall_back(reasons[0])
                return checkpoint
        if not self.exist():
            return None
        raise UsageError(
            f"no checkpoint can be read: {'; '.join(reasons)}; put back a copy of one, or remove what is left of them "
            "and resume the run, which then begins anew"
        )

    def _fall_back(self, reason: str) -> None:
        if self.newest.exists():
            with writing(self.damaged):
                os.replace(self.newest, self.damaged)
            reason += f" (it is now {self.damaged.name})"
        tell(f"{reason}; going on from the one before it, {self.previous.name}")

    def exist(self) -> bool:
        """Whether there is one, be it damaged."""
        return self.newest.exists() or self.previous.exists()

    def keep_newest(self) -> None:
        """Remove what is of no more use when a run is over: the newest one has all of it."""
        self.previous.unlink(missing_ok=True)
        self.damaged.unlink(missing_ok=True)


def write(path: Path, checkpoint: Checkpoint, keep: Path | None = None) -> None:
    """Write a checkpoint, completely or not at all.

    Args:
        path: the file.
        checkpoint: its content.
        keep: where what is there now goes.

    Raises:
        UsageError: the disk does not take it.
    """
    with writing(path), atomic_write(path, keep) as file:
        checked = _CheckedFile(file)
        try:
            torch.save(vars(checkpoint), cast(IO[bytes], checked))  # it has what PyTorch asks for
        except RuntimeError:
            # PyTorch's writer reports in its own words that it was not finished; the reason is the disk's.
            if checked.error is not None:
                raise checked.error from None
            raise
        checked.write(_END.pack(_MARK, VERSION, checked.length))
        file.write(checked.checksum.digest())


def read(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing that is in the file is run.

    Raises:
        FileNotFoundError: there is no such file.
        DamagedError: it is not whole, or no checkpoint.
        UsageError: it cannot be opened, or is of another version.
    """
    try:
        with path.open("rb") as file:
            _check(path, file)
            file.seek(0)
            return _content(path, file)
    except FileNotFoundError:
        raise
    except OSError as error:
        if error.errno == errno.EIO:  # the disk itself cannot read it any more
            raise _damaged(path, str(error.strerror)) from error
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from error


def _check(path: Path, file: IO[bytes]) -> None:
    """Refuse a file that is not to the bit what was written."""
    size = file.seek(0, os.SEEK_END)
    length = size - _END.size - _CHECKSUM_BYTES
    if length < 0:
        raise _damaged(path, "it is empty" if size == 0 else f"it ends after {size} bytes")
    file.seek(length)
    end = file.read(_END.size)
    mark, version, told = _END.unpack(end)
    if mark != _MARK:
        raise _damaged(path, f"its end is not a checkpoint's: it was cut to {size:,} bytes, or is something else")
    checksum = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
    file.seek(0)
    for start in range(0, length, _CHUNK):
        checksum.update(file.read(min(_CHUNK, length - start)))
    checksum.update(end)
    file.seek(length + _END.size)
    if told != length or file.read(_CHECKSUM_BYTES) != checksum.digest():
        raise _damaged(path, "its checksum is wrong")
    if version != VERSION:
        raise UsageError(f"{path} has version {version}; this fggp reads version {VERSION}: resume with the other one")


def _content(path: Path, file: IO[bytes]) -> Checkpoint:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # whatever unpickling may stumble over in a file that was made to be refused
        # The message goes on about how to run the file's code; its first sentence is the reason.
        reason = str(error).partition("\n")[0].partition(". ")[0] or type(error).__name__
        raise _damaged(path, f"it holds what no checkpoint does: {reason}") from error
    match content:
        case {"state": dict(state), "settings": dict(settings), "metrics": str(metrics)}:
            return Checkpoint(state, settings, metrics)
    raise _damaged(path, "it holds something else than a run")


class _CheckedFile:
    """What ``torch.save`` writes into: counts, sums up, and remembers why it could not."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.checksum = hashlib.blake2b(digest_size=_CHECKSUM_BYTES)
        self.length = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Write all of it, to the file and to the checksum."""
        try:
            self.file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.checksum.update(data)
        self.length += len(data)
        return len(data)

    def flush(self) -> None:
        """See above; PyTorch asks for it."""
        self.file.flush()


def _damaged(path: Path, reason: str) -> DamagedError:
    return DamagedError(f"{path} is damaged: {reason}")
