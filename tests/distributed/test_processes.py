"""Distributed training in real processes (gloo): each test is a function of a module scenarios_…, run by driver.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

SIZES = {
    "fsdp_methods": 2,
    "fsdp_ties": 3,
    "fsdp_groups": 3,
    "tensor_parallel_groups": 2,
    "fsdp_mixed_precision_and_offload": 2,
    "fsdp_with_replicas": 4,
    "averages": 3,
    "tensor_parallel": 2,
    "fsdp_and_tensor_parallel": 4,
    "ddp": 2,
    "ddp_that_starts_apart": 2,
    "refused": 2,
    "postponed_together": 2,
    "after_an_evaluation": 2,
    "left_out_of_batches": 2,
    "last_gradients": 3,
    "weight_norm": 3,
    "zero_redundancy": 2,
    "fsdp_with_quantised_state": 2,
    "resumed": 2,
    "saved_by_all": 3,
    "loaded_by_others": 2,  # loads what saved_by_all saved
}

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed"),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    paths = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, HERE / "driver.py", folder, *(f"{name}:{size}" for name, size in SIZES.items())],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return {name: (folder / f"{name}.txt").read_text() for name in SIZES}


@pytest.mark.parametrize("name", SIZES)
def test_scenario(name, outcomes):
    assert not outcomes[name], outcomes[name]
