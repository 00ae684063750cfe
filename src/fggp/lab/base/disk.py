"""Folders that one process at a time works in, and errors of the disk as the user reads them."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import disk_usage

from filelock import FileLock, Timeout

from fggp.lab.base.errors import UsageError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk, a full quota and a limit on the size of files."""
LOCK = ".lock"
"""The file that is locked. It stays: if it were removed, two waiting processes could lock a file each."""


@contextmanager
def locked(folder: Path, busy: str, seconds: float = 0) -> Iterator[None]:
    """Keep other processes out of a folder. A process that dies releases it.

    Args:
        folder: created with its parents if it does not exist; what was created is removed again if it stays empty.
        busy: the error message if another process holds the folder.
        seconds: how long to wait for that process.

    Raises:
        UsageError: with the text ``busy``, or naming what the disk refused.
    """
    lock = FileLock(folder / LOCK)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:  # an OSError too
            raise UsageError(busy) from error
    try:
        yield
    finally:
        with suppress(OSError):  # another process has put a file there, or removed the folder
            if {file.name for file in folder.iterdir()} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
                for path in created:
                    path.rmdir()
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk into one for the user.

    Raises:
        UsageError: naming the file, and the free space if the disk is full.
    """
    try:
        yield
    except OSError as error:
        reason, remedy = error.strerror or str(error), "fix that"
        if error.errno in DISK_FULL:
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            reason += f" ({disk_usage(folder).free / 1e6:,.1f} MB are free)"
            remedy = "make room"
        raise UsageError(
            f"{path} cannot be written: {reason}; {remedy} and resume the run: it continues from its last checkpoint"
        ) from error


def tell(text: str) -> None:
    """Tell the user of a repair, on stderr: workers of a grid have no console."""
    print(f"fggp: {text}", file=sys.stderr, flush=True)
