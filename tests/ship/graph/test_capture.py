"""Capturing a model: batch sizes, structures of arguments and results, an unchanged model, and refusals."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from captured import (
    Lambda,
    Named,
    assert_close,
    assert_faithful,
    conv3x3,
    count_operations,
    images,
    run_graph,
)
from fggp.ship.graph.calls import Call
from fggp.ship.graph.capture import CaptureError, capture, normalise_example
from fggp.ship.graph.inplace import MutationError
from fggp.ship.graph.operations import Graph
from fggp.ship.graph.simplify import simplify
from helpers import bits

# Batch sizes


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.view(2, 3, 64),
        lambda m, x: x + torch.arange(2).view(2, 1, 1, 1),
        lambda m, x: x * 2 if len(x) < 5 else x,
    ],
)
def test_a_network_for_some_batch_sizes_is_captured_for_the_example(function):
    graph = assert_faithful(Lambda(function), images(2))
    assert graph.batch == 2
    assert all(v.sizes == v.shape for v in graph.inputs)


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_size_taken_with_len_still_varies(size):
    assert assert_faithful(Lambda(lambda m, x: x.view(len(x), -1)), images(size), images(3)).batch is None


def test_shapes_say_how_they_depend_on_the_batch():
    def function(m, x, weight):
        return x.view(-1, 8), x.transpose(0, 1), weight * 2, x.relu()

    graph = simplify(capture(Lambda(function), (images(4), torch.randn(7, 2)), {}))
    rows, swapped, fixed, same = graph.outputs
    assert (rows.sizes, rows.shape, rows.batched) == (("24*N", 8), (96, 8), False)
    assert (swapped.sizes, swapped.batched) == ((3, "N", 8, 8), False)
    assert (fixed.sizes, fixed.batched) == ((7, 2), False)
    assert (same.sizes, same.shape, same.batched) == (("N", 3, 8, 8), (4, 3, 8, 8), True)


# The model


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(
        conv3x3(), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(inplace=True), nn.Dropout()), nn.Conv2d(4, 2, 1)
    )
    model[1].eval()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model)
    simplify(capture(model, (images(2),), {}))
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    for (name, tensor), (known, expected) in zip(model.state_dict().items(), before.state_dict().items(), strict=True):
        assert name == known
        assert torch.equal(bits(tensor), bits(expected))


def test_dicts_and_lists_that_forward_fills_are_put_back():
    """LeViT's forward fills such a dict: a model that was captured must run afterwards."""

    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.biases, self.shapes, self.table = {}, [1], nn.Parameter(torch.randn(8, 8))

        def forward(self, x):
            self.shapes.append(len(self.shapes))
            if "cpu" not in self.biases:
                self.biases["cpu"] = self.table[torch.arange(7, -1, -1)]
            return x + self.biases["cpu"]

    model = Caching().eval()
    graph = simplify(capture(model, (images(2),), {}))
    assert model.biases == {}
    assert model.shapes == [1]
    with torch.no_grad():
        assert_close(run_graph(graph, images(2)), model(images(2)))


def test_attributes_set_by_forward_are_put_back():
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls, self.last = 0, None

        def forward(self, x):
            self.calls += 1
            self.last = self.new = x * 2
            return self.last + 1

    model = Remembers()
    graph = simplify(capture(model, (images(2),), {}))
    assert (model.calls, model.last, model.training) == (0, None, True)
    assert not hasattr(model, "new")
    assert torch.equal(run_graph(graph, images(2)), images(2) * 2 + 1)


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrappers_are_looked_through(wrap):
    graph = simplify(capture(wrap(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), (torch.randn(2, 4),), {}))
    assert count_operations(graph) == {"Linear": 1}


# Structures


def test_what_a_network_returns_keeps_its_structure():
    def function(m, x, *, scale):
        return {"sum": x + scale, "rest": (x, [m.table, None, 3], "name")}

    model = Lambda(function, table=torch.arange(3.0))
    graph = simplify(capture(Named(model), (), {"x": images(2), "scale": images(2, seed=1)}))
    returned = run_graph(graph, scale=images(2, seed=1), x=images(2))
    assert_close(returned, function(model, images(2), scale=images(2, seed=1)))


