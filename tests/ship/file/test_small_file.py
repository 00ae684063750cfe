"""The small file: to the bit, small, and nothing that comes from outside can harm a model."""

import copy
import json
import math
import os
import re
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fggp
import helpers
from fggp.lab.training import models
from fggp.ship.file import container, small_file
from fggp.ship.file.container import CODES
from tensors import layouts, shapes

PAGE = (Path(__file__).parents[3] / "docs" / "small-file.md").read_text()
EXAMPLE, BYTES, READER = re.findall(r"^```\w*\n(.*?)^```$", PAGE, re.M | re.S)
INTEGER = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

# The fixtures that hypothesis would complain about hold no state.
each_in_turn = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


class Holder(nn.Module):
    """A module of these tensors, as buffers t0, t1, …"""

    def __init__(self, *tensors):
        super().__init__()
        for i, tensor in enumerate(tensors):
            self.register_buffer(f"t{i}", tensor)


def bits(tensor):
    return tensor.detach().contiguous().view(-1).view(INTEGER[tensor.element_size()])


def states_equal(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(
        a[k].dtype == b[k].dtype and a[k].shape == b[k].shape and torch.equal(bits(a[k]), bits(b[k])) for k in a
    )


def other(model):
    """A model alike with all bits different, in the same memory layout."""
    changed = copy.deepcopy(model)
    for tensor in changed.state_dict().values():
        new = ~bits(tensor) if tensor.dtype != torch.bool else bits(tensor) ^ 1
        tensor.copy_(new.view(tensor.dtype).view(tensor.shape))
    assert not states_equal(changed, model) or not any(t.numel() for t in model.state_dict().values())
    return changed


def random_bits(shape, dtype, density, seed):
    """A tensor of any bits whatever, NaNs and −0 among them; ``density`` of it not zero."""
    generator = torch.Generator().manual_seed(seed)
    n, size = math.prod(shape), dtype.itemsize
    flat = torch.randint(0, 256, (n, size), generator=generator, dtype=torch.uint8)
    if dtype == torch.bool:
        flat &= 1
    elif dtype.is_floating_point:  # some −0
        minus = torch.rand(n, generator=generator) < 0.2
        flat[minus] = torch.tensor([0] * (size - 1) + [128], dtype=torch.uint8)
    flat[torch.rand(n, generator=generator) >= density] = 0
    return flat.view(-1).view(dtype).view(shape)


@st.composite
def holders(draw):
    tensors = []
    for _ in range(draw(st.integers(0, 4))):
        shape = draw(st.one_of(shapes(600), st.sampled_from([(), (0,), (3, 0, 2), (1,), (1000,), (40, 30)])))
        dtype = draw(st.sampled_from(list(CODES)))
        density = draw(st.sampled_from([0.0, 0.02, 0.2, 0.7, 1.0]))
        tensor = random_bits(shape, dtype, density, draw(st.integers(0, 99)))
        tensors.append(draw(layouts(tensor)) if tensor.numel() and tensor.ndim and dtype.is_floating_point else tensor)
    return Holder(*tensors)


def pruned(model, sparsity, seed=0):
    """Prune at random, each tensor of two dimensions or more for itself."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p[torch.rand(p.shape, generator=generator) < sparsity] = 0
    return model


def mlp(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 5))


def entries(path):
    with safetensors.safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118 (no mapping)


# What goes in comes out


@given(holders())
@each_in_turn
def test_every_bit_comes_back(tmp_path, model):
    fggp.save(model, tmp_path / "f")
    loaded = other(model)
    assert fggp.load(tmp_path / "f", loaded) is None
    assert states_equal(loaded, model)


@given(holders())
@each_in_turn
def test_sparse_only_where_that_makes_the_file_smaller(tmp_path, model):
    fggp.save(model, tmp_path / "f")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small_file, "_sparse", lambda flat, names: None)
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


@pytest.mark.parametrize("dtype", CODES, ids=str)
def test_every_dtype_is_stored_sparse_and_dense(tmp_path, dtype):
    model = Holder(random_bits((50, 40), dtype, 0.05, 1), random_bits((7, 3), dtype, 1.0, 2))
    fggp.save(model, tmp_path / "f")
    pieces, metadata = entries(tmp_path / "f")
    assert set(metadata) == {"fggp", "sparse:t0"}
    assert set(pieces) == {"t0:gaps", "t0:values", "t1", ":crc32"}
    assert pieces["t0:values"].dtype == dtype
    loaded = other(model)
    fggp.load(tmp_path / "f", loaded)
    assert states_equal(loaded, model)


def test_only_all_zero_bits_are_left_out(tmp_path):
    tensor = torch.zeros(1000)
    nan = torch.tensor([0x7FA12345], dtype=torch.int32).view(torch.float32)
    tensor[[10, 500, 999]] = torch.stack([torch.tensor(-0.0), nan[0], torch.tensor(math.inf)])
    model = Holder(tensor)
    fggp.save(model, tmp_path / "f")
    assert len(entries(tmp_path / "f")[0]["t0:values"]) == 3
    loaded = other(model)
    fggp.load(tmp_path / "f", loaded)
    assert bits(loaded.t0)[[10, 500, 999]].tolist() == [-(2**31), 0x7FA12345, 0x7F800000]
    assert states_equal(loaded, model)


def test_a_training_goes_on_with_the_same_parameters_and_layout(tmp_path):
    model = pruned(helpers.convnet(), 0.9).to(memory_format=torch.channels_last)
    helpers.train(model, helpers.sgd(model), 2)
    fggp.save(model, tmp_path / "f")
    loaded = other(model)
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
    loaded = other(model)
    fggp.load(tmp_path / "f", loaded)
    assert loaded.weight.is_contiguous(memory_format=torch.channels_last)
    assert states_equal(loaded, model)


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
    refused(tmp_path / "f", loaded, r"'0.weight' and '1.weight' are tied in the model and differ in the file")


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


# Rounded values


def test_bfloat16_rounds_what_is_stored_sparse_and_gives_the_models_dtype_back(tmp_path):
    tensors = [random_bits((60, 50), dtype, 0.1, 3) for dtype in (torch.float16, torch.bfloat16, torch.int32)]
    tensors += [torch.randn(60, 50, dtype=d) * (torch.rand(60, 50) < 0.1) for d in (torch.float32, torch.float64)]
    model = Holder(*tensors, torch.randn(60))
    fggp.save(model, tmp_path / "f", values=torch.bfloat16)
    pieces, _ = entries(tmp_path / "f")
    assert [pieces[f"t{i}:values"].dtype for i in range(5)] == [
        *(torch.float16, torch.bfloat16, torch.int32, torch.bfloat16, torch.bfloat16)
    ]
    loaded = other(model)
    fggp.load(tmp_path / "f", loaded)
    expected = Holder(*(t.bfloat16().to(t.dtype) if i in (3, 4) else t for i, t in enumerate([*tensors, model.t5])))
    # A zero that arithmetic made may be −0, which is a value; rounding keeps it.
    assert states_equal(loaded, expected)


@pytest.mark.parametrize("values", [torch.float16, "bfloat16", 16, True])
def test_other_values_are_refused(tmp_path, values):
    with pytest.raises(ValueError, match=re.escape(f"values={values!r} must be torch.bfloat16")):
        fggp.save(mlp(), tmp_path / "f", values=values)
    assert not any(tmp_path.iterdir())


# Wrappers


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda m: nn.DataParallel(torch.compile(m))])
def test_files_of_wrapped_and_bare_models_are_the_same(tmp_path, wrap):
    model = pruned(mlp(), 0.9)
    fggp.save(model, tmp_path / "bare")
    fggp.save(wrap(model), tmp_path / "wrapped")
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "wrapped").read_bytes()
    loaded = mlp(1)
    fggp.load(tmp_path / "bare", wrap(loaded))
    assert states_equal(loaded, model)


@pytest.mark.parametrize("part", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_have_no_part_from_any_wrapper(tmp_path, part):
    model = mlp()
    fggp.save(model, tmp_path / "bare")
    fggp.save(nn.ModuleDict({part: model}), tmp_path / "wrapped")
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "wrapped").read_bytes()


def test_a_compiled_part_and_a_module_that_is_called_module(tmp_path):
    model = nn.ModuleDict({"module": mlp(), "part": mlp(1)})
    fggp.save(model, tmp_path / "bare")
    assert "module.0.bias" in entries(tmp_path / "bare")[0]
    partly = nn.ModuleDict({"module": mlp(2), "part": torch.compile(mlp(3))})
    fggp.load(tmp_path / "bare", partly)
    fggp.save(partly, tmp_path / "partly")
    assert (tmp_path / "bare").read_bytes() == (tmp_path / "partly").read_bytes()
    for wrapped in (nn.DataParallel(model), nn.ModuleDict({**model, "module": nn.DataParallel(model["module"])})):
        fggp.save(wrapped, tmp_path / "wrapped")
        assert (tmp_path / "bare").read_bytes() == (tmp_path / "wrapped").read_bytes()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch is built without distributed")
def test_distributed_data_parallel(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        model, loaded = mlp(), mlp(1)
        fggp.save(nn.parallel.DistributedDataParallel(model), tmp_path / "f")
        fggp.load(tmp_path / "f", loaded)
        assert states_equal(loaded, model)
        sharded = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
        holder = Holder(torch.distributed.tensor.distribute_tensor(torch.ones(3), sharded))
        with pytest.raises(NotImplementedError, match="'t0' is a DTensor"):
            fggp.save(holder, tmp_path / "f")
    finally:
        torch.distributed.destroy_process_group()


# What cannot be stored


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
        (nn.ParameterDict({":crc32": torch.ones(1)}), ValueError, "':crc32' is taken"),
        (nn.ParameterDict({"__metadata__": torch.ones(1)}), ValueError, "'__metadata__' is taken"),
        (nn.ParameterDict({"a": torch.zeros(999), "a:gaps": torch.ones(1)}), ValueError, "'a:gaps' is taken"),
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


# Writing


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch, failing):
    model = mlp()
    fggp.save(model, tmp_path / "f")
    old = (tmp_path / "f").read_bytes()

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, full)
    with pytest.raises(OSError, match="No space"):
        fggp.save(mlp(1), tmp_path / "f")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [old]


def test_a_process_killed_while_it_writes_leaves_the_old_file(tmp_path):
    fggp.save(mlp(), tmp_path / "f")
    old = (tmp_path / "f").read_bytes()
    script = "import os, sys, torch, fggp; os.replace = lambda *a: os._exit(9); "
    script += "fggp.save(torch.nn.Linear(3, 3), sys.argv[1])"
    assert subprocess.run([sys.executable, "-c", script, tmp_path / "f"]).returncode == 9
    assert (tmp_path / "f").read_bytes() == old


def test_a_file_is_a_function_of_the_model(tmp_path):
    for name in ("a", "b"):
        fggp.save(pruned(mlp(), 0.9), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"a", "b"}


# Files of other models


def refused(path, model, match):
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match=match) as error:
        fggp.load(path, model)
    assert str(error.value).startswith(f"path={os.fspath(path)!r} ")
    assert states_equal(before, model)


def test_other_models_are_refused_by_name(tmp_path):
    fggp.save(pruned(mlp(), 0.9), tmp_path / "f")
    lacking = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30))
    refused(tmp_path / "f", lacking, "is of another model: it has '2.weight', '2.bias', which the model lacks")
    refused(tmp_path / "f", nn.Sequential(*mlp(), nn.Linear(2, 2)), "it lacks '3.weight', '3.bias'$")
    renamed = nn.ModuleDict(dict(zip("ab2", mlp(), strict=True)))
    refused(tmp_path / "f", renamed, "it lacks 'a.weight'.* and 3 more, and has '0.weight'.* the model lacks")
    wide = nn.Sequential(nn.Linear(20, 30), nn.BatchNorm1d(30), nn.Linear(30, 6))
    shape = r"'2.weight' is float32 \[5, 30\] in the file, float32 \[6, 30\] in the model; '2.bias' is"
    refused(tmp_path / "f", wide, shape)
    refused(tmp_path / "f", mlp().half(), r"'0.weight' is float32 \[30, 20\] in the file, float16 .*; and 4 more")
    transposed = nn.Sequential(nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 5))
    refused(tmp_path / "f", transposed, "is of another model")
    # A model so much smaller that the file is not even read.
    refused(tmp_path / "f", nn.Linear(1, 1), "is of another model: it lacks 'weight', 'bias', and has")


# Files that are damaged, or not ours


def foreign(kind, path):
    if kind == "safetensors":
        safetensors.torch.save_file(dict(mlp().state_dict()), path)
    elif kind == "safetensors with metadata":
        safetensors.torch.save_file(dict(mlp().state_dict()), path, metadata={"format": "pt"})
    elif kind == "zip":
        torch.save(mlp().state_dict(), path)
    else:
        path.write_bytes(
            {"empty": b"", "short": b"\x02\0\0", "text": b"import torch\n" * 99, "zeros": bytes(999)}[kind]
        )


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("empty", "a file of 0 bytes cannot"),
        ("short", "a file of 3 bytes cannot"),
        ("text", "cannot have a header"),
        ("zeros", "cannot have a header of 0"),
        ("zip", "cannot have a header"),
        ("safetensors", "its header has no metadata"),
        ("safetensors with metadata", "its metadata do not name fggp; safetensors.torch.load_file reads"),
    ],
)
def test_foreign_files_are_refused(tmp_path, kind, match):
    foreign(kind, tmp_path / "f")
    refused(tmp_path / "f", mlp(), f"is damaged, or not a file that fggp.save wrote: .*{match}")


def test_a_file_that_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        fggp.load(tmp_path / "f", mlp())


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """A model with all there is in a file, the file's path, and its bytes."""
    model = nn.Sequential(nn.Linear(20, 20), nn.BatchNorm1d(20), Holder(random_bits((400,), torch.bool, 0.1, 0)))
    model.append(nn.Linear(20, 20, bias=False))
    model[3].weight = model[0].weight
    pruned(model, 0.9)
    path = tmp_path_factory.mktemp("sample") / "f"
    fggp.save(model, path)
    return model, path, path.read_bytes()


def refused_or_the_same(path, raw, model):
    """Load these bytes: the model stays untouched, with an error, or becomes this one. Whether it loaded."""
    path.write_bytes(raw)
    loaded = other(model)
    before = copy.deepcopy(loaded)
    try:
        fggp.load(path, loaded)
    except ValueError:
        assert states_equal(loaded, before)
        return False
    assert states_equal(loaded, model)
    return True


def test_every_single_altered_byte_and_every_truncation_is_noticed(tmp_path):
    path, model = tmp_path / "f", pruned(nn.Linear(30, 10), 0.9)
    fggp.save(model, path)
    raw, untouched = path.read_bytes(), copy.deepcopy(model)
    assert b"weight:gaps" in raw
    changes = torch.randint(1, 256, (len(raw),), generator=torch.Generator().manual_seed(0)).tolist()
    for place, change in enumerate(changes):
        for altered in (raw[:place] + bytes([raw[place] ^ change]) + raw[place + 1 :], raw[:place]):
            path.write_bytes(altered)
            with pytest.raises(ValueError, match="path="):
                fggp.load(path, model)
    assert states_equal(model, untouched)


@given(st.data())
@each_in_turn
def test_random_edits_are_noticed(sample, data):
    model, path, raw = sample
    edited = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(edited)))
        match data.draw(st.sampled_from(["insert", "delete", "overwrite", "repeat"])):
            case "insert":
                edited[at:at] = data.draw(st.binary(min_size=1, max_size=20))
            case "delete":
                del edited[at : at + data.draw(st.integers(1, 20))]
            case "overwrite":
                new = data.draw(st.binary(min_size=1, max_size=20))
                edited[at : at + len(new)] = new
            case "repeat":
                edited[at:at] = edited[at : at + data.draw(st.integers(1, 300))]
    assert refused_or_the_same(path, bytes(edited), model) == (bytes(edited) == raw)


