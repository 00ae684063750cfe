"""Tied tensors are stored once, and are told from tensors that merely share memory."""

import torch
from torch import nn

import fggp
from small_files import Holder, assert_refused, pruned, states_equal
from version2_files import entry_of, put_together, taken_apart


def test_tied_tensors_are_stored_once(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 30, bias=False))
        model[1].weight = model[0].weight
        model[1].bias = model[0].bias
        return model

    model = pruned(tied(), 0.9)
    fggp.save(model, tmp_path / "f")
    parts = taken_apart((tmp_path / "f").read_bytes())
    assert entry_of(parts.index, "1.weight") == ["1.weight", "0.weight"]
    assert entry_of(parts.index, "1.bias") == ["1.bias", "0.bias"]
    values = 30 + sum(int(model[n].weight.count_nonzero()) for n in (0, 2))
    assert [len(plane) for plane in parts.contents["F32"]] == [values] * 4
    loaded = tied()
    fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)
    assert loaded[1].weight is loaded[0].weight
    apart = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 30, bias=False))
    fggp.load(tmp_path / "f", apart)
    assert states_equal(apart, model)

    fggp.save(apart, tmp_path / "f")
    fggp.load(tmp_path / "f", loaded)
    with torch.no_grad():
        apart[1].weight[3, 4] += 1
    fggp.save(apart, tmp_path / "f")
    assert_refused(tmp_path / "f", loaded, r"'0.weight' and '1.weight' are tied in the model and differ in the file")


def test_views_of_one_memory_are_not_taken_for_tied(tmp_path):
    square = torch.arange(9.0).view(3, 3)
    model = Holder(square, square.T, square[:2], square.view(torch.int32))
    fggp.save(model, tmp_path / "f")
    loaded = Holder(*(torch.zeros(t.shape, dtype=t.dtype) for t in model.buffers()))
    fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)


def test_a_tied_tensor_may_be_stored_in_two_codings(tmp_path):
    # `save` chooses the same coding for both.
    tensor = torch.zeros(90)
    tensor[:5] = 1
    apart = nn.ParameterDict({"a": tensor.clone(), "b": tensor.clone()})
    fggp.save(apart, tmp_path / "f")
    parts = taken_apart((tmp_path / "f").read_bytes())
    parts.index["tensors"] = [["a", "F32", [90], 5, 5], ["b", "F32", [90]]]
    parts.contents["gaps"] = [bytes(5)]
    parts.contents["F32"] = [plane[:5] + plane[:5] + bytes(85) for plane in parts.contents["F32"]]
    (tmp_path / "f").write_bytes(put_together(parts))
    tied = nn.ParameterDict({"a": nn.Parameter(torch.ones(90))})
    tied["b"] = tied["a"]
    fggp.load(tmp_path / "f", tied)
    assert states_equal(apart, tied)
