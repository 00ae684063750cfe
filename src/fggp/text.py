"""Text for error messages."""

from collections.abc import Sequence


def listing(names: Sequence[str], most: int = 4) -> str:
    """Quote the first ``most`` names and count the others: ``'a', 'b', 'c', 'd' and 3 more``."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