# Hostile files: the checksum is right


def parts(raw):
    start = 8 + int.from_bytes(raw[:8], "little")
    return json.loads(raw[8:start]), raw[start:-4]


def sealed(header, data):
    """A file of this header (text or object) and data, with the checksum that it should have."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    body = len(text).to_bytes(8, "little") + text + data
    return body + zlib.crc32(body).to_bytes(4, "little")


def test_sealing_is_what_save_does(sample):
    model, path, raw = sample
    assert refused_or_the_same(path, sealed(*parts(raw)), model)


def edit(*keys, value):
    """Set one thing in a header."""

    def apply(header, data):
        inner = header
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value
        return header, data

    return apply


def renamed(old, new):
    """Give a piece another name."""
    return lambda header, data: ({new if name == old else name: entry for name, entry in header.items()}, data)


def moved(name, place, more):
    """Move a piece to another place in the order (-1: before 0.weight's gaps), with more bytes at its end."""

    def apply(header, data):
        ends = {n: entry["data_offsets"] for n, entry in header.items() if n != META}
        contents = {n: data[begin:end] for n, (begin, end) in ends.items()}
        contents[name] += more
        order = [n for n in ends if n != name]
        order.insert(place if place >= 0 else order.index(GAPS), name)
        new, body = {META: header[META]}, b""
        for n in order:
            size = 4 if n == ":crc32" else len(contents[n])
            new[n] = {**header[n], "data_offsets": [len(body), len(body) + size]}
            body += contents[n]
        return new, body

    return apply


def edit_data(name, **bytes_at):
    """Overwrite bytes of a piece; ``_3=255`` sets its byte 3."""

    def apply(header, data):
        changed = bytearray(data)
        begin = header[name]["data_offsets"][0]
        for at, byte in bytes_at.items():
            changed[begin + int(at[1:])] = byte
        return header, bytes(changed)

    return apply


def long_checksum(header, data):
    """Nothing but a checksum, of 8 bytes."""
    return {META: header[META], ":crc32": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}}, data[:4]


