"""Tied tensors are stored once, and are told from tensors that merely share memory."""

import torch
from torch import nn

import fggp
from small_files import Holder, assert_refused, entries, pruned, states_equal


def test_tied_tensors_are_stored_once(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(30, 30), nn.Linear(30, 30), nn.Linear(30, 30, bias=False))
        model[1].weight = model[0].weight
        model[1].bias = model[0].bias
        return model

    model = pruned(tied(), 0.9)
    fggp.save(model, tmp_path / "f")
    pieces, metadata = entries(tmp_path / "f")
    assert metadata["shared:1.weight"] == "0.weight"
    assert metadata["shared:1.bias"] == "0.bias"
    assert set(pieces) == {"0.bias", ":crc32", *(f"{n}.weight:{p}" for n in (0, 2) for p in ("gaps", "values"))}
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
    # Sparse or dense can depend on the length of the name, which the header counts.
    long = "x" * 90
    tensor = torch.zeros(90)
    tensor[:5] = 1
    apart = nn.ParameterDict({"a": tensor.clone(), long: tensor.clone()})
    fggp.save(apart, tmp_path / "f")
    assert set(entries(tmp_path / "f")[0]) == {"a:gaps", "a:values", long, ":crc32"}
    tied = nn.ParameterDict({"a": nn.Parameter(torch.ones(90))})
    tied[long] = tied["a"]
    fggp.load(tmp_path / "f", tied)
    assert states_equal(apart, tied)
