"""What a GPU that is lent for minutes is used for: check, speed, study, each within its time.

    python experiments/gpu_day/run.py --minutes 8.5    on the GPU machine, after pack.py on your own
    python experiments/gpu_day/run.py --rehearse       on a CPU, with tiny networks and images

Results go to the folder that the environment variable OUT names (runs/gpu-day if it is not set), as they are measured.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path

from day import ROOT, Day
from pack import PACKED, code_commit, pack_code

LIMITS = {"check": 60.0, "speed": 60.0, "study": math.inf}
"""Seconds at most; the study has the rest."""
TO_END = 4.0
"""Seconds that a part has to end by itself when its time is over."""
SLOWNESS = 10
"""How much longer the parts of a rehearsal may take: a busy CPU is no failure."""


def run_part(day: Day, part: str) -> int | None:
    """Run a part in a process group of its own, and end the group when its time is over.

    Returns:
        Its exit code; None if it was ended.
    """
    start = time.time()
    process = subprocess.Popen(day.command(f"{part}.py"), cwd=ROOT, start_new_session=True)
    code: int | None = None
    try:
        code = process.wait(timeout=max(0.0, day.until + TO_END - start))
    except subprocess.TimeoutExpired:
        pass
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    ended = {"exit code": code, "seconds": round(time.time() - start, 1)}
    day.note(part, "ended", ended if code is not None else {**ended, "stopped": "its time was over"})
    return code


def not_reached(out: Path) -> list[str]:
    """Return the study's runs that have no record."""
    grid, records = (out / "gpu-study" / name for name in ("grid.json", "records.jsonl"))
    done = {json.loads(line)["run"] for line in records.read_text().splitlines()} if records.exists() else set()
    return [name for name in json.loads(grid.read_text())["runs"] if name not in done] if grid.exists() else ["any"]


def run(packed: Path, minutes: float, rehearse: bool) -> None:
    """Run all parts, and say what was not reached."""
    end = time.time() + 60 * minutes - TO_END
    commit = code_commit(packed)
    if commit.endswith("-dirty") and not rehearse:
        raise SystemExit(f"the code is not that of the commit that was packed ({commit}): commit, and pack again")
    out = Path(os.environ.get("OUT", ROOT / "runs" / "gpu-day")).resolve()
    out.mkdir(parents=True, exist_ok=True)
    for part, limit in LIMITS.items():
        until = min(end, time.time() + limit * (SLOWNESS if rehearse else 1))
        code = run_part(Day(str(out), str(packed), commit, rehearse, until), part)
        if (
            part == "check" and code == 1
        ):  # a measurement's error is a result; without a GPU or a package all would fail
            raise SystemExit("nothing was measured: see above")
    print(f"not reached: {', '.join(not_reached(out)) or 'none'}", flush=True)


def unpacked_wheels() -> Path:
    """Unpack the packed wheels into a folder to import from."""
    for wheel in PACKED.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(PACKED / "site")
    return PACKED / "site"


def rehearsal_images(folder: Path) -> None:
    """Make random pictures of two classes."""
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0)
    for part, name, count in (("train", "cat", 20), ("train", "dog", 20), ("test", "cat", 5), ("test", "dog", 5)):
        (folder / part / name).mkdir(parents=True)
        for number in range(count):
            image = Image.fromarray(pixels.integers(0, 256, (8, 8, 3), np.uint8))
            image.save(folder / part / name / f"{number}.jpg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.5, help="time for all of it")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny networks and images")
    options = parser.parse_args()
    paths = [str(ROOT / "src"), *([] if options.rehearse else [str(unpacked_wheels())])]
    sys.path[:0] = paths
    os.environ["PYTHONPATH"] = os.pathsep.join([*paths, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    if not options.rehearse:
        if not (PACKED / "code.json").exists():
            parser.error(f"{PACKED.relative_to(ROOT)} is missing: run experiments/gpu_day/pack.py where the images are")
        return run(PACKED, options.minutes, rehearse=False)
    os.environ["OMP_NUM_THREADS"] = "1"  # the tensors are tiny, and there are several processes
    with tempfile.TemporaryDirectory() as folder:
        import images

        packed = Path(folder)
        rehearsal_images(packed / "pictures")
        images.pack(packed / "pictures", packed / "images.npz")
        pack_code(packed)
        return run(packed, SLOWNESS * options.minutes, rehearse=True)


if __name__ == "__main__":
    main()