META, GAPS, VALUES = "__metadata__", "0.weight:gaps", "0.weight:values"


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (edit(META, "fggp", value="2"), "has version '2'; this fggp reads version 1"),
        (edit(META, "fggp", value=1), "no metadata"),
        (edit(META, value=[]), "no metadata"),
        (edit(META, "sparse:0.weight", value="F32 [4611686018427387904, 4]"), "another model"),
        (edit(META, "sparse:0.weight", value="F32 [20, 20.0]"), "a tensor that is F32"),
        (edit(META, "sparse:0.weight", value="F32 [-20, -20]"), "another model"),
        (edit(META, "sparse:0.weight", value="F32 "), "not JSON"),
        (edit(META, "sparse:0.weight", value="F99 [20, 20]"), "a tensor that is F99"),
        (edit(META, "sparse:0.weight", value="F16 [20, 20]"), "another model"),
        (edit(META, "sparse:no", value="F32 [20, 20]"), "lacks gaps or values of 'no'"),
        (edit(META, "sparse:0", value="F32 [20]"), "lacks gaps or values of '0'"),
        (edit(META, "shared:0.bias", value="1.bias"), "has '0.bias' as the same as '1.bias'"),
        (edit(META, "shared:3.weight", value="3.weight"), "the same as"),
        (edit(META, "shared:3.weight", value="1.bias"), "another model"),
        (edit(META, "shared:x", value="0.bias"), "has 'x', which the model lacks"),
        (edit("0.bias", "shape", value=[2**62]), "another model"),
        (edit("0.bias", "shape", value=[[[]]]), "a tensor that is F32"),
        (edit("0.bias", "shape", value=[20.0]), "a tensor that is F32"),
        (edit("0.bias", "shape", value=[True]), "a tensor that is F32"),
        (edit("0.bias", "shape", value=20), "a tensor that is F32"),
        (edit("0.bias", "dtype", value="I32"), "another model"),
        (edit("0.bias", "dtype", value=None), "has '0.bias', which is no tensor"),
        (edit("0.bias", value=3), "has '0.bias', which is no tensor"),
        (edit("0.bias", "data_offsets", value=[-8, 80]), "lies at bytes -8 to 80"),
        (edit("0.bias", "data_offsets", value=[0, 2**80]), "not JSON"),
        (edit("0.bias", "data_offsets", value=[0, 10**18]), "lies at bytes"),
        (edit(":crc32", "data_offsets", value=[0, 4]), "lies at bytes 0 to 4"),
        (edit("more", value={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}), "lies at bytes 0 to 0"),
        (renamed("0.bias", "0.weight"), "has '0.weight' both sparse and dense"),
        (moved("2.t0:values", 0, b"\1"), "lies at bytes"),
        (moved(VALUES, -1, b"\1"), "what it holds of '0.weight' cannot be float32"),
        (renamed(":crc32", "crc32"), "no checksum at its end"),
        (long_checksum, "no checksum at its end"),
        (edit(VALUES, "shape", value=[3]), "what it holds of '0.weight' cannot be float32"),
        (edit(VALUES, "dtype", value="BF16"), "what it holds of '0.weight' cannot be float32"),
        (edit(VALUES, "dtype", value="I32"), "what it holds of '0.weight' cannot be float32"),
        (edit(GAPS, "dtype", value="I8"), "what it holds of '0.weight' cannot be float32"),
        (edit(GAPS, "shape", value=[1]), "what it holds of '0.weight' cannot be float32"),
        (edit_data(GAPS, _0=255), "'0.weight': its gaps place"),
        (edit_data(GAPS, _0=254, _1=254), "'0.weight': its gaps run to"),
        (edit_data("2.t0:values", _0=2), "'2.t0' has bytes that are no bool"),
    ],
)
def test_hostile_files_are_refused(sample, change, match):
    model, path, raw = sample
    path.write_bytes(sealed(*change(*parts(raw))))
    refused(path, copy.deepcopy(model), match)


