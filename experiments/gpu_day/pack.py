"""The part before the GPU day: pack images and missing packages into data/gpu/, and check what a CPU can check.

    python experiments/gpu_day/pack.py --source DIR    DIR holds train/ and test/, a folder per class
    python experiments/gpu_day/pack.py --rehearse      the other parts on this CPU, with tiny networks

The GPU machine is lent for minutes and has no network. It needs the repository, an environment with PyTorch, and
data/gpu/. There, `measure.py` and `study.py` write JSON into the folder $OUT (runs/gpu-day if it is not set).
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

from common import PACKED, ROOT, parser_of

WHEELS = ("tyro", "docstring-parser", "typeguard")
"""Packages that few environments have; small and pure Python."""
LIMIT_BYTES = 64 << 20
"""What can be taken to the GPU machine."""


def pack(source: Path) -> None:
    """Put the images and the wheels into data/gpu/."""
    PACKED.mkdir(parents=True, exist_ok=True)
    # The headers of such small JPEGs are most of each file and nearly equal, so compression pays.
    with tarfile.open(PACKED / "images.tar.gz", "w:gz") as tar:
        for part in ("train", "test"):
            tar.add(source / part, part)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(PACKED), *WHEELS], check=True)
    size = sum(file.stat().st_size for file in PACKED.iterdir() if file.is_file())
    print(f"{PACKED.relative_to(ROOT)}: {size / 2**20:.1f} MiB")
    if size > LIMIT_BYTES:
        raise SystemExit(f"that is more than {LIMIT_BYTES >> 20} MiB, the most that can be taken along")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--source", type=Path, help="folder of images to pack")
    options = parser.parse_args()
    if options.source is None and not options.rehearse:
        parser.error("give --source DIR, --rehearse, or both")
    if options.source is not None:
        pack(options.source)
    if options.rehearse:
        here = Path(__file__).parent
        for part in ("measure.py", "study.py"):
            subprocess.run([sys.executable, str(here / part), "--rehearse"], check=True)


if __name__ == "__main__":
    main()
