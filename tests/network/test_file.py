"""Network files: what the Python writer writes, the C library reads, bit for bit."""

import copy
import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fggp
from fggp.lab.training.models import create
from fggp.ship.network.write import DTYPES, write
from networks import Refused, build, closing, load, load_bytes
from small_files import bits, each_in_turn, pruned, random_bits, states_equal
from tensors import shapes
from version2_files import put_together, taken_apart


def giving(tensors, **changes):
    """A description of a network that gives its tensors as they are."""
    return {"inputs": [], "nodes": [], "outputs": [{"name": name, "value": name} for name in tensors], **changes}


def assert_gives(network, tensors):
    found = network.run({})
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(bits(found[name]), bits(tensor))


@st.composite
def tensors_of_a_network(draw):
    tensors = {}
    for i in range(draw(st.integers(0, 5))):
        shape = draw(st.one_of(shapes(600), st.sampled_from([(), (0,), (3, 0, 2), (1,), (1000,), (40, 30)])))
        density = draw(st.sampled_from([0.0, 0.01, 0.2, 0.45, 0.55, 0.98, 1.0]))
        tensors[f"t{i} ü"] = random_bits(shape, draw(st.sampled_from(DTYPES)), density, draw(st.integers(0, 99)))
    for i in range(draw(st.integers(0, 2 if tensors else 0))):
        tensors[f"tied {i}"] = tensors[draw(st.sampled_from(list(tensors)))]
    return tensors


@given(tensors_of_a_network())
@each_in_turn
def test_every_bit_comes_back(tmp_path, tensors):
    write(tmp_path / "f", giving(tensors), tensors, {})
    with closing(load(tmp_path / "f")) as network:
        assert_gives(network, tensors)
    with closing(load_bytes((tmp_path / "f").read_bytes())) as network:
        assert_gives(network, tensors)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", [0, 0.001, 0.1, 1], ids=str)
def test_large_tensors_of_every_dtype(tmp_path, dtype, density):
    tensors = {"a": random_bits((3, 70_000), dtype, density, 0), "b": random_bits((200_000,), dtype, density, 1)}
    write(tmp_path / "f", giving(tensors), tensors, {})
    with closing(load(tmp_path / "f")) as network:
        assert_gives(network, tensors)


def test_rounded_values_of_sparse_tensors(tmp_path):
    torch.manual_seed(0)
    tensors = {"sparse": torch.randn(100, 100) * (torch.rand(100, 100) < 0.1), "dense": torch.randn(100)}
    write(tmp_path / "f", giving(tensors), tensors, {}, values=torch.bfloat16)
    with closing(load(tmp_path / "f")) as network:
        assert_gives(network, {**tensors, "sparse": tensors["sparse"].bfloat16().float()})


def test_tied_tensors_are_stored_once(tmp_path):
    weight = torch.randn(50, 50)
    tensors = {"a": weight, "b": weight, "c": weight.view(-1)}
    write(tmp_path / "f", giving(tensors), tensors, {})
    index = taken_apart((tmp_path / "f").read_bytes()).index
    assert index["tensors"] == [["a", "F32", [50, 50]], ["b", "a"], ["c", "F32", [2500]]]
    with closing(load(tmp_path / "f")) as network:
        assert_gives(network, tensors)


def test_a_network_runs_as_one_that_is_built(tmp_path):
    x = torch.randn(3, 4)
    description = {
        "inputs": [{"name": "x", "type": "F32", "shape": ["N", 4]}],
        "nodes": [
            {"op": "reshape", "name": "flat", "in": [0], "shape": [["*", 4, "N"]]},
            {"op": "reshape", "in": ["w"], "shape": [6]},
        ],
        "outputs": [{"name": "y", "value": 1}, {"name": "z", "value": 2}],
        "example": {"N": 1},
    }
    tensors = {"w": torch.tensor([[0.0, 1.0, 0.0], [0.0, -0.0, math.nan]])}
    write(tmp_path / "f", description, tensors, {})
    with closing(build(description, tensors)) as built, closing(load(tmp_path / "f")) as loaded:
        expected, found = built.run({"x": x}), loaded.run({"x": x})
    assert list(found) == list(expected) == ["y", "z"]
    assert all(torch.equal(bits(found[name]), bits(expected[name])) for name in expected)