def test_gaps_that_run_one_element_too_far_are_refused(tmp_path):
    model = Holder(torch.zeros(1000))
    model.t0[-1] = 1
    fggp.save(model, tmp_path / "f")
    header, data = parts((tmp_path / "f").read_bytes())
    header, data = edit_data("t0:gaps", _3=235)(header, data)  # 255, 255, 255, and 234 as it was
    (tmp_path / "f").write_bytes(sealed(header, data))
    refused(tmp_path / "f", model, "its gaps run to 1001, beyond its 1000 elements")


def test_a_tensor_without_zeros_may_be_sparse(tmp_path):
    # More bytes than it takes dense: `save` does not write so.
    header = {META: {"fggp": "1", "sparse:t0": "U8 [3]"}}
    for name, begin, end in (("t0:gaps", 0, 3), ("t0:values", 3, 6), (":crc32", 6, 10)):
        header[name] = {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
    (tmp_path / "f").write_bytes(sealed(header, bytes([0, 0, 0, 1, 2, 3])))
    model = Holder(torch.zeros(3, dtype=torch.uint8))
    fggp.load(tmp_path / "f", model)
    assert model.t0.tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("header", "match"),
    [
        ("[" * 100_000, "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ('{"a":' + "9" * 900_000 + "}", "not JSON"),
        ("[1, 2]", "not a JSON object"),
        ("3", "not a JSON object"),
        ("{}", "no metadata"),
        ('{"__metadata__":{"fggp":"1"}}', "its header tells of 0"),
        ("[" + "0," * 9_000_000 + "0]", "header of 18,000,003 bytes is too long for a model of 9 tensors"),
        ("\ud800", "not text"),
    ],
    ids=range(9),
)
def test_hostile_headers_are_refused(sample, header, match):
    model, path, _ = sample
    text = header.encode(errors="surrogatepass")
    path.write_bytes(len(text).to_bytes(8, "little") + text + zlib.crc32(text).to_bytes(4, "little"))
    refused(path, copy.deepcopy(model), match)