def test_operators_that_return_several_tensors():
    graph = assert_faithful(
        Lambda(lambda m, x: [y.relu() for y in x.split(2, 1)] + [x.max(1)[0]]), images(2), images(3)
    )
    assert any(isinstance(op, Call) and op.target is operator.getitem for op in graph.ops)


def test_control_flow_that_torch_export_takes_is_called():
    def function(m, x):
        return torch.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, (x,))

    assert_faithful(Lambda(function), images(2), -images(2).abs(), images(3).abs())


def test_autocast_inside_a_network():
    def function(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.conv(x)

    assert_faithful(Lambda(function, conv=conv3x3()), images(2), images(3))


def test_a_graph_prints_its_operations():
    model = Lambda(lambda m, x: F.softplus(m.conv(x).relu()) + m.w, conv=conv3x3(), w=torch.ones(8))
    text = str(simplify(capture(model, (images(2),), {})))
    assert "any batch size N" in text
    assert "float32[N, 4, 8, 8] = Conv2d(" in text
    assert "weight [4, 3, 3, 3], bias [4], stride (1, 1)" in text
    assert "relu)" in text
    assert "aten.softplus.default(" in text
    assert "<float32[8]>" in text


def test_examples_in_all_their_forms():
    x = torch.ones(1)
    assert normalise_example(x) == normalise_example((x,)) == normalise_example([x]) == ((x,), {})
    assert normalise_example({"x": x}) == ((), {"x": x})


# What is refused


@pytest.mark.parametrize(
    ("example", "error", "message"),
    [
        (3, TypeError, "example_input is of type int"),
        ((torch.ones(1), 3), TypeError, r"example_input\[1\] is of type int"),
        ({"x": None}, TypeError, r"example_input\['x'\] is of type NoneType"),
        ({1: torch.ones(1)}, TypeError, "has the key 1"),
        ((), ValueError, "example_input is empty"),
    ],
)
def test_examples_that_are_refused(example, error, message):
    with pytest.raises(error, match=message):
        normalise_example(example)


def test_arguments_unlike_the_example_are_refused():
    graph = capture(Named(Lambda(lambda m, x, scale: x * scale)), (images(2),), {"scale": images(2)})
    assert isinstance(graph, Graph)
    with pytest.raises(TypeError, match=r"got 2 positional arguments and the keywords \[\]; .* 1 and \['scale'\]"):
        graph.flatten((images(2), images(2)), {})


def set_buffer(m, x):
    m.table.add_(1)
    return x


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda m, x: x.relu_() * 2, "changes its input '.*' .aten.relu_.default"),
        (lambda m, x: F.relu_(x.view(len(x), -1)), "changes its input"),
        (set_buffer, "changes its buffer 'table'"),
        (lambda m, x: x * m.weight.mul_(2), "changes its parameter 'weight'"),
        (
            lambda m, x: F.batch_norm(x, m.table, m.table + 1, training=True),
            "changes its buffer 'table' .*training mode",
        ),
    ],
)
def test_networks_that_change_what_they_are_given_are_refused(function, message):
    model = Lambda(function, table=torch.ones(3), weight=nn.Parameter(torch.ones(1)))
    example = images(2)
    with pytest.raises(MutationError, match=message):
        capture(model, (example,), {})
    assert torch.equal(example, images(2))
    assert torch.equal(model.table, torch.ones(3))


def test_a_network_that_cannot_be_traced_is_refused_with_the_reason():
    model = Lambda(lambda m, x: x if x.sum() > 0 else -x)
    with pytest.raises(CaptureError, match=r"cannot trace Lambda: .*data-dependent") as caught:
        capture(model, (images(2),), {})
    assert len(str(caught.value).splitlines()) <= 3
    assert model.training


def test_what_is_not_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="parameter 'weight' is on meta"):
        capture(nn.Linear(2, 2, device="meta"), (torch.ones(1, 2),), {})
    with pytest.raises(ValueError, match="example_input 0 is on meta"):
        capture(nn.Linear(2, 2), (torch.ones(1, 2, device="meta"),), {})
