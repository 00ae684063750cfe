"""Places in a run where something can be made to happen: in the step, in the update, around every byte and rename.

They are found by wrapping the functions that a run calls; the run's code does not change.
"""

import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fggp.lab.training import checkpoint, pictures
from fggp.lab.training.run_folder import RunFolder
from fggp.masks.masks import Masks

KINDS = {
    "in the step": ("step",),
    "in the update": ("update", "masking"),
    "in the checkpoint's write": ("checkpoint",),
    "between write and rename": ("before checkpoint.previous.pt", "before checkpoint.pt"),
    "between the renames": ("after checkpoint.previous.pt",),
    "between rename and the next": ("after checkpoint.pt",),
    "between metrics and checkpoint": ("line",),
    "in a line of the metrics": ("half a line",),
    "beginning and ending": (
        *(
            "begin",
            "before settings.json",
            "after settings.json",
            "before model.safetensors",
            "after model.safetensors",
        ),
        *("before record.json", "after record.json"),
    ),
    "at any time": ("timer",),
}
"""Places by what tables call them. The timer is no place: it strikes wherever the run is."""

ON_EVERY_RANK = ("step", "update", "masking", "timer")

Reached = Callable[..., None]
"""Called as reached(place), or reached(place, amount, before) where the place is an amount of bytes long, or where
something is to be done before the end."""


def install(reached: Reached, stepped: Callable[[], None]) -> None:
    """Have `reached` called whenever this process comes to a place, and `stepped` after every optimizer step."""
    pictures.draw_run = lambda *args: []  # half of a small run's time
    _around_steps(reached, stepped)
    _around_metrics(reached)
    _in_checkpoint(reached)
    _around_renames(reached)


def _around_steps(reached: Reached, stepped: Callable[[], None]) -> None:
    optimizer: Any = importlib.import_module("torch.optim.sgd")  # torch.optim hides its modules
    sgd, change, apply = optimizer.sgd, Masks.set_and_apply, Masks.apply

    def sgd_reached(*args: Any, **kwargs: Any) -> None:
        sgd(*args, **kwargs)
        stepped()
        reached("step")  # the pruner has chosen, the weights have moved, nothing is masked

    def change_reached(*args: Any, **kwargs: Any) -> None:
        reached("update")
        change(*args, **kwargs)

    def apply_reached(*args: Any, **kwargs: Any) -> None:
        reached("masking")  # in an update the masks have changed, the weights have not yet
        apply(*args, **kwargs)

    optimizer.sgd, Masks.set_and_apply, Masks.apply = sgd_reached, change_reached, apply_reached


def _around_metrics(reached: Reached) -> None:
    begin, log, save_checkpoint = RunFolder.begin, RunFolder.log, RunFolder.save_checkpoint

    def begin_reached(folder: RunFolder, settings: Any) -> None:
        reached("begin")
        begin(folder, settings)

    def log_reached(folder: RunFolder, line: Any) -> None:
        def write_half() -> None:
            text = json.dumps(line)
            with folder.metrics_file.open("a") as file:
                file.write(text[: len(text) // 2])

        reached("half a line", before=write_half)
        log(folder, line)

    def save_reached(folder: RunFolder, state: Any) -> None:
        reached("line")
        save_checkpoint(folder, state)

    RunFolder.begin, RunFolder.log, RunFolder.save_checkpoint = begin_reached, log_reached, save_reached


def _in_checkpoint(reached: Reached) -> None:
    write = checkpoint.ChecksummedFile.write

    def write_reached(file: Any, data: bytes) -> int:
        def write_half() -> None:
            write(file, bytes(data)[: len(data) // 2])
            file.flush()

        reached("checkpoint", amount=len(data), before=write_half)
        return write(file, data)

    checkpoint.ChecksummedFile.write = write_reached


def _around_renames(reached: Reached) -> None:
    replace = os.replace

    def replace_reached(source: Path, target: Path) -> None:
        reached(f"before {target.name}")
        replace(source, target)
        reached(f"after {target.name}")

    os.replace = replace_reached
