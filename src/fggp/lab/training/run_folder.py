"""A run on disk: settings, metrics line by line, checkpoints, and the finished model with its record."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import safetensors.torch
import torch

from fggp.atomic import atomic_write
from fggp.lab.base import Json, disk
from fggp.lab.base.disk import tell, writing
from fggp.lab.base.errors import UsageError
from fggp.lab.training.checkpoint import Checkpoint, Checkpoints, read


class RunFolder:
    """The files of one run.

    - ``settings.json``: the settings, with every default filled in.
    - ``metrics.jsonl``: a line of kind "epoch" for each epoch and one of kind "update" for each change of the masks.
    - ``checkpoint.pt``: the state after the last finished epoch, and ``checkpoint.previous.pt``, the one before it.
    - ``model.safetensors``: the trained network's state dict, pruned weights stored as zeros.
    - ``record.json``: the finished run in one line; a run without a record is not finished.

    Checkpoints hold settings and metrics too: if one of the files is damaged or missing, the run resumes from the
    others, and says so on stderr. If the disk refuses a file, that is a `UsageError`, and the run can be resumed.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "settings.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoints = Checkpoints(path)
        self.checkpoint_file = self.checkpoints.newest
        self.model_file = path / "model.safetensors"
        self.record_file = path / "record.json"
        self._settings: Json = {}

    @contextmanager
    def locked(self, seconds: float = 0) -> Iterator[None]:
        """Keep other processes out of the folder.

        Raises:
            UsageError: another process still works in it after this many seconds.
        """
        with disk.locked(self.path, f"{self.path} is in use by another process; wait for it, or stop it", seconds):
            yield

    def holds_run(self) -> bool:
        """Whether a run was ever begun here."""
        return self.settings_file.exists() or self.record_file.exists() or self.checkpoints.exist()

    def record(self) -> Json | None:
        """Return the finished run's record, None if the run is not finished or the record is damaged."""
        record = _read_json(self.record_file)
        if record is None and self.record_file.exists():
            tell(f"{self.record_file} is damaged: the run counts as unfinished, and resuming it writes the record anew")
        return record

    def check_settings(self, settings: Json) -> None:
        """Compare settings with the run's, and write settings.json again if it is damaged or missing.

        Raises:
            UsageError: naming every setting that differs.
        """
        own = _read_json(self.settings_file)
        if own is None or _differing(own, settings):
            # A flipped bit may give other valid settings, so the copies decide.
            own = self._copied_settings() or own or settings
            differ = _differing(own, settings)
            if differ:
                listed = "; ".join(
                    f"{name} is {settings.get(name)!r}, the run's is {own.get(name)!r}" for name in differ
                )
                raise UsageError(f"{self.path} cannot be resumed with other settings: {listed}")
            tell(f"{self.settings_file} is damaged or missing: it is written anew")
            self._write_settings(settings)
        self._settings = settings

    def _copied_settings(self) -> Json | None:
        """Return the settings that the record or a checkpoint holds."""
        match _read_json(self.record_file):
            case {"settings": dict(settings)}:
                return settings
        for file in (self.checkpoints.newest, self.checkpoints.previous):
            with suppress(FileNotFoundError, UsageError):
                return read(file).settings
        return None

    def begin(self, settings: Json) -> None:
        """Create the folder and write the settings."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._remove_partial_files()
        self._restore_metrics(b"")
        self._write_settings(settings)
        self._settings = settings

    def _write_settings(self, settings: Json) -> None:
        with writing(self.settings_file), atomic_write(self.settings_file) as file:
            file.write(json.dumps(settings, indent=2).encode() + b"\n")

    def log(self, line: Json) -> None:
        """Append a line to the metrics."""
        with writing(self.metrics_file), self.metrics_file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self, kind: str) -> list[Json]:
        """Return the metrics lines of a kind, "epoch" or "update", oldest first."""
        lines = map(json.loads, self.metrics_file.read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]

    def last_epoch(self) -> Json | None:
        """Return the latest metrics line of an epoch, None before the first; another process may be writing."""
        if self.metrics_file.exists():
            for text in reversed(self.metrics_file.read_text(errors="replace").splitlines(keepends=True)):
                # A line that is being written, or was cut short by a kill, has no end.
                with suppress(ValueError, KeyError, TypeError):  # a damaged line; resuming repairs it
                    if text.endswith("\n") and (line := json.loads(text))["kind"] == "epoch":
                        return dict(line)
        return None

    def save_checkpoint(self, state: Json) -> None:
        """Write a checkpoint; this and the one before it are kept.

        Args:
            state: what `load_checkpoint` returns; ``torch.load(weights_only=True)`` must read it.
        """
        with writing(self.metrics_file), self.metrics_file.open("rb+") as file:
            os.fsync(file.fileno())
            metrics = file.read()
        self.checkpoints.save(Checkpoint(state, self._settings, metrics.decode()))

    def load_checkpoint(self) -> Json | None:
        """Return the newest good checkpoint's state, None before the first; remove everything later than it.

        That is metrics, and files that a kill left incomplete. A damaged newest checkpoint is reported and moved aside,
        and the previous one is returned.

        Raises:
            UsageError: there are checkpoints, but none that can be read.
        """
        self._remove_partial_files()
        checkpoint = self.checkpoints.load()
        if checkpoint is not None:
            self._restore_metrics(checkpoint.metrics.encode())
            return checkpoint.state
        if self.metrics_file.exists():
            lost = self.metrics_file.read_bytes().count(b'"kind": "epoch"')
            if lost > 1:  # a kill just before the first checkpoint leaves one
                tell(f"{self.checkpoint_file} is missing, and so is the one before it: {lost} epochs are repeated")
        self._restore_metrics(b"")
        return None

    def _restore_metrics(self, content: bytes) -> None:
        """Give the metrics the content that they had at a checkpoint."""
        current = self.metrics_file.read_bytes() if self.metrics_file.exists() else b""
        if current.startswith(content):
            if current != content:
                os.truncate(self.metrics_file, len(content))
            return
        tell(f"{self.metrics_file} is damaged or missing: it is written anew from the checkpoint")
        with writing(self.metrics_file), atomic_write(self.metrics_file) as file:
            file.write(content)

    def _remove_partial_files(self) -> None:
        for partial in self.path.glob("*.partial"):
            partial.unlink(missing_ok=True)

    def save_model(self, state: dict[str, torch.Tensor]) -> None:
        """Write the network's state dict: dense, in plain memory order."""
        # Clones, because safetensors refuses tensors that share memory, as tied weights do.
        plain = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        with writing(self.model_file), atomic_write(self.model_file) as file:
            file.write(safetensors.torch.save(plain))

    def finish(self, record: Json) -> None:
        """Write the record, which makes the run finished. One checkpoint is kept."""
        self.checkpoints.keep_newest()  # before the record: a finished run is not resumed, so nothing would remove them
        with writing(self.record_file), atomic_write(self.record_file) as file:
            file.write(json.dumps(record).encode() + b"\n")


def _read_json(file: Path) -> Json | None:
    """Return the JSON object in a file, None if there is no file or no object in it."""
    try:
        content = json.loads(file.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _differing(own: Json, settings: Json) -> list[str]:
    return [name for name in {**own, **settings} if own.get(name) != settings.get(name)]
