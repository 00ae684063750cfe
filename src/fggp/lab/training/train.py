"""`fggp train`: one run from settings to a finished run folder, interrupted or not."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fggp.lab.base import Json
from fggp.lab.base.disk import writing
from fggp.lab.base.errors import UsageError
from fggp.lab.training import methods
from fggp.lab.training.data import ImageData, load_data
from fggp.lab.training.distributed import ALONE, World
from fggp.lab.training.methods import label, name_of
from fggp.lab.training.record import epoch_line, make_record, update_line
from fggp.lab.training.run_folder import RunFolder
from fggp.lab.training.settings import ResolvedSettings, TrainSettings
from fggp.lab.training.trainer import Tally, Trainer

READ_SECONDS = 0.5
"""How often the live bar reads the loss, which waits for the device."""


def train(settings: TrainSettings, console: Console, world: World = ALONE) -> Json:
    """Train as the settings say, or continue an interrupted run, until the run folder is finished.

    Args:
        settings: what to train and how.
        console: shows the run's progress; it should be quiet on ranks other than 0.
        world: the ranks that train; all of them call this.

    Returns:
        The record (`fggp.lab.training.record.make_record`).

    Raises:
        UsageError: settings, data or run folder are wrong, or training diverged.
    """
    run_settings = settings.resolve()
    world.check_same({**run_settings.as_json(), "fsdp": run_settings.fsdp})
    folder = RunFolder(run_settings.out)
    record = world.shared(_finished_record, folder, run_settings, console)
    if record is None:
        with ExitStack() as until_done:
            world.once(lambda: until_done.enter_context(folder.locked()))
            record = _train(folder, run_settings, console, world)
    world.once(_summarise, folder, record, console)
    return record


def _finished_record(folder: RunFolder, settings: ResolvedSettings, console: Console) -> Json | None:
    """Check that the folder is free, or that its run may be resumed; return the record of a finished one."""
    if not folder.holds_run():
        if settings.resume:
            console.print(f"no run in {folder.path} yet: starting one")
        return None
    if not settings.resume:
        raise UsageError(f"{folder.path} already holds a run; add --resume to continue it, or choose another --out")
    folder.check_settings(settings.as_json())
    record = folder.record()
    if record is not None:
        console.print(f"the run in {folder.path} is finished")
    return record


def _train(folder: RunFolder, settings: ResolvedSettings, console: Console, world: World) -> Json:
    from fggp.lab.training.pictures import draw_run  # matplotlib takes a second to import

    def draw(data: ImageData) -> None:
        title = f"{label(name_of(settings.method))}, {settings.model} on {data.name}"
        with writing(folder.path):
            draw_run(folder.path, title, folder.metrics("epoch"), folder.metrics("update"), settings.init_sparsity)

    return run_to_end(folder, settings, lambda: load_data(settings, console), console, before_finish=draw, world=world)


def run_to_end(
    folder: RunFolder,
    settings: ResolvedSettings,
    load: Callable[[], ImageData],
    console: Console,
    *,
    after_epoch: Callable[[Json], None] = lambda line: None,
    before_finish: Callable[[ImageData], None] = lambda data: None,
    world: World = ALONE,
) -> Json:
    """Begin a run, or continue it from its last checkpoint, and finish it.

    All ranks train; rank 0 alone uses the folder.

    Args:
        folder: of a run of these settings, or a free one.
        settings: what to train and how.
        load: returns the run's data.
        console: shows the run's progress.
        after_epoch: called with an epoch's metrics line once the checkpoint is on the disk; if it raises an error, the
            run can still be resumed.
        before_finish: called on rank 0 when everything but the record is written.
        world: the ranks that train; all of them call this.

    Returns:
        The record.
    """
    start = time.monotonic()
    data = world.in_turn(load)
    trainer = Trainer(settings, data, world, measure_start=not world.shared(folder.checkpoints.exist))
    state = world.shared(_begin_or_load, folder, settings)
    done, seconds_before = 0, 0.0
    if state is None and trainer.start is not None:
        console.print(
            trainer.start.text(not methods.regrows(settings.method)), highlight=False, markup=False, soft_wrap=True
        )
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        done, seconds_before = state["epochs"], state["seconds"]
        console.print(f"continuing after epoch {done} of {settings.epochs}", highlight=False)

    def seconds() -> float:
        return seconds_before + time.monotonic() - start

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        refresh_per_second=4,
        transient=True,
        disable=not console.is_terminal,
    )
    steps = trainer.steps_per_epoch
    shown = bar.add_task("", total=settings.epochs * steps, completed=done * steps)
    began, read_at = time.monotonic(), 0.0

    def on_step(tally: Tally) -> None:
        nonlocal read_at
        if trainer.masks_changed:
            world.once(folder.log, update_line(trainer))
        text = None
        if not bar.disable and time.monotonic() - read_at >= READ_SECONDS:
            read_at = time.monotonic()
            text = _step_text(trainer, tally)
        bar.update(shown, advance=1, description=text)

    with bar:
        for epoch in range(done, settings.epochs):
            tally = trainer.train_epoch(epoch, on_step)
            line = epoch_line(trainer, epoch, tally)
            world.once(folder.log, line)
            checkpoint = {"trainer": trainer.state_dict(), "epochs": epoch + 1, "seconds": seconds()}
            world.once(folder.save_checkpoint, checkpoint)
            left = (time.monotonic() - began) / (epoch + 1 - done) * (settings.epochs - epoch - 1)
            text = f"{_epoch_text(trainer, tally, line)}  {timedelta(seconds=round(left))} left"
            console.print(text, highlight=False, soft_wrap=True)
            after_epoch(line)

    world.once(folder.save_model, trainer.network_state())
    world.once(before_finish, data)
    record = make_record(folder.path.name, trainer, world.shared(folder.metrics, "epoch"), seconds())
    world.once(folder.finish, record)
    return record


def _begin_or_load(folder: RunFolder, settings: ResolvedSettings) -> Json | None:
    """Begin the folder's run, or return the last checkpoint of the run that it holds."""
    if folder.holds_run():
        return folder.load_checkpoint()
    folder.begin(settings.as_json())
    return None


