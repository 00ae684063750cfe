"""What tells trained weights apart before they are loaded: their name, and a digest of what is under it."""

import hashlib
from functools import lru_cache
from pathlib import Path

from fggp.lab.base.errors import UsageError
from fggp.lab.training.pretrained import pretrained
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import PRETRAINED

SHOWN_DIGITS = 12
"""Of a digest, in hexadecimal."""


def name_with_digest(weights: str, model: str) -> str:
    """Return weights as the settings in a record name them, NAME#DIGEST, without folders of this machine.

    Args:
        weights: a file, a run folder or "pretrained", as `TrainSettings.weights`.
        model: name of the network, which has other pretrained weights than the next.

    Raises:
        UsageError: there are no such weights.
    """
    if weights == PRETRAINED:
        return f"{PRETRAINED}#{hashlib.blake2b(pretrained(model).identity.encode()).hexdigest()[:SHOWN_DIGITS]}"
    path = Path(weights)
    file = finished_model(path) if path.is_dir() else path
    try:
        state = file.stat()
        digest = _digest(file, state.st_size, state.st_mtime_ns)
    except OSError as error:
        raise UsageError(f"weights is {weights!r}, which cannot be read: {error.strerror or error}") from error
    return f"{path.resolve().name}#{digest[:SHOWN_DIGITS]}"


def finished_model(folder: Path) -> Path:
    """Return the weights of a finished run.

    Raises:
        UsageError: the folder holds none.
    """
    run = RunFolder(folder)
    if not (run.record_file.exists() and run.model_file.exists()):
        raise UsageError(f"weights is {str(folder)!r}, a folder without a finished run of fggp train")
    return run.model_file


@lru_cache
def _digest(file: Path, size: int, modified: int) -> str:
    """Return BLAKE2b of a file's bytes; size and time of its change are those of the file to be read."""
    with file.open("rb") as opened:
        digest = hashlib.blake2b()
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