def test_metadata_are_described(tmp_path):
    metadata = {"classes": 'cat, "dog",\nKöter \\ \x01', "input": json.dumps({"shape": [3, 32, 32]}), "": ""}
    write(tmp_path / "f", giving({}), {}, metadata)
    with closing(load(tmp_path / "f")) as network:
        assert network.description == {"inputs": [], "outputs": [], "metadata": metadata}


def test_the_file_is_hardly_larger_than_the_small_file(tmp_path):
    torch.manual_seed(0)
    model = pruned(create("vgg19", 10), 0.98)
    fggp.save(model, tmp_path / "small")
    tensors = dict(model.state_dict())
    nodes = [
        {"op": "conv", "name": f"features.{i}", "in": [i, f"features.{3 * i}.weight", f"features.{3 * i}.bias"]}
        | {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "activation": ["clamp", 0, "inf"]}
        for i in range(40)
    ]
    write(tmp_path / "network", giving([], nodes=nodes), tensors, {})
    assert (tmp_path / "network").stat().st_size <= 1.03 * (tmp_path / "small").stat().st_size


@pytest.mark.parametrize(
    ("tensors", "error"),
    [
        (
            {"w": torch.zeros(3, dtype=torch.float16)},
            r"tensors\['w'\] is torch.float16, torch.strided; a network holds",
        ),
        ({"w": torch.eye(3).to_sparse()}, "is torch.float32, torch.sparse_coo"),
        ({"w": torch.zeros(3, device="meta")}, "is on the meta device"),
    ],
)
def test_what_cannot_be_stored_is_refused(tmp_path, tensors, error):
    with pytest.raises(ValueError, match=error):
        write(tmp_path / "f", giving(tensors), tensors, {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [math.inf, math.nan])
def test_a_description_that_is_no_json_is_refused(tmp_path, number):
    (tmp_path / "f").write_text("old")
    with pytest.raises(ValueError, match="JSON"):
        write(tmp_path / "f", giving({}, nodes=[{"op": "activate", "in": [], "a": number}]), {}, {})
    assert (tmp_path / "f").read_text() == "old"


def test_loading_a_network_into_a_model_says_what_it_is(tmp_path):
    model = nn.Linear(3, 3)
    before = copy.deepcopy(model)
    write(tmp_path / "f", giving(["weight", "bias"]), dict(model.state_dict()), {})
    with pytest.raises(ValueError, match=r"f' is a network file: it holds a network's operations for fggp's C library"):
        fggp.load(tmp_path / "f", model)
    assert states_equal(model, before)


def test_a_small_file_is_no_network(tmp_path):
    fggp.save(nn.Linear(3, 3), tmp_path / "f")
    with pytest.raises(
        Refused, match=r"/f: the file holds the weights of a model, which fggp.save wrote, and no network"
    ):
        load(tmp_path / "f")


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_path_that_cannot_be_read_is_named(tmp_path, name):
    with pytest.raises(Refused, match=rf"{tmp_path}/?.*: the file cannot be read: (No such file|Is a directory)"):
        load(tmp_path / name)


def test_a_tensor_of_another_type_is_named(tmp_path):
    write(tmp_path / "f", giving({}), {"w": torch.zeros(3, dtype=torch.int64)}, {})
    parts = taken_apart((tmp_path / "f").read_bytes())
    parts.index["tensors"][0][1] = "F16"
    with pytest.raises(Refused, match='"w" cannot be part of a network: the type F16 is not F32, I64, BOOL, U8 or I8'):
        load_bytes(put_together(parts))


def test_putting_together_what_was_taken_apart_changes_nothing(tmp_path):
    tensors = {"w": random_bits((40, 30), torch.float32, 0.2, 0)}
    write(tmp_path / "f", giving(tensors), tensors, {})
    with closing(load_bytes(put_together(taken_apart((tmp_path / "f").read_bytes())))) as network:
        assert_gives(network, tensors)
