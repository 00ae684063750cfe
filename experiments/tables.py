"""Write the tables of README.md and docs/, computed from the records in results/.

    python experiments/tables.py            replaces every table between <!-- table: NAME --> and <!-- end -->
    python experiments/tables.py --check    changes nothing; names the pages whose tables are stale, and exits with 1

Accuracies are in `studies`, sizes and times in `measured`.
"""

import argparse
import re
import sys
from pathlib import Path

import measured
import studies

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    *(
        f"docs/{name}.md"
        for name in (
            "results",
            "runtime",
            "small-file",
            "pruning-speed",
            "training-speed",
            "scale",
            "deploy",
            "from-trained-weights",
            "text",
        )
    ),
)
TABLES = {**studies.TABLES, **measured.TABLES}


def with_tables(page: str) -> str:
    """Return the page with its tables computed anew."""
    made = {name: make() for name, make in TABLES.items() if f"<!-- table: {name} -->" in page}
    for name, table in made.items():
        page = re.sub(
            rf"(<!-- table: {re.escape(name)} -->\n\n).*?(\n\n<!-- end -->)",
            lambda marks, table=table: f"{marks[1]}{table}{marks[2]}",
            page,
            flags=re.DOTALL,
        )
    return page


def main() -> int:
    """Write the tables, or check them; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; name the pages whose tables are stale")
    check = parser.parse_args().check
    stale = False
    for name in PAGES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = with_tables(before)
        if after == before:
            continue
        stale = True
        print(f"{name}: {'its tables are not what the records give' if check else 'tables replaced'}")
        if not check:
            path.write_text(after, encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
