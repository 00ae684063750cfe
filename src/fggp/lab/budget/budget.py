"""`fggp budget`: from limits to a pruned network that is ready to ship."""

from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.bench.networks import with_random_norms
from fggp.lab.budget.prediction import Meter, Prediction
from fggp.lab.budget.report import Answer, print_answer, write_report
from fggp.lab.budget.search import LEVELS, highest, lowest
from fggp.lab.budget.settings import BudgetSettings
from fggp.lab.budget.trials import Trial, Trials
from fggp.lab.budget.wishes import Wishes, bytes_text, ms_text, percent, points
from fggp.lab.export.export import export
from fggp.lab.export.settings import ExportSettings
from fggp.lab.export.trained import Network
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.grid import OpenGrid
from fggp.lab.training.data import load_data
from fggp.lab.training.record import input_of
from fggp.lab.training.trainer import Trainer

ANSWER = ("small.safetensors", "net.fggp", "budget.json", "budget.md", "budget.png")
"""The files of an answer, which the next one in the same folder replaces."""


def budget(settings: BudgetSettings, console: Console) -> Json:
    """Find the sparsity that meets the limits, and leave its network, a table, a record and a picture.

    Returns:
        The record (`fggp.lab.budget.report.make_record`).

    Raises:
        UsageError: options or data are wrong, or nothing meets the limits; the message says what would be possible.
    """
    wishes = settings.wishes()
    folder = settings.folder()
    runs = GridFolder(folder / "runs")
    _refuse_files_of_others(folder, runs)
    run = replace(settings.run(0.0, 0), device="cpu")
    data = load_data(run, console)
    assert data.val is not None  # data from which nothing can be held out are refused
    step = 100 / len(data.val)
    if wishes.drop is not None and 0 < wishes.drop < step:
        raise UsageError(
            f"drop is {points(wishes.drop)}, but one of the {len(data.val)} validation images is {step:.2g} points; "
            f"ask for more, or give more images (--holdout is the share that is held out)"
        )
    trainer = Trainer(run, data, measure_start=True)
    folder.mkdir(parents=True, exist_ok=True)
    meter = Meter(settings.batch, settings.threads or torch.get_num_threads())
    prediction = Prediction(_network(trainer), run.as_json().get("weights"), meter, folder / "predicted.json")
    bottom = 0
    if trainer.start is not None and trainer.start.pruned:
        bottom = next((i for i, level in enumerate(LEVELS) if level > trainer.start.sparsity), len(LEVELS))
        if bottom == len(LEVELS):
            raise UsageError(f"weights are {percent(trainer.start.sparsity)} sparse already; start from denser ones")
    console.print(f"wanted: {wishes}", highlight=False)
    if settings.held_out_of_weights() is not None:
        console.print(f"held out: {percent(run.holdout)} of the training images, those of the run in --weights")
    lowest_tried = bottom
    if wishes.of_cost:
        with console.status("predicting time and size with random masks"):
            bottom = _first_to_fit(prediction, wishes, bottom)
        fits = prediction.cost(LEVELS[bottom])
        console.print(
            f"predicted: {bytes_text(fits.bytes)} and {ms_text(fits.ms)} at a sparsity of {percent(LEVELS[bottom])}, "
            f"the first to fit",
            highlight=False,
            soft_wrap=True,
        )
    start = None if trainer.start is None else trainer.start.val_accuracy
    with OpenGrid(runs, settings.runs_at_once(), console) as grid:
        trials = Trials(grid, settings, wishes, meter, start)
        for name in ANSWER:  # of the answer before this one
            (folder / name).unlink(missing_ok=True)
        try:
            chosen = _choose(trials, wishes, bottom, console, predicted=bottom > lowest_tried)
        except UsageError:
            write_report(Answer(settings, wishes, trials, prediction, None, None), folder)
            console.print(f"tried     {folder / 'budget.md'}", highlight=False, soft_wrap=True)
            raise
        _ship(trials.folder(chosen.best).path, folder, console)
        from_start = start is not None and start > trials.dense.estimate.accuracy
        answer = Answer(
            settings, wishes, trials, prediction, chosen, trainer.accuracy(trainer.data.test) if from_start else None
        )
    for remark in meter.remarks:
        console.print(remark, style="yellow", highlight=False, soft_wrap=True)
    record = write_report(answer, folder)
    print_answer(answer, record, folder, console)
    return record


def _refuse_files_of_others(folder: Path, runs: GridFolder) -> None:
    found = [name for name in ANSWER if (folder / name).exists()]
    if found and not runs.grid_file.exists():
        raise UsageError(f"out is {folder}, which holds {found[0]!r} but no runs of fggp budget; choose another --out")