@pytest.mark.parametrize("name", ["0.bias", GAPS])
def test_a_file_that_claims_more_than_the_model_holds_is_not_read(sample, name, monkeypatch):
    monkeypatch.setattr(container, "read_data", lambda *_: pytest.fail("it is read"))
    model, path, raw = sample
    header, data = parts(raw)
    end, size = len(data), 1 << 40
    header, _ = moved(name, len(header) - 3, b"")(header, data)
    begin = header[name]["data_offsets"][0]
    header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [begin, begin + size]}
    header[":crc32"]["data_offsets"] = [begin + size, begin + size + 4]
    assert begin < end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + begin + size + 4)  # a hole: takes no space
    refused(
        path, copy.deepcopy(model), "'0.bias' is uint8" if name == "0.bias" else "what it holds of '0.weight' cannot"
    )
    path.write_bytes(b"")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "U8"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.data())
@each_in_turn
def test_whatever_a_sealed_header_says_a_load_ends_well(sample, data):
    model, path, raw = sample
    header, body = parts(raw)
    for _ in range(data.draw(st.integers(1, 3))):
        inner = header
        while True:
            key = data.draw(st.sampled_from(list(inner) if isinstance(inner, dict) else range(len(inner))))
            if isinstance(inner[key], (dict, list)) and inner[key] and data.draw(st.integers(0, 5)):
                inner = inner[key]
            else:
                break
        action = data.draw(st.sampled_from(["replace", "delete", "add", "nudge"]))
        if action == "replace":
            inner[key] = data.draw(JSON)
        elif action == "nudge" and isinstance(inner[key], int):
            inner[key] += data.draw(st.integers(-300, 300))
        elif action == "add" and isinstance(inner, dict):
            names = st.text(max_size=5) | st.sampled_from(["sparse:0.bias", "shared:0.bias", "shared:3.weight"])
            inner[data.draw(names)] = data.draw(JSON | st.sampled_from(["F32 [20]", "0.weight", "0.bias"]))
        elif action == "delete":
            del inner[key]
        if not header:
            break
    refused_or_the_same(path, sealed(header, body), model)


