"""Which sparsities are tried: those of a fixed list, by bisection."""

from collections.abc import Callable

LEVELS = (
    *(0.5, 0.6, 0.7, 0.75, 0.8, 0.83, 0.86, 0.88, 0.9, 0.915, 0.93, 0.94, 0.95, 0.957, 0.965, 0.97, 0.975, 0.98),
    *(0.983, 0.986, 0.988, 0.99, 0.992, 0.994, 0.995),
)
"""Each keeps about a fifth less than the one before: closer ones could not be told apart by their accuracy."""


def highest(bottom: int, top: int, meets: Callable[[int], bool]) -> int | None:
    """Return the highest index from ``bottom`` to ``top`` that meets something; None if ``bottom`` does not.

    Assumes that all below an index that meets it meet it too, so that a few have to be tried.
    """
    below, above = bottom - 1, top + 1
    while above - below > 1:
        middle = (below + above) // 2
        if meets(middle):
            below = middle
        else:
            above = middle
    return below if below >= bottom else None


def lowest(bottom: int, top: int, meets: Callable[[int], bool]) -> int | None:
    """Return the lowest index from ``bottom`` to ``top`` that meets something; None if ``top`` does not.

    Assumes that all above an index that meets it meet it too.
    """
    if not meets(top):
        return None
    found = highest(bottom, top - 1, lambda index: not meets(index))
    return bottom if found is None else found + 1