def _step_text(trainer: Trainer, tally: Tally) -> str:
    """Describe the epoch so far; loss and accuracy are those of this rank's images."""
    epoch = (trainer.step - 1) // trainer.steps_per_epoch + 1
    return (
        f"epoch {epoch}/{trainer.settings.epochs}  loss {tally.loss:.3f}"
        f"  accuracy {tally.accuracy:.0f} %{_sparsity_text(trainer)}"
    )


def _epoch_text(trainer: Trainer, tally: Tally, line: Json) -> str:
    measured = {name: line[f"{name}_accuracy"] for name in ("val", "test")}
    accuracies = "".join(f"  {name} {value:.2f} %" for name, value in measured.items() if value is not None)
    return (
        f"epoch {line['epoch']}/{trainer.settings.epochs}  loss {tally.loss:.4f}  train {tally.accuracy:.2f} %"
        f"{accuracies}{_sparsity_text(trainer)}  {tally.images / tally.seconds:,.0f} images/s"
    )


def _sparsity_text(trainer: Trainer) -> str:
    if trainer.pruner is None:
        return ""
    return f"  sparsity {100 * trainer.sparsity:.1f} → {100 * trainer.settings.sparsity:g} %"


def _summarise(folder: RunFolder, record: Json, console: Console) -> None:
    left = f"{record['parameters_left']:,} of {record['parameters']:,} parameters kept"
    console.print(
        f"[bold]{record['method']}[/] on {record['data']}: test accuracy [bold]{record['test_accuracy']:.2f} %[/]"
        f" at sparsity {100 * record['sparsity']:.2f} %, {left}",
        highlight=False,
        soft_wrap=True,
    )
    for file in sorted(folder.path.glob("[!.]*")):
        console.print(f"  {file}", highlight=False, soft_wrap=True)
