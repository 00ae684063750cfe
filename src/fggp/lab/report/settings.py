"""What can be chosen of a report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from fggp.lab.base.errors import UsageError


@dataclass(frozen=True)
class ReportSettings:
    """Compare finished runs: tables, ranks, paired differences and pictures, and one page to read them on.

    $ fggp report fggp-runs                        every run found below a folder
    $ fggp report results/digits.jsonl --out docs  the runs of one file
    $ fggp report ours theirs.jsonl --baseline gmp differences to another method than FGGP
    $ fggp report fggp-grids --by validation       to choose among methods or rates

    Writes report.html (one file that needs no network), report.md, and every picture as PNG and SVG. Records are JSON,
    one run a line. They need run, method, model, data, sparsity, init_sparsity, seed, test_accuracy and val_accuracy.
    Everything else that `fggp train` records is shown if it is there.
    """

    paths: tyro.conf.Positional[tuple[Path, ...]]
    """Files of records, or folders searched for *.jsonl and for the record.json of run folders."""
    out: Path = Path("fggp-report")
    """Where the report goes."""
    baseline: str | None = None
    """The method that the others are compared with, run by run; fggp, or else the first, if not given."""

    by: Literal["test", "validation"] = "test"
    """Which accuracy is compared. Choose methods and rates by validation; test is what you report of the choice."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise UsageError("paths is empty; it must name at least one file of records or folder to search")
