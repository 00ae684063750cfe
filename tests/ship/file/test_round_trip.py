"""A saved model is loaded to the bit, whatever its tensors, and the file is small."""

import math

import pytest
import torch
from hypothesis import given
from torch import nn

import fggp
import helpers
from fggp.lab.training import models
from fggp.ship.file.dtypes import CODE_OF_DTYPE
from small_files import (
    Holder,
    bits,
    each_in_turn,
    entries,
    holders,
    mlp,
    pruned,
    random_bits,
    states_equal,
    with_other_bits,
)


@given(holders())
@each_in_turn
def test_every_bit_comes_back(tmp_path, model):
    fggp.save(model, tmp_path / "f")
    loaded = with_other_bits(model)
    assert fggp.load(tmp_path / "f", loaded) is None
    assert states_equal(loaded, model)


@given(holders())
@each_in_turn
def test_sparse_only_where_that_makes_the_file_smaller(tmp_path, model):
    fggp.save(model, tmp_path / "f")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fggp.ship.file.save, "_sparse_if_smaller", lambda flat, name_bytes: None)
        fggp.save(model, tmp_path / "dense")
    sizes = [(tmp_path / name).stat().st_size for name in ("f", "dense")]
    sparse = any(key.startswith("sparse:") for key in entries(tmp_path / "f")[1])
    assert sizes[0] < sizes[1] if sparse else sizes[0] == sizes[1]


def test_escapes_count_too(tmp_path):
    tensor = torch.zeros(100_000, dtype=torch.uint8)
    tensor[:49_895] = 1
    fggp.save(Holder(tensor), tmp_path / "f")
    assert "t0:gaps" in entries(tmp_path / "f")[0]
    tensor[-1] = 1  # one value more, and 196 escapes to reach it
    fggp.save(Holder(tensor), tmp_path / "f")
    assert "t0" in entries(tmp_path / "f")[0]


@pytest.mark.parametrize("dtype", CODE_OF_DTYPE, ids=str)
def test_every_dtype_is_stored_sparse_and_dense(tmp_path, dtype):
    model = Holder(random_bits((50, 40), dtype, 0.05, 1), random_bits((7, 3), dtype, 1.0, 2))
    fggp.save(model, tmp_path / "f")
    pieces, metadata = entries(tmp_path / "f")
    assert set(metadata) == {"fggp", "sparse:t0"}
    assert set(pieces) == {"t0:gaps", "t0:values", "t1", ":crc32"}
    assert pieces["t0:values"].dtype == dtype
    loaded = with_other_bits(model)
    fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)


def test_only_all_zero_bits_are_left_out(tmp_path):
    tensor = torch.zeros(1000)
    nan = torch.tensor([0x7FA12345], dtype=torch.int32).view(torch.float32)
    tensor[[10, 500, 999]] = torch.stack([torch.tensor(-0.0), nan[0], torch.tensor(math.inf)])
    model = Holder(tensor)
    fggp.save(model, tmp_path / "f")
    assert len(entries(tmp_path / "f")[0]["t0:values"]) == 3
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
    assert "sparse:weight" in entries(tmp_path / "f")[1]
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
    pieces, _ = entries(tmp_path / "f")
    assert [pieces[f"t{i}:values"].dtype for i in range(5)] == [
        *(torch.float16, torch.bfloat16, torch.int32, torch.bfloat16, torch.bfloat16)
    ]
    loaded = with_other_bits(model)
    fggp.load(tmp_path / "f", loaded)
    expected = Holder(*(t.bfloat16().to(t.dtype) if i in (3, 4) else t for i, t in enumerate([*tensors, model.t5])))
    # A zero that arithmetic made may be −0, which is a value; rounding keeps it.
    assert states_equal(loaded, expected)


@pytest.fixture(scope="module")
def vgg19():
    torch.manual_seed(0)
    return models.create("vgg19", classes=10).state_dict()


@pytest.mark.parametrize(("sparsity", "ratio"), [(0.95, 15), (0.98, 37)])
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
    assert (tmp_path / "f").stat().st_size <= dense / ratio
