"""Folders that one process at a time works in, and what a disk refuses, told to the user."""

import errno
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import disk_usage

from filelock import FileLock, Timeout

from fggp.lab.base.errors import UsageError

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a full disk, a full quota and a limit on files say."""
LOCK = ".lock"
"""The file that is locked. It stays: were it removed, two that wait for it could lock a file each."""


@contextmanager
def locked(folder: Path, busy: str, seconds: float = 0) -> Iterator[None]:
    """Keep all others out of a folder; a process that dies lets go of it.

    Args:
        folder: made if it is not there, with those above it; what was made is gone again if nothing was put into it.
        busy: what to say where somebody else is in it.
        seconds: to wait for that one.

    Raises:
        UsageError: with that text, or naming what the disk refused.
    """
    lock = FileLock(folder / LOCK)
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=seconds)
        except Timeout as error:  # an OSError too
            raise UsageError(busy) from error
    try:
        yield
    finally:
        with suppress(OSError):  # somebody else has put something there, or taken the folder away
            if {file.name for file in folder.iterdir()} <= {LOCK}:
                (folder / LOCK).unlink(missing_ok=True)
                for path in made:
                    path.rmdir()
        lock.release()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the disk refuses into an error for the user.

    Raises:
        UsageError: naming the file, and the room there is if that is the trouble.
    """
    try:
        yield
    except OSError as error:
        reason, remedy = error.strerror or str(error), "mend that"
        if error.errno in NO_ROOM:
            folder = next(parent for parent in path.absolute().parents if parent.exists())
            reason += f" ({disk_usage(folder).free / 1e6:,.1f} MB are free)"
            remedy = "make room"
        raise UsageError(
            f"{path} cannot be written: {reason}; {remedy} and resume the run, which goes on from its last checkpoint"
        ) from error


def tell(text: str) -> None:
    """Tell the user of something that was put right: on stderr, because workers of a grid have no console."""
    print(f"fggp: {text}", file=sys.stderr, flush=True)