@given(st.data())
@each_in_turn
def test_whatever_sealed_data_say_a_load_ends_without_a_crash(sample, data):
    model, path, raw = sample
    header, body = parts(raw)
    changed = bytearray(body)
    for _ in range(data.draw(st.integers(1, 5))):
        name = data.draw(st.sampled_from([n for n in header if n.endswith((":gaps", "t0:values"))]))
        begin, end = header[name]["data_offsets"]
        changed[data.draw(st.integers(begin, end - 1))] = data.draw(st.sampled_from([0, 1, 2, 100, 254, 255]))
    path.write_bytes(sealed(header, bytes(changed)))
    loaded = other(model)
    before = copy.deepcopy(loaded)
    try:
        fggp.load(path, loaded)
    except ValueError:
        assert states_equal(loaded, before)
    else:  # no more and no fewer values than before, somewhere else
        count = model[0].weight.count_nonzero() + model[2].t0.numel()
        assert loaded[0].weight.count_nonzero() + loaded[2].t0.numel() == count


# The page


def test_the_pages_example_is_what_save_writes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLE, {})
    lines = BYTES.splitlines()
    header = "".join(line for line in lines if line[0] in '{"').ljust(256).encode()
    numbers = [bytes.fromhex(re.match(r"((?:[0-9a-f]{2} ? ?)+)  ", line)[1]) for line in lines if line[0] not in '{"']
    raw = (tmp_path / "example.safetensors").read_bytes()
    assert raw == numbers[0] + header + b"".join(numbers[1:])
    assert f"The file has {len(raw)} bytes." in PAGE


