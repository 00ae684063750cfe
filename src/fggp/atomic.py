"""Files that are there completely or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a file that takes its name once it is complete and on the disk.

    An error leaves what was there. So does a kill, but for a ``<name>.<8 digits>.partial`` beside it.

    Args:
        path: the file.
        keep: the name that is given to what had `path` until then, as the last thing before the new file takes it. A
            kill in between leaves nothing at `path`, and the old file here.
    """
    with atomic_path(path, keep) as partial, partial.open("xb") as file:
        yield file


@contextmanager
def atomic_path(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Name a file to be written that takes the name `path` once it is complete and on the disk.

    For writers that want a name; else as `atomic_write`.
    """
    # A name of its own: the ranks of a distributed run may all write the same file.
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    # The rename itself is in the folder; only POSIX can and must flush that.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
