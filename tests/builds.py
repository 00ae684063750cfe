"""The builds of the kernels that this processor can run, for tests that try each."""

import os
from contextlib import contextmanager
from unittest import mock

from fggp import native

SANITIZED = os.environ.get("FGGP_TEST_KERNELS")
"""A folder of builds that check their own memory accesses, set by `make sanitize`."""


def every_build():
    """All libraries, loaded, best first."""
    folders = [SANITIZED] if SANITIZED else native.package_folders()
    return [native.open_library(path) for path in native.installed_builds(folders)]


def build_name(build):
    """The processor that a build is for; names the cases of a parametrized test."""
    return build.fggp_cpu().decode()


@contextmanager
def running(build, threads):
    """Run the passes with this build and this number of threads."""
    with (
        mock.patch.object(native, "load", return_value=build),
        mock.patch("torch.get_num_threads", return_value=threads),
    ):
        yield


def without_kernels():
    """Run the passes as if fggp was installed without its kernels."""
    return mock.patch.object(native, "load", side_effect=native.KernelsMissingError("none here"))
