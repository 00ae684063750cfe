"""Atomic file writes: a file appears complete, or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def atomic_write(path: Path, keep: Path | None = None) -> Iterator[IO[bytes]]:
    """Open a file for writing that replaces `path` once it is complete and flushed to the disk.

    An error leaves the old file as it was. So does a kill, which may leave ``<name>.<8 digits>.partial`` beside it.

    Args:
        path: the file.
        keep: a new name for the old file, given right before the new file takes `path`. A kill between the two renames
            leaves the old file under this name and no file at `path`.
    """
    with atomic_path(path, keep) as partial, partial.open("xb") as file:
        yield file


@contextmanager
def atomic_path(path: Path, keep: Path | None = None) -> Iterator[Path]:
    """Yield the path of a partial file that replaces `path` when the block ends.

    Like `atomic_write`, for writers that need a path.
    """
    # A random name, because all ranks of a distributed run may write the same file.
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
    # The folder holds the rename. POSIX must flush it; other systems cannot.
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
