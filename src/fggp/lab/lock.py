"""A folder that one process at a time works in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fggp.lab.checkpoint import writing
from fggp.lab.errors import UsageError

NAME = ".lock"
"""The file that is locked. It stays: were it removed, two that wait for it could lock a file each."""


@contextmanager
def locked(folder: Path, busy: str, seconds: float = 0) -> Iterator[None]:
    """Keep all others out of a folder; a process that dies lets go of it.

    Args:
        folder: made if it is not there, and gone again if nothing was put into it.
        busy: what to say where somebody else is in it.
        seconds: to wait for that one.

    Raises:
        UsageError: with that text, or naming what the disk refused.
    """
    lock = FileLock(folder / NAME)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:  # an OSError too
            raise UsageError(busy) from error
    try:
        yield
    finally:
        if {file.name for file in folder.iterdir()} <= {NAME}:
            (folder / NAME).unlink(missing_ok=True)
            folder.rmdir()
        lock.release()
