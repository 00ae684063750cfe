"""Pack what the GPU machine lacks into data/gpu/: images, wheels, and which commit the code is.

    python experiments/gpu_day/pack.py IMAGES --python 3.12

IMAGES has train/ and test/, each with a folder per class. Commit first: the runs' records name the commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

from day import ROOT

PACKED = ROOT / "data" / "gpu"
WHEELS = ("tyro", "docstring-parser", "typeguard", "zstandard")
"""What fggp needs and an environment made for PyTorch may lack: zstandard, and tyro with what it needs."""
CODE = ("src/fggp/**/*.py", "experiments/gpu_day/*.py", "experiments/gpu.toml", "experiments/variants.py")
LIMIT_BYTES = 64 << 20
"""What can be taken along: the files of the repository, and data/gpu/."""


def git(*arguments: str) -> list[str]:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout.split()


def code_digest() -> str:
    files = sorted(file for pattern in CODE for file in ROOT.glob(pattern))
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def pack_code(packed: Path) -> str:
    """Write the commit, with "-dirty" if the code differs from it, and the code's digest; return the former."""
    changed = git("status", "--porcelain", "--", "src/fggp", *CODE[1:])
    commit = git("rev-parse", "HEAD")[0] + "-dirty" * bool(changed)
    (packed / "code.json").write_text(json.dumps({"commit": commit, "digest": code_digest()}))
    return commit


def code_commit(packed: Path) -> str:
    """Return the commit that `pack_code` wrote, with "-dirty" if the code was changed since: here may be no git."""
    code = json.loads((packed / "code.json").read_text())
    return code["commit"] if code["digest"] == code_digest() else code["commit"].removesuffix("-dirty") + "-dirty"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--python", default="3.12", help="version of Python on the GPU machine")
    options = parser.parse_args()
    import images  # not above: it imports PyTorch, and run.py imports this module

    shutil.rmtree(PACKED, ignore_errors=True)
    PACKED.mkdir(parents=True)
    images.pack(options.images, PACKED / "images.npz")
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("2014", "_2_17", "_2_28")]
    target = ["--no-deps", "--only-binary=:all:", "--python-version", options.python, *platforms]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", PACKED]
    subprocess.run([*pip, *target, *WHEELS], check=True)
    commit = pack_code(PACKED)
    size = sum(f.stat().st_size for f in [*PACKED.iterdir(), *(ROOT / name for name in git("ls-files"))] if f.is_file())
    print(f"{PACKED.relative_to(ROOT)}, of commit {commit}; with the repository {size / 2**20:.1f} MiB")
    if commit.endswith("-dirty"):
        raise SystemExit(f"{' or '.join(CODE)} differs from that commit: commit or restore it, and pack again")
    if size > LIMIT_BYTES:
        raise SystemExit(f"that is more than {LIMIT_BYTES >> 20} MiB, the most that can be taken along")


if __name__ == "__main__":
    main()
