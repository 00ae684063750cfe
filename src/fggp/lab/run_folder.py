"""A run on disk: settings, metrics line by line, an atomic checkpoint, and the finished model with its record."""

import json
import os
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from fggp.atomic import atomic_write
from fggp.lab.errors import UsageError

Json = dict[str, Any]


class RunFolder:
    """The files of one run.

    - ``settings.json``: the settings, every default made concrete.
    - ``metrics.jsonl``: a line of kind "epoch" for each epoch and one of kind "update" for each change of the masks.
    - ``checkpoint.pt``: the state after the last finished epoch.
    - ``model.safetensors``: the trained network's state dict, pruned weights stored as zeros.
    - ``record.json``: the finished run in one line; a run that has none is not finished.

    Args:
        path: the folder; it need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings_file = path / "settings.json"
        self.metrics_file = path / "metrics.jsonl"
        self.checkpoint_file = path / "checkpoint.pt"
        self.model_file = path / "model.safetensors"
        self.record_file = path / "record.json"

    def holds_run(self) -> bool:
        """Whether a run was ever begun here."""
        return self.settings_file.exists()

    def record(self) -> Json | None:
        """Return the finished run's record, None where the run is not finished."""
        return json.loads(self.record_file.read_text()) if self.record_file.exists() else None

    def check_settings(self, settings: Json) -> None:
        """Refuse settings that are not the run's own.

        Raises:
            UsageError: naming every setting that differs.
        """
        own = json.loads(self.settings_file.read_text())
        differ = [name for name in {**own, **settings} if own.get(name) != settings.get(name)]
        if differ:
            listed = "; ".join(f"{name} is {settings.get(name)!r}, the run's is {own.get(name)!r}" for name in differ)
            raise UsageError(f"{self.path} cannot be resumed with other settings: {listed}")

    def begin(self, settings: Json) -> None:
        """Make the folder and write the settings."""
        self.path.mkdir(parents=True, exist_ok=True)
        with atomic_write(self.settings_file) as file:
            file.write(json.dumps(settings, indent=2).encode() + b"\n")

    def log(self, line: Json) -> None:
        """Append a line to the metrics."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def metrics(self, kind: str) -> list[Json]:
        """Return the metrics lines of a kind, "epoch" or "update", oldest first."""
        lines = map(json.loads, self.metrics_file.read_text().splitlines())
        return [line for line in lines if line["kind"] == kind]

    def last_epoch(self) -> Json | None:
        """Return the latest metrics line of an epoch, None before the first; the run may be going on meanwhile."""
        if self.metrics_file.exists():
            for text in reversed(self.metrics_file.read_text().splitlines(keepends=True)):
                # A line that is just being written, or was cut short by a kill, has no end yet.
                if text.endswith("\n") and (line := json.loads(text))["kind"] == "epoch":
                    return dict(line)
        return None

    def save_checkpoint(self, state: Json) -> None:
        """Replace the checkpoint, and remember how far the metrics went."""
        with self.metrics_file.open("rb+") as metrics:
            os.fsync(metrics.fileno())
            metrics_bytes = metrics.seek(0, os.SEEK_END)
        with atomic_write(self.checkpoint_file) as file:
            torch.save({**state, "metrics_bytes": metrics_bytes}, file)

    def load_checkpoint(self) -> Json | None:
        """Return the checkpoint's state, None where no epoch was finished; drop what came after it.

        That is metrics, and files that a kill left half written.
        """
        for partial in self.path.glob("*.partial"):
            partial.unlink()
        state = None
        if self.checkpoint_file.exists():
            state = torch.load(self.checkpoint_file, map_location="cpu", weights_only=True)
        if self.metrics_file.exists():
            os.truncate(self.metrics_file, 0 if state is None else state["metrics_bytes"])
        return state

    def save_model(self, state: dict[str, torch.Tensor]) -> None:
        """Write the network's state dict: dense, in plain memory order."""
        # Clones, because safetensors refuses tensors that share memory, as tied weights do.
        plain = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        with atomic_write(self.model_file) as file:
            file.write(safetensors.torch.save(plain))

    def finish(self, record: Json) -> None:
        """Write the record: the run is finished."""
        with atomic_write(self.record_file) as file:
            file.write(json.dumps(record).encode() + b"\n")
