"""What a run shows while it goes: a live bar in a terminal, and a plain line an epoch, in a log too."""

import time
from collections.abc import Iterable
from datetime import timedelta
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from fggp.lab.training.trainer import Tally, Trainer

# Reading the loss waits for the device, so the bar does it seldom.
READ_SECONDS = 0.5


class BarAndState(Progress):
    """A progress bar with a line of text below: side by side they would not fit into 80 columns."""

    state = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bar, then the state."""
        yield from super().get_renderables()
        yield Text(self.state, overflow="ellipsis", no_wrap=True)


class RunProgress:
    """A context in which a run's progress is shown.

    Args:
        console: where; a live bar only if it is a terminal.
        trainer: the run.
        done: how many epochs are finished already.
    """

    def __init__(self, console: Console, trainer: Trainer, done: int) -> None:
        self.console = console
        self.trainer = trainer
        self.done = self.first = done
        self.start = time.monotonic()
        self.read_at = 0.0
        self.bar = BarAndState(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            refresh_per_second=4,
            expand=True,
            transient=True,
            disable=not console.is_terminal,
        )
        steps = trainer.steps_per_epoch
        self.task = self.bar.add_task("", total=trainer.settings.epochs * steps, completed=done * steps)

    def __enter__(self) -> "RunProgress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bar.stop()

    def step(self, tally: Tally) -> None:
        """Show that an optimizer step is done; loss and accuracy are those of this rank's images."""
        now = time.monotonic()
        if self.bar.disable or now - self.read_at < READ_SECONDS:
            self.bar.advance(self.task)
            return
        self.read_at = now
        self.bar.state = f"loss {tally.loss:.3f}  accuracy {tally.accuracy:.1f} %{self._sparsity()}"
        self.bar.state += f"  {_speed(tally, self.trainer.world.size)}"
        self.bar.update(self.task, advance=1, description=f"epoch {self.done + 1}/{self.trainer.settings.epochs}")

    def epoch(self, tally: Tally, line: dict[str, Any]) -> None:
        """Print a line for a finished epoch."""
        self.done += 1
        epochs = self.trainer.settings.epochs
        seconds = (time.monotonic() - self.start) / (self.done - self.first) * (epochs - self.done)
        measured = {name: line[f"{name}_accuracy"] for name in ("val", "test")}
        accuracies = "".join(f"  {name} {value:.2f} %" for name, value in measured.items() if value is not None)
        self.console.print(
            f"epoch {self.done}/{epochs}  loss {tally.loss:.4f}  train {tally.accuracy:.2f} %{accuracies}"
            f"{self._sparsity()}  {_speed(tally)}"
            f"  {timedelta(seconds=round(seconds))} left",
            highlight=False,
            soft_wrap=True,
        )

    def _sparsity(self) -> str:
        if self.trainer.pruner is None:
            return ""
        return f"  sparsity {100 * self.trainer.sparsity:.1f} → {100 * self.trainer.settings.sparsity:g} %"


def _speed(tally: Tally, ranks: int = 1) -> str:
    return f"{ranks * tally.images / tally.seconds:,.0f} images/s"
