"""A saved model is loaded to the bit, whatever its tensors, and the file is small."""

import math
import sys

import pytest
import torch
import version1_files
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fggp
import helpers
from fggp.lab.training import models
from fggp.ship.file.dtypes import CODE_OF_DTYPE
from small_files import (
    Holder,
    bits,
    each_in_turn,
    holders,
    mlp,
    pruned,
    random_bits,
    states_equal,
    with_other_bits,
)
from version2_files import entry_of, taken_apart


def index_entry(path, name):
    """What a file's index says of a tensor."""
    return entry_of(taken_apart(path.read_bytes()).index, name)


@given(holders())
@each_in_turn
def test_every_bit_comes_back(tmp_path, model):
    fggp.save(model, tmp_path / "f")
    loaded = with_other_bits(model)
    assert fggp.load(tmp_path / "f", loaded) is None
    assert states_equal(loaded, model)


@given(holders())
@each_in_turn
def test_every_bit_comes_back_from_a_file_of_version_1(tmp_path, model):
    version1_files.save(tmp_path / "f", model)
    loaded = with_other_bits(model)
    fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)


@given(holders(), st.sampled_from([1, 7, 64]))
@each_in_turn
def test_every_bit_comes_back_in_whatever_stretches_it_is_coded(tmp_path, model, chunk):
    fggp.save(model, tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        for module in ("gaps", "planes", "load"):
            patch.setattr(sys.modules[f"fggp.ship.file.{module}"], "CHUNK", chunk)
        fggp.save(model, tmp_path / "f")
        loaded = with_other_bits(model)
        fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)
    assert (tmp_path / "f").read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("zeros", [0.001, 0.02, 0.05, 0.2, 0.6, 0.95, 0.999])
def test_sparse_where_that_makes_the_file_smaller(tmp_path, monkeypatch, dtype, zeros):
    model = Holder(random_bits((40_000,), dtype, 1 - zeros, 0))
    sizes = {}
    for sparse in (True, False):
        with monkeypatch.context() as patch:
            if not sparse:
                patch.setattr(sys.modules["fggp.ship.file.save"], "_sparse_if_smaller", lambda flat: None)
            fggp.save(model, tmp_path / "f")
        is_sparse = len(index_entry(tmp_path / "f", "t0")) == 5
        sizes[is_sparse] = (tmp_path / "f").stat().st_size
    # Bytes that are zero compress about as well among the others as they do as gaps.
    assert sizes.get(True, 0) < sizes[False] * (1.03 if dtype == torch.int8 else 1)
    assert (True in sizes) == (zeros > 1 / 8 / dtype.itemsize)


@pytest.mark.parametrize("zeros", [0, 1, 2])
def test_a_tensor_of_few_zeros_is_dense(tmp_path, zeros):
    fggp.save(Holder(torch.cat([torch.zeros(zeros), torch.ones(3)])), tmp_path / "f")
    assert index_entry(tmp_path / "f", "t0") == ["t0", "F32", [3 + zeros]]


@pytest.mark.parametrize("dtype", CODE_OF_DTYPE, ids=str)
def test_every_dtype_is_stored_sparse_and_dense(tmp_path, dtype):
    model = Holder(random_bits((50, 40), dtype, 0.05, 1), random_bits((7, 3), dtype, 1.0, 2))
    fggp.save(model, tmp_path / "f")
    parts = taken_apart((tmp_path / "f").read_bytes())
    code, count = CODE_OF_DTYPE[dtype], int(bits(model.t0).count_nonzero())
    assert parts.metadata == {"fggp": "2"}
    assert parts.index["tensors"][0][:4] == ["t0", code, [50, 40], count]
    assert parts.index["tensors"][1] == ["t1", code, [7, 3]]
    assert set(parts.contents) == {"gaps", code}
    assert sum(map(len, parts.contents[code])) == (count + 21) * dtype.itemsize
    assert len(parts.contents[code]) == (dtype.itemsize if dtype.is_floating_point else 1)
    loaded = with_other_bits(model)
    fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)


def test_only_all_zero_bits_are_left_out(tmp_path):
    tensor = torch.zeros(1000)
    nan = torch.tensor([0x7FA12345], dtype=torch.int32).view(torch.float32)
    tensor[[10, 500, 999]] = torch.stack([torch.tensor(-0.0), nan[0], torch.tensor(math.inf)])
    model = Holder(tensor)
    fggp.save(model, tmp_path / "f")
    assert index_entry(tmp_path / "f", "t0")[3] == 3
    loaded = with_other_bits(model)
    fggp.load(tmp_path / "f", loaded)
    assert bits(loaded.t0)[[10, 500, 999]].tolist() == [-(2**31), 0x7FA12345, 0x7F800000]
    assert states_equal(loaded, model)