def _network(trainer: Trainer) -> Network:
    """Return the network before training, as it will be shipped."""
    image = input_of(trainer)
    channels, height, width = image["shape"]
    model = trainer.model.to(memory_format=torch.contiguous_format)
    if trainer.start is None:
        model = with_random_norms(model)
    name = trainer.settings.model
    return Network(model.eval(), name, name, channels, (height, width), image)


def _first_to_fit(prediction: Prediction, wishes: Wishes, bottom: int) -> int:
    """Return the index of the lowest sparsity at which time and size are predicted to be within the limits.

    Raises:
        UsageError: there is none, or the dense network is within them already.
    """
    dense = prediction.cost(0.0)
    if wishes.met_by(dense):
        if wishes.drop is not None:
            return bottom
        raise UsageError(
            f"the network is within the limits ({wishes}) before it is pruned: its file has {bytes_text(dense.bytes)}, "
            f"and it takes {ms_text(dense.ms)}; ask for less"
        )
    top = len(LEVELS) - 1
    found = lowest(bottom, top, lambda index: wishes.met_by(prediction.cost(LEVELS[index])))
    if found is None:
        missed = "; ".join(wishes.missed(prediction.cost(LEVELS[top])))
        raise UsageError(
            f"{missed}, even at a sparsity of {percent(LEVELS[top])}, the highest that is tried (the dense network: "
            f"{bytes_text(dense.bytes)}, {ms_text(dense.ms)}); ask for that, or for a smaller --model"
        )
    return found


def _choose(trials: Trials, wishes: Wishes, bottom: int, console: Console, *, predicted: bool) -> Trial:
    """Return the trial that answers the question.

    Args:
        trials: makes them.
        wishes: the limits.
        bottom: index of the lowest sparsity that can be the answer.
        console: shows what is tried.
        predicted: whether lower ones are left out because they are predicted to miss the limits of time and size.

    Raises:
        UsageError: none meets the limits.
    """
    top = len(LEVELS) - 1
    if wishes.drop is None:
        return _cheap_enough(trials, wishes, bottom, console)
    drop = wishes.drop

    def within(index: int) -> bool:
        return _tell(trials, index, console).estimate.meets(drop)

    found = highest(bottom, top, within)
    least = trials.at(LEVELS[bottom if found is None else found])
    if found is None:
        needed = (
            f"{wishes} is predicted to need a sparsity of {percent(least.sparsity)}"
            if predicted
            else (f"drop is {points(drop)}, but {percent(least.sparsity)} is the lowest sparsity that is tried")
        )
        raise UsageError(
            f"{needed}, where validation accuracy is {least.estimate.drop:.2f} points below dense "
            f"(± {least.estimate.noise:.2f}); allow that, or train longer (--epochs)"
        )
    if not least.meets(wishes):
        raise UsageError(
            f"{'; '.join(wishes.missed(least.cost))} at {percent(least.sparsity)}, the highest sparsity within "
            f"{points(drop)} below dense; allow one or the other"
        )
    return least


def _cheap_enough(trials: Trials, wishes: Wishes, bottom: int, console: Console) -> Trial:
    """Return the trial at the predicted sparsity if it meets the limits, else the lowest above it that does.

    Raises:
        UsageError: none does.
    """
    first = _tell(trials, bottom, console)
    if first.meets(wishes):
        return first
    top = len(LEVELS) - 1
    missing = highest(bottom + 1, top, lambda index: not _tell(trials, index, console).meets(wishes))
    index = bottom + 1 if missing is None else missing + 1
    if index > top:
        missed = "; ".join(wishes.missed(trials.at(LEVELS[top]).cost))
        raise UsageError(f"{missed} at {percent(LEVELS[top])}, the highest sparsity that is tried")
    return trials.at(LEVELS[index])


def _tell(trials: Trials, index: int, console: Console) -> Trial:
    trial = trials.at(LEVELS[index])
    found = trial.estimate
    console.print(
        f"{percent(trial.sparsity)}: {found.drop:+.2f} points below dense (± {found.noise:.2f}, {found.runs} "
        f"run{'s' if found.runs > 1 else ''}), {bytes_text(trial.cost.bytes)}, {ms_text(trial.cost.ms)}",
        highlight=False,
        soft_wrap=True,
    )
    return trial


def _ship(run: Path, folder: Path, console: Console) -> None:
    """Write the small file and the network file of a run."""
    quiet = Console(quiet=True)
    export(ExportSettings(run, out=folder / "small.safetensors", force=True), quiet)
    try:
        export(ExportSettings(run, out=folder / "net.fggp", force=True), quiet)
    except UsageError as error:
        console.print(f"without net.fggp: {error}", style="yellow", highlight=False, soft_wrap=True)
