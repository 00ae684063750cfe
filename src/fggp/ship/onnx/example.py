"""Sizes for which a network's operations fit each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice, product

from fggp.ship.onnx.sizes import Size, evaluated

# Sizes that are tried: those of images, sequences and batches first.
_TRIED = (2, 64, 224, 32, 1, 3, 4, 5, 6, 7, 8, 16, 48, 96, 100, 128, 256, 320, 384, 512, 576, 640, 1024, 16000)
_TRIALS_MAX = 20_000


def example_sizes(
    free: Sequence[str], sizes: Iterable[Size], equalities: Iterable[tuple[Size, Size]]
) -> dict[str, int] | None:
    """Values of free sizes with which sizes that must be equal are, and none is below 1.

    Args:
        free: the free sizes.
        sizes: all sizes of the network, and what else must be positive.
        equalities: pairs.

    Returns:
        None if none was found.
    """
    positive = [s for s in dict.fromkeys(sizes) if _symbols(s)]
    pairs = list(dict.fromkeys(equalities))
    found: dict[str, int] = {}
    # Sizes that nothing connects are found one after the other.
    for group in _connected(free, [_symbols(a) | _symbols(b) for a, b in pairs] + [_symbols(s) for s in positive]):
        mine = [s for s in positive if _symbols(s) <= set(group)]
        both = [(a, b) for a, b in pairs if (_symbols(a) | _symbols(b)) <= set(group)]
        for values in islice(product(_TRIED, repeat=len(group)), _TRIALS_MAX):
            trial = dict(zip(group, values, strict=True))
            if all(evaluated(a, trial) == evaluated(b, trial) for a, b in both) and all(
                evaluated(s, trial) >= 1 for s in mine
            ):
                found |= trial
                break
        else:
            return None
    return found


def _symbols(size: Size) -> frozenset[str]:
    return frozenset() if isinstance(size, int) else frozenset(map(str, size.free_symbols))


def _connected(free: Sequence[str], sets: Iterable[frozenset[str]]) -> list[list[str]]:
    """The free sizes in groups, so that each set lies in one."""
    groups = [{name} for name in free]
    for each in dict.fromkeys(sets):
        touched = [g for g in groups if g & each]
        if len(touched) > 1:
            groups = [g for g in groups if g not in touched] + [set().union(*touched)]
    return [sorted(group) for group in groups]
