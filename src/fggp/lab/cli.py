"""The `fggp` command."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any, Union

if TYPE_CHECKING:
    from rich.console import Console

    from fggp.lab.training.distributed import World

EXTRAS = ("jinja2", "matplotlib", "rich", "sklearn", "timm", "torchvision", "tyro")

DESCRIPTION = """Prune a neural network while it trains, and ship it small and fast.

$ fggp demo                        see it work
$ fggp train --data folder:PATH    train on your own pictures
$ fggp train --help                what can be chosen
$ torchrun --nproc-per-node 2 -m fggp train …
                                   in several processes
$ fggp grid FILE.toml              many runs, several at once, killed and resumed at will
$ fggp report FOLDER               compare finished runs: a page, tables and pictures
$ fggp export RUN_FOLDER           the files to ship: small, without the zeros, or ONNX
$ fggp bench RUN_FOLDER            size, speed and memory beside the dense network
$ fggp --version
"""

COMMANDS = {
    "demo": "See it work, on handwritten digits.",
    "train": "Train a network and prune it meanwhile.",
    "grid": "Train every combination of settings.",
    "report": "Compare finished runs.",
    "export": "Write a trained network's files to ship.",
    "bench": "Measure a pruned network beside the dense one.",
}
"""What each command is for, in a line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        arguments: without the program's name; None takes the process's own.

    Returns:
        The exit code: 0, or 1 if a grid is not finished, 2 for what the user can put right, 130 if interrupted.
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
    from rich.console import Console

    from fggp.lab.base.errors import UsageError
    from fggp.lab.training.distributed import join
    from fggp.lab.training.settings import GridSettings, TrainSettings

    try:
        world = join(trains=arguments[:1] == ["train"])
    except UsageError as error:
        print(f"fggp: {error}", file=sys.stderr)
        return 2
    try:
        with world.hushed():
            command = _parsed(arguments)
    except SystemExit:
        world.heard()
        raise
    console = Console() if world.rank == 0 else Console(quiet=True, force_terminal=False)
    try:
        code = _carry_out(command, console, world)
        world.leave()
        return code
    except UsageError as error:
        world.complain(f"fggp: {error}")
        return 2
    except RuntimeError as error:
        if not world.lost(error):
            raise
        reason = str(error).partition("\n")[0].partition(". This is typically")[0]
        world.complain(f"fggp: rank {world.rank} lost the others: {reason}; the same command with --resume goes on")
        return 1
    except KeyboardInterrupt:
        again = ""
        if isinstance(command, TrainSettings):
            again = "; the same command with --resume goes on"
        elif isinstance(command, GridSettings):
            again = "; the same command goes on where it stopped"
        world.complain(f"fggp: interrupted{again}")
        return 130


def _parsed(arguments: list[str]) -> Any:
    """The settings of the command that is asked for; help and mistakes end here."""
    import tyro

    from fggp.lab.bench.bench import BenchSettings
    from fggp.lab.export.export import ExportSettings
    from fggp.lab.report.settings import ReportSettings
    from fggp.lab.training.settings import DemoSettings, GridSettings, TrainSettings

    kinds: dict[str, Any] = {
        "demo": DemoSettings,
        "train": TrainSettings,
        "grid": GridSettings,
        "report": ReportSettings,
        "export": ExportSettings,
        "bench": BenchSettings,
    }
    config = (tyro.conf.FlagCreatePairsOff,)
    if arguments and arguments[0] in kinds:
        name, *rest = arguments
        return tyro.cli(kinds[name], prog=f"fggp {name}", args=rest, config=config)
    # A command's own help is its class's text; in the list of all of them a line is enough.
    listed: Any = Union[  # noqa: UP007 (a union of a list has no other form)
        tuple(Annotated[kind, tyro.conf.subcommand(name, description=COMMANDS[name])] for name, kind in kinds.items())
    ]
    return tyro.cli(listed, prog="fggp", description=DESCRIPTION, args=arguments, config=config)


def _carry_out(command: Any, console: "Console", world: "World") -> int:
    """Do what the settings are of, and return the exit code."""
    from fggp.lab.base.errors import UsageError
    from fggp.lab.bench.bench import BenchSettings, bench
    from fggp.lab.export.export import ExportSettings, export
    from fggp.lab.report.settings import ReportSettings
    from fggp.lab.training.settings import DemoSettings, GridSettings, TrainSettings

    if world.size > 1 and not isinstance(command, TrainSettings):
        raise UsageError("of fggp's commands only train runs in several processes; start this one without torchrun")
    if isinstance(command, DemoSettings):
        from fggp.lab.demo import demo

        demo(command, console)
    elif isinstance(command, GridSettings):
        from fggp.lab.grid.grid import grid

        return 0 if grid(command, console).complete else 1
    elif isinstance(command, ReportSettings):
        from fggp.lab.report.report import report

        report(command, console)
    elif isinstance(command, ExportSettings):
        export(command, console)
    elif isinstance(command, BenchSettings):
        bench(command, console)
    else:
        from fggp.lab.training.train import train

        train(command, console, world)
    return 0
