"""What the tables have in common: the records that count, and their numbers in words.

Only records of a commit count: those without one, or of files that differed from it ("-dirty"), cannot be repeated.
Where there is none, the table's place says which command makes it.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Json = dict[str, Any]
LAB_NETWORKS = {"resnet50": "ResNet-50", "vgg19": "VGG-19"}
RESULTS = Path(__file__).resolve().parents[2] / "results"


def of_a_commit(record: Json) -> bool:
    """Return whether a record names the commit of the code that made it, and no file differed from that."""
    commit = record.get("commit")
    return isinstance(commit, str) and not commit.endswith("-dirty")


def records_of(name: str, **wanted: object) -> list[Json]:
    """Return a file's records of a commit, the oldest first, that have the wanted values; none if there is no file."""
    path = RESULTS / name
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records = [json.loads(line) for line in lines]
    return [r for r in records if of_a_commit(r) and all(r.get(key) == value for key, value in wanted.items())]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("|".join(["", *(f" {cell} " if cell else " " for cell in line), ""]) for line in lines)


def or_missing(command: str, make: Callable[[], str | None]) -> Callable[[], str]:
    """Return a table's maker that names the command where there is no record."""

    def made() -> str:
        return make() or f"*There is no record of this at a commit yet. `{command}` makes one.*"

    return made


def made_by(record: Json) -> str:
    """Return a record's conditions in words, with the commit of the code that was measured."""
    versions = record if "torch" in record else record["versions"]
    date = str(record["date"])[:10]
    torch = versions["torch"].partition("+")[0]
    threads = "one thread" if record["threads"] == 1 else f"{record['threads']} threads"
    return f"*{record['device']}, {threads}, torch {torch}, commit {record['commit'][:7]}, {date}.*"


def by_network(record: Json) -> Iterator[tuple[tuple[str, float, int], dict[str, Json]]]:
    """Give the measurements by engine of each network, sparsity and batch size."""
    for key in dict.fromkeys((m["model"], m["sparsity"], m["batch"]) for m in record["measured"]):
        yield key, {m["engine"]: m for m in record["measured"] if (m["model"], m["sparsity"], m["batch"]) == key}


def milliseconds(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def megabytes(count: int) -> str:
    """A size of four digits or fewer."""
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def times_faster(own: Mapping[str, Json], *others: str) -> str:
    """The median of the rounds' ratios to the round's fastest of the others: a shared machine's speed changes."""
    fastest = map(min, zip(*(own[name]["turns_ms"] for name in others), strict=True))
    return f"{median(theirs / ours for ours, theirs in zip(own['fggp']['turns_ms'], fastest, strict=True)):.1f}"


def engine_cells(own: Mapping[str, Json], names: Sequence[str]) -> list[str]:
    """Milliseconds; the fewest are bold."""
    least = min(float(own[name]["ms"]) for name in names)
    return [
        f"**{milliseconds(ms)}**" if ms == least else milliseconds(ms) for ms in (own[name]["ms"] for name in names)
    ]