def test_a_training_goes_on_with_the_same_parameters_and_layout(tmp_path):
    model = pruned(helpers.convnet(), 0.9).to(memory_format=torch.channels_last)
    helpers.train(model, helpers.sgd(model), 2)
    fggp.save(model, tmp_path / "f")
    loaded = with_other_bits(model)
    optimizer = helpers.sgd(loaded)
    before = {name: (id(p), p.stride()) for name, p in loaded.named_parameters()}
    fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)
    assert before == {name: (id(p), p.stride()) for name, p in loaded.named_parameters()}
    helpers.train(loaded, optimizer, 2)
    helpers.train(model, helpers.sgd(model), 2)
    assert states_equal(loaded, model)


def test_a_pruned_weight_in_channels_last_comes_back(tmp_path):
    model = pruned(nn.Conv2d(8, 8, 5), 0.9).to(memory_format=torch.channels_last)
    fggp.save(model, tmp_path / "f")
    assert len(index_entry(tmp_path / "f", "weight")) == 5
    loaded = with_other_bits(model)
    fggp.load(tmp_path / "f", loaded)
    assert loaded.weight.is_contiguous(memory_format=torch.channels_last)
    assert states_equal(loaded, model)


def test_modules_of_two_names_and_hooks_that_copy_the_state(tmp_path):
    def build(seed):
        torch.manual_seed(seed)
        one = nn.Linear(20, 20)
        model = nn.ModuleDict({"a": one, "b": one, "c": nn.Linear(20, 20)})

        def copied(module, state, prefix, local_metadata):
            state[f"{prefix}weight"] = state[f"{prefix}weight"].clone()

        model["c"].register_state_dict_post_hook(copied)
        return model

    model, loaded = build(0), build(1)
    fggp.save(model, tmp_path / "f")
    fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)


def test_a_module_is_not_taken_for_one_of_an_older_version(tmp_path):
    class Versioned(nn.Linear):
        _version = 2

        def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
            assert local_metadata["version"] == 2
            super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    model = Versioned(3, 4)
    fggp.save(model, tmp_path / "f")
    loaded = Versioned(3, 4)
    fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)


def test_a_file_is_a_function_of_the_model(tmp_path):
    for name in ("a", "b"):
        fggp.save(pruned(mlp(), 0.9), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"a", "b"}


def test_bfloat16_rounds_what_is_stored_sparse_and_gives_the_models_dtype_back(tmp_path):
    tensors = [random_bits((60, 50), dtype, 0.1, 3) for dtype in (torch.float16, torch.bfloat16, torch.int32)]
    tensors += [torch.randn(60, 50, dtype=d) * (torch.rand(60, 50) < 0.1) for d in (torch.float32, torch.float64)]
    model = Holder(*tensors, torch.randn(60))
    fggp.save(model, tmp_path / "f", values=torch.bfloat16)
    rounded = [index_entry(tmp_path / "f", f"t{i}")[5:] for i in range(6)]
    assert rounded == [[], [], [], ["BF16"], ["BF16"], []]
    loaded = with_other_bits(model)
    fggp.load(tmp_path / "f", loaded)
    expected = Holder(*(t.bfloat16().to(t.dtype) if i in (3, 4) else t for i, t in enumerate([*tensors, model.t5])))
    # A zero that arithmetic made may be −0, which is a value; rounding keeps it.
    assert states_equal(loaded, expected)


@pytest.fixture(scope="module")
def vgg19():
    torch.manual_seed(0)
    return models.create("vgg19", classes=10).state_dict()


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.9, 10.6), (0.95, 20.3), (0.98, 48)])
@pytest.mark.parametrize("by", ["chance", "magnitude"])
def test_a_pruned_vgg19_is_as_small_as_promised(tmp_path, vgg19, sparsity, ratio, by):
    state = {name: tensor.clone() for name, tensor in vgg19.items()}
    weights = [t for t in state.values() if t.ndim > 1]
    if by == "magnitude":
        magnitudes = torch.cat([w.abs().flatten() for w in weights])
        threshold = magnitudes.kthvalue(round(sparsity * len(magnitudes))).values
        masks = [w.abs() > threshold for w in weights]
    else:
        masks = [torch.rand(w.shape) >= sparsity for w in weights]
    for weight, mask in zip(weights, masks, strict=True):
        weight.masked_fill_(~mask, 0)
    model = nn.ParameterDict()
    for name, tensor in state.items():
        model.register_buffer(name.replace(".", "/"), tensor)
    fggp.save(model, tmp_path / "f")
    dense = sum(t.nbytes for t in state.values())
    # Pruned by chance, the layers are equally sparse and the exponents are those of all weights: both say more.
    assert (tmp_path / "f").stat().st_size <= dense / ratio * (1 if by == "magnitude" else 1.12)
