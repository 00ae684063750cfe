"""The `fggp` command."""

import sys
from collections.abc import Sequence
from importlib.util import find_spec

EXTRAS = ("jinja2", "matplotlib", "rich", "sklearn", "timm", "torchvision", "tyro")

DESCRIPTION = """Prune a neural network while it trains.

$ fggp demo                        see it work
$ fggp train --data folder:PATH    train on your own pictures
$ fggp train --help                what can be chosen
$ fggp grid FILE.toml              many runs, several at once, killed and resumed at will
$ fggp report FOLDER               compare finished runs: a page, tables and pictures
$ fggp --version
"""


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
    import tyro
    from rich.console import Console

    from fggp.lab.errors import UsageError
    from fggp.lab.report.settings import ReportSettings
    from fggp.lab.settings import DemoSettings, GridSettings, TrainSettings

    command: DemoSettings | GridSettings | ReportSettings | TrainSettings = tyro.extras.subcommand_cli_from_dict(
        {"demo": DemoSettings, "train": TrainSettings, "grid": GridSettings, "report": ReportSettings},
        prog="fggp",
        description=DESCRIPTION,
        args=arguments,
        config=(tyro.conf.FlagCreatePairsOff,),
    )
    console = Console()
    try:
        if isinstance(command, DemoSettings):
            from fggp.lab.demo import demo

            demo(command, console)
        elif isinstance(command, GridSettings):
            from fggp.lab.grid import grid

            return 0 if grid(command, console).complete else 1
        elif isinstance(command, ReportSettings):
            from fggp.lab.report.report import report

            report(command, console)
        else:
            from fggp.lab.train import train

            train(command, console)
    except UsageError as error:
        print(f"fggp: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = ""
        if isinstance(command, TrainSettings):
            again = "; the same command with --resume goes on"
        elif isinstance(command, GridSettings):
            again = "; the same command goes on where it stopped"
        print(f"fggp: interrupted{again}", file=sys.stderr)
        return 130
    return 0