@given(holders())
@each_in_turn
def test_the_pages_reader_reads_what_save_writes(tmp_path, model):
    names = {}
    exec(READER, names)
    for name in [n for n, t in model.state_dict().items() if t.dtype.is_floating_point and t.dtype.itemsize == 1]:
        delattr(model, name)
    if "t0" in dict(model.named_buffers()):
        model.tied = model.t0
    fggp.save(model, tmp_path / "f")
    read = names["read"](tmp_path / "f")
    assert set(read) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        expected = tensor.float() if tensor.dtype == torch.bfloat16 else tensor
        assert read[name].shape == tuple(tensor.shape)
        assert read[name].tobytes() == bits(expected).numpy().tobytes()


def test_the_pages_reader_reads_rounded_values(tmp_path):
    names = {}
    exec(READER, names)
    model = pruned(mlp(), 0.9)
    fggp.save(model, tmp_path / "f", values=torch.bfloat16)
    loaded = mlp(1)
    fggp.load(tmp_path / "f", loaded)
    read = names["read"](tmp_path / "f")
    for name, tensor in loaded.state_dict().items():
        assert read[name].tobytes() == bits(tensor).numpy().tobytes()


# Small


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


def test_texts_of_the_caller_are_kept_and_change_nothing_else(tmp_path):
    model = mlp()
    texts = {"classes": '["cat", "d\u00f6g \U0001f415"]', "": "", "epochs": "12"}
    fggp.save(model, tmp_path / "with", metadata=texts)
    fggp.save(model, tmp_path / "without")
    (pieces, metadata), (expected, own) = entries(tmp_path / "with"), entries(tmp_path / "without")
    assert metadata == {**own, **texts}
    assert pieces.pop(":crc32").ne(expected.pop(":crc32")).any()
    assert all(torch.equal(pieces[name], piece) for name, piece in expected.items())
    other = mlp()
    fggp.load(tmp_path / "with", other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_as_much_text_as_is_allowed_can_be_read_back(tmp_path):
    room = container.ROOM - len('{"a": ""}')
    model = nn.Linear(1, 1)
    fggp.save(model, tmp_path / "file", metadata={"a": "\u00e9" * (room // 6)})  # six bytes each
    fggp.load(tmp_path / "file", model)
    with pytest.raises(ValueError, match=r"metadata takes 524,289 bytes; it must be 524,288 at most"):
        fggp.save(model, tmp_path / "more", metadata={"a": "x" * (room + 1)})
    assert not (tmp_path / "more").exists()


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"sparse:weight": "F32 [1]"}, ValueError, "'sparse:weight', which the file keeps for itself"),
        ({"fggp": "2"}, ValueError, "'fggp', which the file keeps for itself"),
        ({"epochs": 12}, TypeError, "{'epochs': 12} must be texts by name: use json.dumps"),
        ({3: "x"}, TypeError, "must be texts by name"),
    ],
)
def test_metadata_that_a_reader_would_misunderstand_are_refused(tmp_path, metadata, error, message):
    with pytest.raises(error, match=re.escape(message)):
        fggp.save(mlp(), tmp_path / "file", metadata=metadata)
    assert not (tmp_path / "file").exists()
