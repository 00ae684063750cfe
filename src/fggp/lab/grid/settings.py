"""The options of `fggp grid`."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fggp.lab.base.options import default_shown_as, require


@dataclass(frozen=True)
class GridSettings:
    """Train every combination of methods, models, data, sparsities, … and seeds; keep all their records in one folder.

    $ fggp grid experiments/digits.toml                      what the file says
    $ fggp grid --method dense gmp fggp --sparsity 0.95 0.98 --seed 0 1 2 --epochs 20
    $ fggp grid FILE.toml --jobs 4 --time-limit 2h30m        four at once; stop in time, continue on another day

    The file's keys are the options of fggp train, with _ for -. Each has a value or a list of values:
        sparsity = [0.9, 0.95]
        epochs = 20
        [[grid]]                    # any number of these tables; each also has the settings above
        method = ["dense", "gmp"]
        [[grid]]
        method = "fggp"
        rate = [0.3, 0.5]

    An option on the command line replaces the file's. A setting that a method does not use does not multiply its runs:
    dense runs once a seed.

    If it was interrupted or killed, the same command continues, each started run from its last finished epoch. Add
    seeds, methods or sparsities, and the same folder runs what is missing. The exit code is 0 when every run is
    finished.
    """

    file: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[FILE.toml]")] = None
    """What to run; not needed if options say it."""
    data: Annotated[tuple[str, ...] | None, default_shown_as("digits", "TEXT …")] = None
    """Data sets, as in fggp train: digits, cifar10, cifar100, fashion-mnist, folder:PATH."""
    model: Annotated[tuple[str, ...] | None, default_shown_as("as fggp train", "NAME …")] = None
    """Models by name."""
    method: Annotated[tuple[str, ...] | None, default_shown_as("fggp", "NAME …")] = None
    """Methods by name; see fggp train --help."""
    sparsity: Annotated[tuple[float, ...] | None, default_shown_as("0.95", "SHARE …")] = None
    """Shares of the prunable weights that are zero in the end."""
    init_sparsity: Annotated[tuple[float, ...] | None, default_shown_as("as fggp train", "SHARE …")] = None
    """Shares that are zero from the start, for methods that may start dense."""
    rate: Annotated[tuple[float, ...] | None, default_shown_as("the method's own", "SHARE …")] = None
    """Rates, for methods that have one."""
    seed: Annotated[tuple[int, ...] | None, default_shown_as("0", "INT …")] = None
    """Seeds; all runs of the first seed are started before those of the second."""
    epochs: Annotated[tuple[int, ...] | None, default_shown_as("as fggp train", "INT …")] = None
    """Passes over the training images."""
    device: Annotated[str | None, default_shown_as("auto", "TEXT")] = None
    """cpu or cuda; auto uses a GPU if there is one. Jobs are spread over all GPUs."""
    data_dir: Annotated[Path | None, default_shown_as("data", "FOLDER")] = None
    """Where the named data sets are downloaded to."""

    out: Annotated[Path | None, default_shown_as("fggp-grids/ and the file's name", "FOLDER")] = None
    """Folder of the grid: grid.json, records.jsonl, and a run folder of each run in runs/."""
    jobs: Annotated[int | None, default_shown_as("1", "INT")] = None
    """Number of runs at once."""
    time_limit: Annotated[str | None, default_shown_as("none", "TIME")] = None
    """Stop within this time, such as 2h30m or 90m: at the end of an epoch, and without starting a run that would take
    longer."""
    dry_run: bool = False
    """List the runs and which are finished; train nothing."""

    def __post_init__(self) -> None:
        require("jobs", self.jobs, self.jobs is None or self.jobs >= 1, "at least 1")

    @property
    def seconds(self) -> float | None:
        """The time limit in seconds, None without one.

        Raises:
            UsageError: it cannot be read.
        """
        if self.time_limit is None:
            return None
        parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", self.time_limit.replace(" ", ""))
        hours, minutes, seconds = (int(part or 0) for part in parts.groups()) if parts else (0, 0, 0)
        total = 3600 * hours + 60 * minutes + seconds
        require("time_limit", self.time_limit, total > 0, "such as 2h30m, 90m or 45s")
        return float(total)
