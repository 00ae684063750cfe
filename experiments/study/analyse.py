"""The analysis of the preregistered study (experiments/PREREGISTRATION.md): written before its first run.

    python experiments/study/analyse.py [FOLDER]    from the root of the repository; FOLDER is results/study

FOLDER/A…E hold the records. Every contrast is a weighted sum of accuracies of one seed; its values over the seeds that
all of its runs share are tested against zero. Writes contrasts.md and contrasts.png into FOLDER and prints the first.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from contrasts import PARTS, Cell, Contrast, cell_of, contrasts, planned
from scipy.stats import permutation_test, ttest_1samp

LEVEL = 0.05
FEWEST_SEEDS = 3
"""Below this, an interval says nothing."""
EQUAL = 1e-9
"""Percent points within which differences count as equal."""

Accuracies = Mapping[Cell, Mapping[int, float]]
"""Test accuracy after the last epoch, percent, by seed."""


@dataclass(frozen=True)
class Estimate:
    """A contrast's values by seed, and what they say.

    Args:
        contrast: what was estimated.
        values: by seed, of the seeds that all its cells share.
        planned: the number of seeds that were planned.
        low, high: Student's 95 % interval of the mean; None below `FEWEST_SEEDS`.
        p: two-sided, of Student's t-test of the mean against zero.
        p_flip: two-sided, of the exact sign-flip test.
        adjusted: p after Holm's correction over the primary contrasts of the part; None until all of them are whole.
    """

    contrast: Contrast
    values: Mapping[int, float]
    planned: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    p_flip: float | None = None
    adjusted: float | None = None

    @property
    def whole(self) -> bool:
        return len(self.values) == self.planned

    @property
    def mean(self) -> float | None:
        return fmean(self.values.values()) if self.values else None

    @property
    def effect(self) -> float | None:
        """Cohen's d of paired values: the mean over the standard deviation of the differences."""
        return None if self.p is None else fmean(self.values.values()) / stdev(self.values.values())

    @property
    def verdict(self) -> str:
        if not self.whole:
            return f"incomplete: {len(self.values)} of {self.planned} seeds"
        if not self.contrast.primary:
            return "secondary: read the interval only"
        if self.adjusted is None:
            return "waits for the other primary contrasts of its part"
        if self.adjusted >= LEVEL:
            return "no difference shown"
        return "higher" if fmean(self.values.values()) > 0 else "lower"


def read(folder: Path) -> Accuracies:
    """Read the records of all parts that there are.

    Raises:
        ValueError: a record is not of a planned run or not of one whole commit, or there are two of a run.
    """
    plan = planned()
    found: dict[Cell, dict[int, float]] = defaultdict(dict)
    commits: dict[str, str] = {}
    for part in PARTS:
        file = folder / part / "records.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        for number, line in enumerate(lines, 1):
            record = json.loads(line)
            where = f"{file}, line {number}: "
            cell, seed = cell_of(part, record["method"], record["settings"]), record["seed"]
            if seed not in plan.get(cell, ()):
                raise ValueError(f"{where}seed {seed} of {cell} was not planned in {part}.toml")
            if seed in found[cell]:
                raise ValueError(f"{where}seed {seed} of {cell} has another record; each run must have one")
            commit = str(record["commit"])
            if commit == "None" or commit.endswith("-dirty"):
                raise ValueError(f"{where}commit is {commit}; it must be a commit without changes")
            commits.setdefault(commit, where)
            if len(commits) > 1:
                (one, first), (other, second) = commits.items()
                raise ValueError(f"{second}commit is {other}, but {one} in {first.rstrip(': ')}; all must be of one")
            found[cell][seed] = record["test_accuracy"]
    return found


def values_of(contrast: Contrast, accuracies: Accuracies) -> dict[int, float]:
    """Return the contrast by seed, for the seeds that all of its cells share."""
    shared = set.intersection(*(set(accuracies.get(cell, {})) for cell in contrast.weights))
    return {seed: sum(w * accuracies[cell][seed] for cell, w in contrast.weights.items()) for seed in sorted(shared)}


