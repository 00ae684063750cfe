"""The builds of the kernels that this processor can run, for tests that try each."""

import os
from pathlib import Path

import fggp
from fggp import native

# `make sanitize`: a folder with kernels that watch their memory accesses themselves.
SANITIZED = os.environ.get("FGGP_TEST_KERNELS")


def every_build():
    """All libraries, loaded, best first."""
    folders = [SANITIZED] if SANITIZED else fggp.__path__
    paths = [p for name in native.build_names() for f in folders for p in Path(f).glob(f"*fggp_{name}.*")]
    return [native.open_library(path) for path in paths]
