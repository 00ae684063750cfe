"""Keep what the examples with text have measured, with the conditions of this machine and code.

python examples/text/prune_classifier.py --out build/text-classifier
python examples/text/prune_language_model.py --out build/language-model
python benchmarks/text.py build/text-classifier build/language-model
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path

from common import ROOT, append, conditions

RECORDS = ROOT / "results" / "text" / "text.ndjson"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="what the examples were given as --out")
    for folder in parser.parse_args().folders:
        run = json.loads((folder / "record.json").read_text())
        texts = {package: version(package) for package in ("numpy", "transformers")}
        append({"benchmark": "text", **conditions(), **texts, "run": run}, RECORDS)
        print(folder, run["model"])


if __name__ == "__main__":
    main()
