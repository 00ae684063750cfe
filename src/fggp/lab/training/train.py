"""`fggp train`: one run from settings to a finished run folder, interrupted or not."""

import time
from collections.abc import Callable
from contextlib import ExitStack

from rich.console import Console

from fggp.lab.base.disk import writing
from fggp.lab.base.errors import UsageError
from fggp.lab.base.progress import RunProgress
from fggp.lab.training.data import ImageData, load_data
from fggp.lab.training.distributed import ALONE, World
from fggp.lab.training.methods import name_of
from fggp.lab.training.record import epoch_line, label, make_record, update_line
from fggp.lab.training.run_folder import Json, RunFolder
from fggp.lab.training.settings import ResolvedSettings, TrainSettings
from fggp.lab.training.trainer import Tally, Trainer


def train(settings: TrainSettings, console: Console, world: World = ALONE) -> Json:
    """Train as the settings say, or go on with a run that was interrupted; leave the run folder finished.

    Args:
        settings: what to train and how.
        console: shows the run's progress; those of other ranks than the first should be quiet.
        world: the ranks that train; all of them call this.

    Returns:
        The record (`fggp.lab.training.record.make_record`).

    Raises:
        UsageError: settings, data or run folder are not as they should be, or training diverged.
    """
    run_settings = settings.resolve()
    world.check_same({**run_settings.as_json(), "fsdp": run_settings.fsdp})
    folder = RunFolder(run_settings.out)
    record = world.shared(_existing, folder, run_settings, console)
    if record is None:
        with ExitStack() as until_done:
            world.once(lambda: until_done.enter_context(folder.locked()))
            record = _train(folder, run_settings, console, world)
    world.once(_summarise, folder, record, console)
    return record


def _existing(folder: RunFolder, settings: ResolvedSettings, console: Console) -> Json | None:
    """Check that the folder is free, or that its run may be resumed; return the record of a finished one."""
    if not folder.holds_run():
        if settings.resume:
            console.print(f"no run in {folder.path} yet: starting one")
        return None
    if not settings.resume:
        raise UsageError(f"{folder.path} already holds a run; add --resume to go on with it, or choose another --out")
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
    """Begin a run, or go on from its last checkpoint, and finish it.

    All ranks train; what is done to the folder, the first one does.

    Args:
        folder: of a run of these settings, or of none yet.
        settings: what to train and how.
        load: gives the run's data.
        console: shows the run's progress.
        after_epoch: called with an epoch's metrics line once the checkpoint is on the disk; whatever it raises leaves
            a run that can be gone on with.
        before_finish: called on the first rank when all is written but the record.
        world: the ranks that train; all of them call this.

    Returns:
        The record.
    """
    start = time.monotonic()
    data = world.in_turn(load)
    trainer = Trainer(settings, data, world)
    state = world.shared(_begun, folder, settings)
    done, seconds_before = 0, 0.0
    if state is not None:
        trainer.load_state_dict(state["trainer"])
        done, seconds_before = state["epochs"], state["seconds"]
        console.print(f"going on after epoch {done} of {settings.epochs}", highlight=False)

    def seconds() -> float:
        return seconds_before + time.monotonic() - start

    with RunProgress(console, trainer, done) as progress:

        def on_step(tally: Tally) -> None:
            if trainer.masks_changed:
                world.once(folder.log, update_line(trainer))
            progress.step(tally)

        for epoch in range(done, settings.epochs):
            tally = trainer.train_epoch(epoch, on_step)
            line = epoch_line(trainer, epoch, tally)
            world.once(folder.log, line)
            checkpoint = {"trainer": trainer.state_dict(), "epochs": epoch + 1, "seconds": seconds()}
            world.once(folder.save_checkpoint, checkpoint)
            progress.epoch(tally, line)
            after_epoch(line)

    world.once(folder.save_model, trainer.network_state())
    world.once(before_finish, data)
    record = make_record(folder.path.name, trainer, world.shared(folder.metrics, "epoch"), seconds())
    world.once(folder.finish, record)
    return record


def _begun(folder: RunFolder, settings: ResolvedSettings) -> Json | None:
    """Begin the folder's run, or return the last checkpoint of the one that it holds."""
    if folder.holds_run():
        return folder.load_checkpoint()
    folder.begin(settings.as_json())
    return None


def _summarise(folder: RunFolder, record: Json, console: Console) -> None:
    left = f"{record['parameters_left']:,} of {record['parameters']:,} parameters left"
    console.print(
        f"[bold]{record['method']}[/] on {record['data']}: test accuracy [bold]{record['test_accuracy']:.2f} %[/]"
        f" at sparsity {100 * record['sparsity']:.2f} %, {left}",
        highlight=False,
        soft_wrap=True,
    )
    for file in sorted(folder.path.glob("[!.]*")):
        console.print(f"  {file}", highlight=False, soft_wrap=True)
