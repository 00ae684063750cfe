"""The `fggp` command."""

import sys
from collections.abc import Sequence
from dataclasses import make_dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Union

if TYPE_CHECKING:
    from rich.console import Console

    from fggp.lab.training.distributed import World

EXTRAS = ("matplotlib", "rich", "sklearn", "timm", "torchvision", "tyro")

DESCRIPTION = """Prune a neural network while it trains, store it small and run it fast.

$ fggp demo                        an example on handwritten digits
$ fggp train --data folder:PATH    train on your own pictures
$ fggp train --help                all options of a run
$ torchrun --nproc-per-node 2 -m fggp train …
                                   in several processes
$ fggp grid FILE.toml              many runs, several at once; can be killed and resumed
$ fggp budget --drop 1.0           the sparsity that meets a limit of accuracy, time or size
$ fggp report FOLDER               compare finished runs: a page, tables and pictures
$ fggp export RUN_FOLDER           the small file without the zeros, the network file, ONNX, or a page
$ fggp bench RUN_FOLDER            size, speed and memory beside the dense network
$ fggp --version
"""

COMMANDS = {
    "demo": ("fggp.lab.demo.settings", "DemoSettings", "Prune networks for handwritten digits."),
    "train": ("fggp.lab.training.settings", "TrainSettings", "Train a network and prune it while it trains."),
    "grid": ("fggp.lab.grid.settings", "GridSettings", "Train every combination of settings."),
    "budget": ("fggp.lab.budget.settings", "BudgetSettings", "Find the sparsity that meets a limit."),
    "report": ("fggp.lab.report.settings", "ReportSettings", "Compare finished runs."),
    "export": ("fggp.lab.export.settings", "ExportSettings", "Write a network as a file or as a page to try it."),
    "bench": ("fggp.lab.bench.settings", "BenchSettings", "Measure a pruned network beside the dense one."),
}
"""The module and the name of each command's settings, and a line about it."""

AFTER_INTERRUPT = {
    "train": "; the same command with --resume continues",
    "grid": "; the same command continues",
    "budget": "; the same command continues",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: without the program's name; None for those of this process.

    Returns:
        The exit code: 0, or 1 if a grid is not finished, 2 for a mistake that the user can correct, 130 if interrupted.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    missing = [name for name in EXTRAS if find_spec(name) is None]
    if missing:
        print(f"fggp: the command line needs {', '.join(missing)}: pip install 'fggp[lab]'", file=sys.stderr)
        return 2
    if arguments == ["--version"]:
        from importlib.metadata import version

        print(f"fggp {version('fggp')}")
        return 0
    return _run(arguments)


def _run(arguments: list[str]) -> int:
    from fggp.lab.base.errors import UsageError
    from fggp.lab.base.launch import launched

    name = arguments[0] if arguments else ""
    if not launched():
        # Help and mistakes end here, before PyTorch is imported.
        command = _parse(arguments)
        from fggp.lab.training.distributed import ALONE

        return _execute(name, command, ALONE)
    from fggp.lab.training.distributed import join

    try:
        world = join(trains=name == "train")
    except UsageError as error:
        print(f"fggp: {error}", file=sys.stderr)
        return 2
    try:
        with world.silenced():
            command = _parse(arguments)
    except SystemExit:
        world.wait_for_output()
        raise
    return _execute(name, command, world)


def _execute(name: str, command: Any, world: "World") -> int:
    """Run a command and return the exit code; errors that the user can correct become a line."""
    from rich.console import Console

    from fggp.lab.base.errors import UsageError

    console = Console() if world.rank == 0 else Console(quiet=True, force_terminal=False)
    try:
        if world.size > 1 and name != "train":
            raise UsageError("of fggp's commands only train runs in several processes; start this one without torchrun")
        code = _call(name, command, console, world)
        world.leave()
        return code
    except UsageError as error:
        world.print_error(f"fggp: {error}")
        return 2
    except RuntimeError as error:
        if not world.lost(error):
            raise
        reason = str(error).partition("\n")[0].partition(". This is typically")[0]
        world.print_error(f"fggp: rank {world.rank} lost the others: {reason}{AFTER_INTERRUPT['train']}")
        return 1
    except KeyboardInterrupt:
        world.print_error(f"fggp: interrupted{AFTER_INTERRUPT.get(name, '')}")
        return 130


def _parse(arguments: list[str]) -> Any:
    """Return the settings of the command; exits for help and for arguments that cannot be read."""
    import tyro

    config = (tyro.conf.FlagCreatePairsOff,)
    if arguments and arguments[0] in COMMANDS:
        name, *rest = arguments
        module, kind, _ = COMMANDS[name]
        return tyro.cli(getattr(import_module(module), kind), prog=f"fggp {name}", args=rest, config=config)
    # No command was named, so all that tyro does is to list them, or to say what is wrong: no settings are needed.
    listed: Any = Union[  # noqa: UP007 (a union of a list has no other form)
        tuple(
            Annotated[make_dataclass(kind, ()), tyro.conf.subcommand(name, description=line)]
            for name, (_, kind, line) in COMMANDS.items()
        )
    ]
    return tyro.cli(listed, prog="fggp", description=DESCRIPTION, args=arguments, config=config)


def _call(name: str, settings: Any, console: "Console", world: "World") -> int:
    if name == "train":
        from fggp.lab.training.train import train

        train(settings, console, world)
    elif name == "grid":
        from fggp.lab.grid.grid import grid

        return 0 if grid(settings, console).complete else 1
    elif name == "budget":
        from fggp.lab.budget.budget import budget

        budget(settings, console)
    elif name == "report":
        from fggp.lab.report.report import report

        report(settings, console)
    elif name == "export":
        from fggp.lab.export.export import export

        export(settings, console)
    elif name == "bench":
        from fggp.lab.bench.bench import bench

        bench(settings, console)
    else:
        from fggp.lab.demo.demo import demo

        demo(settings, console)
    return 0