def estimate(contrast: Contrast, accuracies: Accuracies, plan: Mapping[Cell, set[int]]) -> Estimate:
    """Return the contrast's values and tests, without the correction for multiplicity.

    Raises:
        ValueError: the values of all seeds are equal, which independent runs are not.
    """
    values = values_of(contrast, accuracies)
    seeds = len(set.intersection(*(plan[cell] for cell in contrast.weights)))
    if len(values) < FEWEST_SEEDS:
        return Estimate(contrast, values, seeds)
    numbers = np.array([*values.values()])
    if np.ptp(numbers) < EQUAL:
        raise ValueError(f"{contrast.name} is {numbers[0]:.3f} for every seed: are records copies of one another?")
    test = ttest_1samp(numbers, 0.0)
    interval = test.confidence_interval(1 - LEVEL)
    flips = permutation_test(
        (numbers,),
        lambda x, axis: np.mean(x, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    return Estimate(
        contrast, values, seeds, float(interval.low), float(interval.high), float(test.pvalue), float(flips.pvalue)
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for multiplicity, which keeps the family-wise error rate (Holm 1979), in their order."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def analyse(accuracies: Accuracies, plan: Mapping[Cell, set[int]]) -> list[Estimate]:
    """Return the estimates of all contrasts; p-values are adjusted within each part whose primary ones are whole."""
    estimates = [estimate(contrast, accuracies, plan) for contrast in contrasts()]
    adjusted: dict[str, float] = {}
    for part in PARTS:
        family = [e for e in estimates if e.contrast.part == part and e.contrast.primary]
        if all(e.whole for e in family):
            names = [e.contrast.name for e in family]
            adjusted |= dict(zip(names, holm([e.p for e in family if e.p is not None]), strict=True))
    return [Estimate(**{**vars(e), "adjusted": adjusted.get(e.contrast.name)}) for e in estimates]


def table(rows: Iterable[Sequence[str]]) -> str:
    head, *body = rows
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))


def report(estimates: Sequence[Estimate], accuracies: Accuracies, plan: Mapping[Cell, set[int]]) -> str:
    """Return the tables, as Markdown."""
    finished = {part: sum(len(a) for cell, a in accuracies.items() if cell.part == part) for part in PARTS}
    wanted = {part: sum(len(seeds) for cell, seeds in plan.items() if cell.part == part) for part in PARTS}
    runs = ", ".join(f"{part} {finished[part]} of {wanted[part]}" for part in sorted(PARTS))
    rows = [["", "percent points", "seeds", "mean [95 % interval]", "d", "p (Holm)", "p (sign flips)", "verdict"]]
    rows += [row_of(e) for e in estimates]
    cells = [["part", "method", "sparsity", "network", "epochs", "seeds", "test accuracy, mean ± std"]]
    for part in sorted(PARTS):
        own = [cell for cell in plan if cell.part == part]
        shared = sorted(set.intersection(*(set(accuracies.get(cell, {})) for cell in own)))
        for cell in own:
            values = [accuracies[cell][seed] for seed in shared]
            mean = "" if not values else f"{fmean(values):.2f}"
            spread = f" ± {stdev(values):.2f}" if len(values) > 1 else ""
            sparsity = f"{100 * cell.sparsity:g} %" if cell.sparsity else ""
            named = [part, cell.method, sparsity, cell.model, str(cell.epochs)]
            cells.append([*named, str(len(shared)), mean + spread])
    return "\n\n".join(
        [
            "# The preregistered study",
            f"Made by `python experiments/study/analyse.py`; see experiments/PREREGISTRATION.md. Runs: {runs}.",
            "![Every contrast, seed by seed](contrasts.png)",
            "## Contrasts\n\n" + table(rows),
            "## Accuracies\n\nOver the seeds that all cells of a part share.\n\n" + table(cells) + "\n",
        ]
    )


def row_of(e: Estimate) -> list[str]:
    """Return a line of the table of contrasts; primary contrasts are bold."""
    mean = "" if e.mean is None else f"{e.mean:+.2f}"
    interval = "" if e.low is None or e.high is None else f" [{e.low:+.2f}, {e.high:+.2f}]"
    effect = "" if e.effect is None else f"{e.effect:.2f}"
    flips = "" if e.p_flip is None or not e.contrast.primary else p_text(e.p_flip)
    adjusted = "" if e.adjusted is None else p_text(e.adjusted)
    name = f"**{e.contrast.name}**" if e.contrast.primary else e.contrast.name
    text = f"{mean}{interval}".replace("-", "−")
    return [name, e.contrast.what, str(len(e.values)), text, effect.replace("-", "−"), adjusted, flips, e.verdict]


def p_text(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def draw(estimates: Sequence[Estimate], file: Path) -> None:
    """Draw the primary contrasts: a dot for each seed, the mean and its interval."""
    shown = [e for e in estimates if e.contrast.primary]
    figure, axes = plt.subplots(figsize=(8, 0.5 + 0.45 * len(shown)), layout="constrained")
    axes.axvline(0, color="0.6", linewidth=1)
    for row, e in enumerate(shown):
        # Seeds in fixed order from top to bottom within a row, so that dots do not hide one another.
        heights = row + np.linspace(-0.28, 0.28, len(e.values)) if len(e.values) > 1 else [row] * len(e.values)
        axes.scatter([*e.values.values()], heights, s=9, color="tab:blue", alpha=0.5, linewidths=0)
        if e.mean is not None:
            axes.plot(e.mean, row, "o", color="black", markersize=5)
        if e.low is not None:
            axes.plot([e.low, e.high], [row, row], color="black", linewidth=1.6)
    axes.set_yticks(range(len(shown)), [f"{e.contrast.name}  {e.contrast.what} ({len(e.values)})" for e in shown])
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("difference in test accuracy, percent points: a dot is a seed; mean and 95 % interval")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0, labelsize=8)
    figure.savefig(file, dpi=150, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("results/study"), help="holds a folder per part")
    folder = parser.parse_args().folder
    plan, accuracies = planned(), read(folder)
    estimates = analyse(accuracies, plan)
    text = report(estimates, accuracies, plan)
    (folder / "contrasts.md").write_text(text)
    draw(estimates, folder / "contrasts.png")
    print(text)


if __name__ == "__main__":
    main()
