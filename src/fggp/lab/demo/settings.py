"""The options of `fggp demo`."""

from dataclasses import dataclass
from pathlib import Path

from fggp.lab.base.options import require


@dataclass(frozen=True)
class DemoSettings:
    """Train a small network on scikit-learn's digits: dense, and pruned by GMP and FGGP to 95 and 98 %.

    Prints a table (mean ± standard deviation over the seeds) and writes a report, a record of each run, a small file
    and a page in which one draws a digit. It downloads nothing, and takes about a minute on two cores.
    """

    seeds: int = 5
    """Runs of each setting."""
    out: Path = Path("fggp-demo")
    """Folder of the report, the records, the small file and the page."""

    def __post_init__(self) -> None:
        require("seeds", self.seeds, self.seeds >= 1, "at least 1")
