"""Copy the finished runs of the study into results/study, from where the next session continues.

    python experiments/study/collect.py STUDY-FOLDER [--into results/study]

STUDY-FOLDER is that of run.sh, which may be at work. Records are only ever added. Prints what there is to commit.
"""

import argparse
import json
from pathlib import Path

from contrasts import PARTS, planned

from fggp.atomic import atomic_write

FILES = ("grid.json", "records.jsonl")


def collect(study: Path, into: Path) -> list[str]:
    """Copy every part, and return a line on each.

    Raises:
        ValueError: a part lacks records that were collected before, or the records are not of one commit.
    """
    content: dict[Path, str] = {}
    commits: set[str] = set()
    lines = []
    plan = planned()
    for part in PARTS:
        source = study / "grids" / part
        if not (source / "records.jsonl").exists():
            continue
        text = (source / "records.jsonl").read_text()
        records = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        old = into / part / "records.jsonl"
        before = [json.loads(line) for line in old.read_text().splitlines()] if old.exists() else []
        lost = [record["run"] for record in before if record not in records]
        if lost:
            raise ValueError(f"{source} lacks {lost[0]}, which {old} has: it does not continue that study")
        content[old] = "".join(json.dumps(record) + "\n" for record in records)
        content[into / part / "grid.json"] = (source / "grid.json").read_text()
        commits |= {record["commit"] for record in records}
        seeds = [record["seed"] for record in records]
        each = sum(cell.part == part for cell in plan)
        whole = sum(seeds.count(seed) == each for seed in set(seeds))
        wanted = sum(len(own) for cell, own in plan.items() if cell.part == part)
        lines.append(f"{part}: {len(records)} of {wanted} runs, {whole} whole seeds")
    if len(commits) > 1 or any(commit.endswith("-dirty") for commit in commits):
        raise ValueError(f"commits are {', '.join(sorted(commits))}; all records must be of one commit without changes")
    for commit in commits:
        content[into / "commit"] = commit + "\n"
    for file, text in content.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as opened:
            opened.write(text.encode())
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the folder that run.sh was given")
    parser.add_argument("--into", type=Path, default=Path("results/study"), help="where to copy to")
    options = parser.parse_args()
    print("\n".join(collect(options.study, options.into)))


if __name__ == "__main__":
    main()
