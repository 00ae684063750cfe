"""`fggp train`: one run from settings to a finished run folder, interrupted or not."""

import time
from collections.abc import Callable

from rich.console import Console

from fggp.lab.data import ImageData, load_data
from fggp.lab.errors import UsageError
from fggp.lab.progress import RunProgress
from fggp.lab.record import epoch_line, label, make_record, update_line
from fggp.lab.run_folder import Json, RunFolder
from fggp.lab.settings import ResolvedSettings, TrainSettings
from fggp.lab.trainer import Tally, Trainer


def train(settings: TrainSettings, console: Console) -> Json:
    """Train as the settings say, or go on with a run that was interrupted; leave the run folder finished.

    Returns:
        The record (`fggp.lab.record.make_record`).

    Raises:
        UsageError: settings, data or run folder are not as they should be, or training diverged.
    """
    run_settings = settings.resolve()
    folder = RunFolder(run_settings.out)
    record = _existing(folder, run_settings, console)
    if record is None:
        record = _train(folder, run_settings, console)
    _summarise(folder, record, console)
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


def _train(folder: RunFolder, settings: ResolvedSettings, console: Console) -> Json:
    from fggp.lab.pictures import draw_run  # matplotlib takes a second to import

    def draw(data: ImageData) -> None:
        title = f"{label(settings.method)}, {settings.model} on {data.name}"
        draw_run(folder.path, title, folder.metrics("epoch"), folder.metrics("update"), settings.init_sparsity)

    return run_to_end(folder, settings, lambda: load_data(settings, console), console, before_finish=draw)


def run_to_end(
    folder: RunFolder,
    settings: ResolvedSettings,
    load: Callable[[], ImageData],
    console: Console,
    *,
    after_epoch: Callable[[Json], None] = lambda line: None,
    before_finish: Callable[[ImageData], None] = lambda data: None,
) -> Json:
    """Begin a run, or go on from its last checkpoint, and finish it.

    Args:
        folder: of a run of these settings, or of none yet.
        settings: what to train and how.
        load: gives the run's data.
        console: shows the run's progress.
        after_epoch: called with an epoch's metrics line once the checkpoint is on the disk; whatever it raises leaves
            a run that can be gone on with.
        before_finish: called when all is written but the record.

    Returns:
        The record.
    """
    start = time.monotonic()
    data = load()
    trainer = Trainer(settings, data)
    if folder.holds_run():
        state = folder.load_checkpoint()
    else:
        folder.begin(settings.as_json())
        state = None
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
                folder.log(update_line(trainer))
            progress.step(tally)

        for epoch in range(done, settings.epochs):
            tally = trainer.train_epoch(epoch, on_step)
            line = epoch_line(trainer, epoch, tally)
            folder.log(line)
            folder.save_checkpoint({"trainer": trainer.state_dict(), "epochs": epoch + 1, "seconds": seconds()})
            progress.epoch(tally, line)
            after_epoch(line)

    folder.save_model(trainer.model.state_dict())
    before_finish(data)
    record = make_record(folder.path.name, trainer, folder.metrics("epoch"), seconds())
    folder.finish(record)
    return record


def _summarise(folder: RunFolder, record: Json, console: Console) -> None:
    left = f"{record['parameters_left']:,} of {record['parameters']:,} parameters left"
    console.print(
        f"[bold]{record['method']}[/] on {record['data']}: test accuracy [bold]{record['test_accuracy']:.2f} %[/]"
        f" at sparsity {100 * record['sparsity']:.2f} %, {left}",
        highlight=False,
        soft_wrap=True,
    )
    for file in sorted(folder.path.iterdir()):
        console.print(f"  {file}", highlight=False, soft_wrap=True)
