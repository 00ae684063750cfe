"""What a grid shows while it goes: a live table of bars in a terminal, and a plain line a run, in a log too."""

import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fggp.lab.training.run_folder import Json


class GridProgress:
    """A context in which a grid's progress is shown.

    Args:
        console: where; live bars only if it is a terminal.
        total: runs of the grid.
        finished: how many of them are.
        epochs: of each run that is not finished: how many it has in all, and how many are done.
    """

    def __init__(self, console: Console, total: int, finished: int, epochs: dict[str, tuple[int, int]]) -> None:
        self.console = console
        self.total, self.finished_runs = total, finished
        self.epochs = {run: whole for run, (whole, _) in epochs.items()}
        self.done = {run: done for run, (_, done) in epochs.items()}
        self.before = sum(self.done.values())
        self.start = time.monotonic()
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[state]}"),
            console=console,
            refresh_per_second=4,
            expand=True,
            transient=True,
            disable=not console.is_terminal,
        )
        self.overall = self.bars.add_task("", total=sum(self.epochs.values()), state="")
        self.running: dict[str, TaskID] = {}
        self._refresh()

    def __enter__(self) -> "GridProgress":
        self.bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.bars.stop()

    def started(self, run: str) -> None:
        """Show that a run is under way."""
        self.running[run] = self.bars.add_task(
            run,
            total=self.epochs[run],
            completed=self.done[run],
            state=f"epoch {self.done[run] + 1}/{self.epochs[run]}",
        )

    def epoch(self, run: str, line: Json) -> None:
        """Show an epoch's metrics."""
        self.done[run] = line["epoch"]
        which = "test" if line["val_accuracy"] is None else "val"
        state = f"epoch {line['epoch']}/{self.epochs[run]}  {which} {line[f'{which}_accuracy']:.1f} %"
        self.bars.update(self.running[run], completed=line["epoch"], state=state)
        self._refresh()

    def finished(self, run: str, record: Json) -> None:
        """Print a line for a finished run."""
        self.finished_runs += 1
        self.done[run] = self.epochs[run]
        self._end(run)
        left = self._left()
        self._print(
            f"{self.finished_runs}/{self.total}  {run}  test {record['test_accuracy']:.2f} %"
            f"  {timedelta(seconds=round(record['wall_seconds']))}{f'  ({left})' if left else ''}"
        )

    def stopped(self, run: str) -> None:
        """Print that a run must go on another time."""
        self._end(run)
        self._print(f"{run}  stopped after epoch {self.done[run]} of {self.epochs[run]}")

    def again(self, run: str, reason: str) -> None:
        """Print that a run is tried again."""
        self._end(run)
        self._print(f"{run}  {reason}; trying once more", style="yellow")

    def failed(self, run: str, reason: str) -> None:
        """Print why a run cannot be finished."""
        self._end(run)
        self._print(f"{run}  failed: {reason}", style="red")

    def _end(self, run: str) -> None:
        self.bars.remove_task(self.running.pop(run))
        self._refresh()

    def _refresh(self) -> None:
        self.bars.update(
            self.overall,
            completed=sum(self.done.values()),
            description=f"{self.finished_runs}/{self.total} runs",
            state=self._left(),
        )

    def _left(self) -> str:
        """Estimate from the epochs done here; empty before the first."""
        done = sum(self.done.values())
        if done <= self.before:
            return ""
        seconds = (time.monotonic() - self.start) / (done - self.before) * (sum(self.epochs.values()) - done)
        return f"{timedelta(seconds=round(seconds))} left"

    def _print(self, line: str, style: str | None = None) -> None:
        self.console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)
