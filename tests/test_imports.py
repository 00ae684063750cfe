"""What an import loads: nothing that the program at hand does not need. Counted in modules, not in seconds."""

import subprocess
import sys

import pytest

import fggp

HEAVY = {"matplotlib", "numpy", "scipy", "sklearn", "timm", "torch", "torchvision"}
SLOW_PARTS = {"sympy", "torch._dynamo", "torch.distributed.tensor", "torch.export", "torch.onnx"}
"""What takes long, and is needed to shard or to compile a model only."""


def loaded_by(code):
    """The modules that a new process has after running some code."""
    report = f"import sys\ntry:\n    {code}\nfinally:\n    print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_importing_fggp_waits_for_nothing():
    assert loaded_by("import fggp").isdisjoint(HEAVY)


def test_pruning_and_saving_load_no_more_than_torch():
    with_fggp = loaded_by("import fggp; fggp.Pruner, fggp.save, fggp.load")
    assert (with_fggp - loaded_by("import torch")).isdisjoint(HEAVY | SLOW_PARTS)


@pytest.mark.parametrize("command", ["", "demo", "train", "grid", "budget", "report", "export", "bench"])
def test_help_waits_for_nothing(command):
    pytest.importorskip("tyro")
    loaded = loaded_by(f"from fggp.lab.cli import main; main({[*command.split(), '--help']})")
    assert "fggp.lab.cli" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_the_library_never_imports_the_lab():
    loaded = loaded_by("import fggp; [getattr(fggp, name) for name in fggp.__all__]")
    assert "fggp.ship.runtime.compiled" in loaded
    assert not any(name.startswith("fggp.lab") for name in loaded)


def test_every_public_name_is_there_and_no_other():
    found = {}
    exec("from fggp import *", found)
    assert set(fggp.__all__) <= set(found)
    assert set(fggp.__all__) <= set(dir(fggp))
    assert set(fggp._MODULE_OF) | {"methods", "schedule", "scores"} == set(fggp.__all__)
    assert found["Pruner"] is fggp.Pruner
    with pytest.raises(AttributeError, match="module 'fggp' has no attribute 'Prunner'"):
        fggp.Prunner  # noqa: B018
