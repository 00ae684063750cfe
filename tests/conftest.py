import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from fggp import registry

pytest.register_assert_rewrite("helpers")

# The same examples in every run: a test that passes today passes tomorrow. What `make fuzz` finds beside them is
# written into the test as an @example. No test depends on timing, so none has a deadline.
settings.register_profile(
    "default",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "50")),
    suppress_health_check=[HealthCheck.too_slow],
)
# New examples in every run.
settings.register_profile(
    "fuzz",
    settings.get_profile("default"),
    derandomize=False,
    print_blob=True,
    max_examples=int(os.environ.get("HYPOTHESIS_EXAMPLES", "1000")),
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

# Several processes, training, whole networks, compilers, other people's stacks: `make test-slow`. The longest come
# first, so that no worker of a parallel run is left with one in the end.
SLOW = (
    "tests/distributed/",
    "tests/faults/",
    "tests/lab/grid/test_grid.py",
    "tests/lab/training/",
    "tests/lab/test_gpu_day",
    "tests/stacks/",
    "tests/ship/graph/test_networks",
    "tests/network/test_networks_of_timm",
    "tests/ship/runtime/test_compiled_networks",
    "tests/network/test_aten_operators",
    "tests/network/test_whole_networks",
    "tests/test_text_examples",
    "tests/test_long",
    "tests/lab/test_study",
    "tests/lab/test_demo",
    "tests/lab/bench/",
    "tests/lab/budget/",
    "tests/ship/from_onnx/test_onnx_networks",
    "tests/test_compiled",
    "tests/test_examples",
    "tests/test_notebooks",
    "tests/web/",
)
# The same for the longest of the others.
NEXT = (
    "tests/network/test_quantized_operations",
    "tests/network/test_network_kernels",
    "tests/pruner/test_recipes_ends",
    "tests/ship/runtime/",
)


def rank(name):
    """The place of a test or file, named from the repository's root, among those that take long."""
    return next((r for r, start in enumerate(SLOW + NEXT) if name.startswith(start)), len(SLOW + NEXT))


def pytest_ignore_collect(collection_path, config):
    # What is not to run is not imported either: the stacks take half a minute.
    only = {"slow": True, "not slow": False}.get(config.getoption("markexpr"))
    if only is None or not collection_path.match("test_*.py"):
        return None
    slow = rank(collection_path.relative_to(config.rootpath).as_posix()) < len(SLOW)
    return True if slow != only else None


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: rank(item.nodeid))
    for item in items:
        if rank(item.nodeid) < len(SLOW):
            item.add_marker("slow")


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """The tensors here are tiny, and several test processes share the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_sessionfinish():
    registry._unfinished.clear()  # most tests stop pruning somewhere: nobody needs to hear of it
