"""How much more a network loses than `fggp budget --drop 1.0` measured of it: the choice favours luck.

    python experiments/luck_of_a_budget.py

It simulates the command's bisection. Networks of a sparsity are equally good in truth: each run is off by a normal
deviation, and each image is a coin that no other network sees. docs/budget.md has the numbers.
"""

import numpy as np

from fggp.lab.budget.search import LEVELS, highest

DENSE = 98.0
"""Accuracy of dense networks, percent."""
AT_95 = 2.0
"""How far networks of 95 % sparsity are below, in points; the drop grows with the inverse of the weights kept."""
LIMIT = 1.0
SEEDS = 3
COMMANDS = 4000


def drop_at(level: float) -> float:
    """Return the true drop at a sparsity, in points."""
    return AT_95 * 0.05 / (1 - level)


def measured(random: np.random.Generator, accuracy: float, images: int, spread: float) -> float:
    """Return the mean accuracy of some runs, in percent."""
    runs = np.clip(random.normal(accuracy, spread, SEEDS) / 100, 0, 1)
    return float(100 * (random.binomial(images, runs) / images).mean())


def luck(images: int, spread: float) -> float:
    """Return by how many points the true drop of what is chosen is above the measured one, in the mean.

    Args:
        images: number of validation images.
        spread: standard deviation of a run, in points.
    """
    random = np.random.default_rng(0)
    found = []
    for _ in range(COMMANDS):
        dense = measured(random, DENSE, images, spread)
        drops: dict[int, float] = {}

        def meets(index: int, dense: float = dense, drops: dict[int, float] = drops) -> bool:
            drops[index] = dense - measured(random, DENSE - drop_at(LEVELS[index]), images, spread)
            return drops[index] <= LIMIT

        chosen = highest(0, len(LEVELS) - 1, meets)
        if chosen is not None:
            found.append(drop_at(LEVELS[chosen]) - drops[chosen])
    return float(np.mean(found))


if __name__ == "__main__":
    for images in (288, 1000, 10_000):
        print(f"{images:6} images: {', '.join(f'{luck(images, s):.2f} (runs ± {s})' for s in (0.3, 0.7))}")
