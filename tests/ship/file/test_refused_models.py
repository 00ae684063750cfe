"""Models and arguments that cannot be saved or loaded are refused by name."""

import re

import pytest
import torch
from torch import nn

import fggp
from small_files import Holder, assert_refused, mlp, pruned


@pytest.mark.parametrize("values", [torch.float16, "bfloat16", 16, True])
def test_other_values_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match=re.escape(f"values={values!r} must be torch.bfloat16")):
        fggp.save(mlp(), tmp_path / "f", values=values)
    assert not any(tmp_path.iterdir())


class ExtraState(nn.Linear):
    def get_extra_state(self):
        return {"calls": 3}

    def set_extra_state(self, state):
        raise AssertionError


@pytest.mark.parametrize(
    ("model", "error", "match"),
    [
        (nn.Sequential(ExtraState(3, 3)), TypeError, "'0._extra_state' in the state dict is of type dict"),
        (nn.Sequential(nn.LazyLinear(3)), ValueError, "'0.weight' has no values yet"),
        (Holder(torch.ones(3, device="meta")), ValueError, "'t0' has no values yet"),
        (Holder(torch.ones(3).to_sparse()), ValueError, r"'t0' is torch.sparse_coo"),
        (Holder(torch.ones(3, dtype=torch.complex128)), ValueError, r"'t0' is torch.complex128"),
        (Holder(torch.ones(3, dtype=torch.complex64).conj()), ValueError, "'t0' is conjugated"),
        (
            nn.ModuleDict({"a": nn.Linear(2, 2), "_orig_mod": nn.ModuleDict({"a": nn.Linear(2, 2)})}),
            ValueError,
            "'_orig_mod.a.weight' and 'a.weight' have the same name",
        ),
        ("model.pt", TypeError, r"model='model.pt' must be a torch.nn.Module: save\(model, path\)"),
    ],
)
def test_what_cannot_be_stored_is_named_and_the_old_file_stays(tmp_path, model, error, match):
    (tmp_path / "f").write_text("old")
    with pytest.raises(error, match=match):
        fggp.save(model, tmp_path / "f")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_what_cannot_be_loaded_into(tmp_path):
    fggp.save(Holder(torch.ones(3), torch.ones(2, 4)), tmp_path / "f")
    expanded = Holder(torch.zeros(3), torch.zeros(2, 1).expand(2, 4))
    with pytest.raises(ValueError, match="'t1' is expanded"):
        fggp.load(tmp_path / "f", expanded)
    with torch.inference_mode():
        inference = Holder(torch.zeros(3), torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"'t0' was made in torch.inference_mode\(\)"):
        fggp.load(tmp_path / "f", inference)
    assert not inference.t0.any()
    assert not expanded.t0.any()
    with torch.inference_mode():
        fggp.load(tmp_path / "f", inference)
    assert inference.t0.all()
    with pytest.raises(TypeError, match=r"must be a torch.nn.Module: load\(path, model\)"):
        fggp.load(expanded, tmp_path / "f")


def test_other_models_are_refused_by_name(tmp_path):
    fggp.save(pruned(mlp(), 0.9), tmp_path / "f")
    lacking = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    assert_refused(tmp_path / "f", lacking, "is of another model: it has '2.weight', '2.bias', which the model lacks")
    assert_refused(tmp_path / "f", nn.Sequential(*mlp(), nn.Linear(2, 2)), "it lacks '3.weight', '3.bias'$")
    relabelled = nn.ModuleDict(dict(zip("ab2", mlp(), strict=True)))
    assert_refused(tmp_path / "f", relabelled, "it lacks 'a.weight'.* and 3 more, and has '0.weight'.* the model lacks")
    wide = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 6))
    shape = r"'2.weight' is float32 \[5, 30\] in the file, float32 \[6, 30\] in the model; '2.bias' is"
    assert_refused(tmp_path / "f", wide, shape)
    assert_refused(
        tmp_path / "f", mlp().half(), r"'0.weight' is float32 \[30, 20\] in the file, float16 .*; and 4 more"
    )
    transposed = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))
    assert_refused(tmp_path / "f", transposed, "is of another model")
    # A model so much smaller that the file is not even read.
    assert_refused(tmp_path / "f", nn.Linear(1, 1), "is of another model: it lacks 'weight', 'bias', and has")
