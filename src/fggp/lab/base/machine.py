"""Facts about the machine and the code that a measurement or a run is recorded with."""

import platform
import subprocess
from pathlib import Path

import torch


def device_name(device: torch.device) -> str:
    """Return the maker's name of the processor that a device is."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Python's own `platform` has no processor name on Linux
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def source_commit() -> str | None:
    """Return the commit of this code, with "-dirty" where files differ from it; None outside of git.

    Records in ``results`` are no code: the record of one measurement does not make the next one's commit dirty.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # A package installed below someone else's repository must not be given that repository's commit.
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
        changes = [*git, "diff", "--quiet", "HEAD", "--", ":(top)", ":(top,exclude)results"]
        changed = subprocess.run(changes, check=False).returncode
        return {0: commit, 1: f"{commit}-dirty"}.get(changed)
    except (OSError, subprocess.CalledProcessError):
        return None
