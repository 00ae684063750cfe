"""Simplifying a graph: which operations are recognised, folded, fused and dropped, and which are kept."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

from captured import Lambda, assert_faithful, conv3x3, count_operations, images, only_operation, run_graph
from fggp.ship.graph.calls import Call
from fggp.ship.graph.capture import capture
from fggp.ship.graph.operations import RELU, Activate, Activation, Add, Affine, Conv2d, Flatten, Gate, Linear
from fggp.ship.graph.simplify import simplify
from helpers import bits
from models import randomised


def test_a_convolution_whose_output_is_seen_elsewhere_stays_as_it_is():
    model = Lambda(lambda m, x: (y := m.conv(x), m.bn(y).relu()), conv=conv3x3(), bn=nn.BatchNorm2d(4))
    graph = assert_faithful(randomised(model), images(2))
    assert count_operations(graph) == {"Conv2d": 1, "Affine": 1}
    assert only_operation(graph, Affine).activation == RELU
    assert only_operation(graph, Affine).scale.dtype == torch.float32
    assert only_operation(graph, Conv2d).activation is None


def test_of_two_convolutions_the_last_takes_the_sum():
    model = Lambda(lambda m, x: F.relu(m.b(x) + m.a(x)), a=conv3x3(), b=conv3x3())
    graph = assert_faithful(model, images(2))
    first, last = graph.ops
    assert torch.equal(first.weight, model.b.weight)
    assert last.residual is first.output
    assert last.activation == RELU
    assert first.activation is None


def test_a_sum_goes_into_the_convolution_before_it_even_if_its_other_part_comes_later():
    graph = assert_faithful(
        Lambda(lambda m, x: m.conv(x) + F.pad(x, (0, 0, 0, 0, 0, 1)).exp(), conv=conv3x3()), images(2)
    )
    assert isinstance(graph.ops[-1], Conv2d)
    assert graph.ops[-1].residual is graph.ops[-2].output


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: (y := m.conv(x)) + y, {"Conv2d": 1, "Add": 1}),
        (lambda m, x: m.conv(x).relu() + m.conv(x).relu(), {"Conv2d": 2, "Add": 1}),
        (lambda m, x: m.conv(x) + x[:, :1], {"Conv2d": 1, "Channels": 1, "aten.add.Tensor": 1}),
        (lambda m, x: torch.add(m.conv(x), m.conv(x), alpha=2), {"Conv2d": 2, "aten.add.Tensor": 1}),
        (lambda m, x: m.bn(m.conv(x).relu()), {"Conv2d": 1, "Affine": 1}),
        (lambda m, x: F.relu6(m.conv(x)).relu(), {"Conv2d": 1, "Activate": 1}),
        (lambda m, x: (y := m.conv(x)) * y.relu(), {"Conv2d": 1, "Activate": 1, "aten.mul.Tensor": 1}),
        (lambda m, x: m.conv(x).clamp(m.bn.weight[:, None, None]), {"Conv2d": 1, "aten.clamp.Tensor": 1}),
        (lambda m, x: m.conv(x).clamp(max=math.inf), {"Conv2d": 1, "aten.clamp.default": 1}),
        (lambda m, x: m.conv(m.conv(x)[:, :3]), {"Conv2d": 2, "Channels": 1}),
    ],
)
def test_what_is_not_fused(function, expected):
    model = randomised(Lambda(function, conv=conv3x3(), bn=nn.BatchNorm2d(4)))
    assert count_operations(assert_faithful(model, images(2))) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(x) + m.bias[:, None, None],
        lambda m, x: m.bias.view(1, 4, 1, 1) * m.conv(x),
        lambda m, x: (m.conv(x) - 1.5) / 3,
        lambda m, x: m.bn(m.bn(m.conv(x)) * 2 + m.bias.view(4, 1, 1)),
        lambda m, x: m.drop(m.conv(x)).clone().contiguous().detach(),
        lambda m, x: m.conv(x).view(len(x), 4, 8, 8)[:],
        lambda m, x: m.conv(x).float().to(torch.float32),
    ],
)
def test_what_a_convolution_takes_in(function):
    model = Lambda(
        function, conv=conv3x3(), bn=nn.BatchNorm2d(4), bias=torch.tensor([1.0, -2, 3, 0.5]), drop=nn.Dropout()
    )
    assert count_operations(assert_faithful(randomised(model), images(2))) == {"Conv2d": 1}


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: m.bn(m.linear(x)).relu(), ["Linear"]),
        (lambda m, x: m.linear(x) + x[:, :1], ["aten.slice.Tensor", "Linear", "aten.add.Tensor"]),
        (lambda m, x: x @ m.linear.weight.t() + m.linear.bias, ["Linear"]),
        (lambda m, x: torch.addmm(m.linear.bias, x, m.linear.weight.t()), ["Linear"]),
        (lambda m, x: torch.mm(x, m.linear.weight.t()), ["Linear"]),
        (lambda m, x: m.bn(m.linear(x)[:, :, None].expand(-1, -1, 4)), ["Linear", "unsqueeze", "expand", "Affine"]),
        (lambda m, x: m.bn(m.linear(x[:, None].expand(-1, 4, -1))), ["unsqueeze", "expand", "Linear", "Affine"]),
    ],
)
def test_linear_layers(function, expected):
    model = randomised(Lambda(function, linear=nn.Linear(5, 4), bn=nn.BatchNorm1d(4)))
    graph = assert_faithful(model, torch.randn(3, 5), torch.randn(2, 5))
    names = [str(op.target) if isinstance(op, Call) else type(op).__name__ for op in graph.ops]
    assert sorted(n.split(".")[1] if n.split(".")[1:2] and n.split(".")[1] in expected else n for n in names) == sorted(
        expected
    )


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (F.relu, RELU),
        (F.relu6, Activation("clamp", (0, 6))),
        (lambda x: F.hardtanh(x, -2, 0.5), Activation("clamp", (-2, 0.5))),
        (lambda x: x.clamp(max=0.25), Activation("clamp", (-math.inf, 0.25))),
        (lambda x: x.clamp_min(0.25), Activation("clamp", (0.25, math.inf))),
        (lambda x: x.clamp_max(-1), Activation("clamp", (-math.inf, -1))),
        (lambda x: x.clamp(1, -1), Activation("clamp", (1, -1))),  # the largest result counts
        (lambda x: F.leaky_relu(x, 0.3), Activation("leaky_relu", (0.3,))),
        (lambda x: F.elu(x, 0.7), Activation("elu", (0.7, 1, 1))),
        (lambda x: torch.ops.aten.elu(x, 0.7, 1.3, 0.5), Activation("elu", (0.7 * 1.3, 1.3, 0.5))),
        (F.selu, Activation("elu", (1.7580993408473766, 1.0507009873554805, 1))),
        (lambda x: F.celu(x, 2), Activation("elu", (2, 1, 0.5))),
        (F.hardsigmoid, Activation("hard_sigmoid")),
        (F.hardswish, Activation("hard_swish")),
        (torch.sigmoid, Activation("sigmoid")),
        (F.silu, Activation("silu")),
        (torch.tanh, Activation("tanh")),
        (F.gelu, Activation("gelu")),
        (lambda x: F.gelu(x, approximate="tanh"), Activation("gelu_tanh")),
        (F.mish, Activation("mish")),
    ],
)
def test_activations_are_fused_into_what_is_before_them(function, expected):
    def model(m, x):
        y = m.conv(x)
        gated = function(y * y.mean((2, 3), keepdim=True))
        return function(m.conv(x)), function(m.linear(x)), function(x + x.exp()), gated, function(x.exp())

    graph = assert_faithful(Lambda(model, conv=conv3x3(), linear=nn.Linear(8, 5)), images(2))
    activations = [op.activation for op in graph.ops if getattr(op, "activation", None) is not None]
    assert len(activations) == 5
    for activation in activations:
        assert activation.name == expected.name
        assert activation.numbers == pytest.approx(expected.numbers)
    assert count_operations(graph) == {
        "Conv2d": 2,
        "Linear": 1,
        "Add": 1,
        "AdaptiveAvgPool2d": 1,
        "Gate": 1,
        "Activate": 1,
        "aten.exp.default": 2,
    }


@pytest.mark.parametrize("swapped", [False, True])
def test_squeeze_and_excite_is_a_gate(swapped):
    def model(m, x):
        gate = torch.sigmoid(m.up(F.silu(m.down(x.mean((2, 3), keepdim=True)))))
        return gate * x if swapped else x * gate

    graph = assert_faithful(Lambda(model, down=nn.Conv2d(3, 2, 1), up=nn.Conv2d(2, 3, 1)), images(2))
    assert count_operations(graph) == {"AdaptiveAvgPool2d": 1, "Conv2d": 2, "Gate": 1}
    assert only_operation(graph, Gate).inputs[0] is graph.inputs[0]


def test_products_of_other_shapes_are_no_gates():
    def model(m, x):
        row, one = x.mean(2, keepdim=True), x.mean((1, 2, 3), keepdim=True)
        return x * row, x * one, x * x, x.mean((2, 3), keepdim=True) * x.new_ones(1, 3, 1, 1)

    assert "Gate" not in count_operations(assert_faithful(Lambda(model), images(2)))


def test_sums_of_values_have_a_relu_of_their_own():
    graph = assert_faithful(Lambda(lambda m, x: (x + x.exp()).relu().flatten(1)), images(2))
    assert only_operation(graph, Add).activation == RELU
    assert isinstance(graph.ops[-1], Flatten)


def test_pooling_and_flattening():
    def function(m, x):
        y = F.avg_pool2d(F.max_pool2d(x, 3, 2, 1), 2, 1, ceil_mode=True)
        return (
            y.mean((2, 3)),
            x.mean([-1, -2], keepdim=True),
            F.adaptive_avg_pool2d(x, (2, 3)).flatten(1),
            x.view(len(x), -1),
        )

    graph = assert_faithful(Lambda(function), images(2), images(3))
    assert count_operations(graph) == {"MaxPool2d": 1, "AvgPool2d": 1, "AdaptiveAvgPool2d": 3, "Flatten": 3}


def test_concatenations():
    graph = assert_faithful(Lambda(lambda m, x: torch.cat([x, x.relu(), x], -3)), images(2))
    assert [type(op).__name__ for op in graph.ops] == ["Activate", "Channels"]
    assert graph.ops[-1].index == (0, 1, 2, 3, 4, 5, 0, 1, 2)
    assert len(graph.ops[-1].inputs) == 2


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(3, 4, 3), (2, 3, 8)),
        (nn.Conv3d(3, 4, 3), (2, 3, 4, 4, 4)),
        (nn.ConvTranspose2d(3, 4, 3), (2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 2, padding="same"), (2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, dtype=torch.float64), (2, 3, 8, 8)),
        (nn.Conv2d(3, 4, 3, dtype=torch.bfloat16), (2, 3, 8, 8)),
        (nn.Linear(8, 4, dtype=torch.bfloat16), (2, 8)),
        (nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 8, 8)),
    ],
)
def test_what_has_no_name_is_called(layer, shape):
    dtype = next(layer.parameters()).dtype
    graph = assert_faithful(layer, torch.randn(shape).to(dtype))
    assert all(isinstance(op, Call) for op in graph.ops)


@pytest.mark.parametrize("padding", ["same", "valid", 2, (1, 0)])
def test_padding_of_every_form(padding):
    graph = assert_faithful(nn.Conv2d(3, 4, (3, 5), padding=padding, dilation=(1, 2)), images(2, side=12))
    assert (
        only_operation(graph, Conv2d).padding == {"same": (1, 4), "valid": (0, 0), 2: (2, 2), (1, 0): (1, 0)}[padding]
    )


# Folding and fusing keep the arithmetic


def test_pruned_weights_stay_plus_zero_and_no_other_weight_becomes_zero():
    model = randomised(nn.Sequential(conv3x3(16), nn.BatchNorm2d(16)))
    kept = torch.rand(model[0].weight.shape) < 0.3
    model[0].weight.data *= kept
    assert (model[1].weight < 0).any()
    weight = only_operation(assert_faithful(model, images(2)), Conv2d).weight
    assert torch.equal(bits(weight) != 0, kept)


def test_folding_rounds_once():
    model = randomised(nn.Sequential(conv3x3(16), nn.BatchNorm2d(16)))
    folded = only_operation(simplify(capture(model, (images(2),), {})), Conv2d)
    norm = model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = model[0].weight.double() * scale.view(-1, 1, 1, 1)
    bias = (model[0].bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    assert torch.equal(folded.weight, weight.float())
    assert (folded.bias - bias).abs().max() <= 1e-7 * bias.abs().max()


@pytest.mark.parametrize("statistic", [-1.0, float("nan")])
def test_a_norm_that_makes_nan_is_left_to_pytorch(statistic):
    model = randomised(nn.Sequential(conv3x3(), nn.BatchNorm2d(4)))
    model[1].running_var[2] = statistic
    graph = simplify(capture(model, (images(2),), {}))
    assert count_operations(graph) == {"Conv2d": 1, "aten.batch_norm.default": 1}
    assert run_graph(graph, images(2)).isnan().any((0, 2, 3)).tolist() == [False, False, True, False]


def test_a_norm_that_would_overflow_weights_is_not_folded():
    model = randomised(nn.Sequential(conv3x3(), nn.BatchNorm2d(4)))
    model[0].weight.data[1] = 1e30
    model[1].weight.data[1] = 1e20
    assert count_operations(simplify(capture(model, (images(2),), {}))) == {"Conv2d": 1, "Affine": 1}


def test_a_module_called_twice_is_two_operations():
    model = randomised(
        Lambda(lambda m, x: m.bn(m.conv(m.conv(x).relu())), conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3))
    )
    graph = assert_faithful(model, images(2))
    assert [op.activation for op in graph.ops] == [RELU, None]
    assert not torch.equal(graph.ops[0].weight, graph.ops[1].weight)


def test_weights_that_are_computed_are_computed_once():
    model = nn.Sequential(conv3x3(), nn.Flatten(), nn.Linear(256, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    prune.random_unstructured(model[2], "weight", 0.5)
    graph = assert_faithful(model, images(2))
    assert count_operations(graph) == {"Conv2d": 1, "Flatten": 1, "Linear": 1}
    assert not only_operation(graph, Linear).weight[model[2].weight_mask == 0].any()


def test_what_is_random_is_not_computed_beforehand():
    graph = simplify(capture(Lambda(lambda m, x: x + torch.rand(3, 8, 8)), (images(2),), {}))
    assert not torch.equal(run_graph(graph, images(2)), run_graph(graph, images(2)))


def test_contiguous_copies_stay_before_what_depends_on_the_layout():
    graph = assert_faithful(Lambda(lambda m, x: x.transpose(1, 3).contiguous().as_strided((2, 3), (3, 1))), images(2))
    assert count_operations(graph)["aten.contiguous.default"] == 1


def test_the_batch_size_is_read_off_the_input_so_that_values_stay_fusable():
    def function(m, x):
        y = m.conv(x)
        return m.bn(y).view(y.size(0), y.size(1), -1)

    graph = assert_faithful(randomised(Lambda(function, conv=conv3x3(), bn=nn.BatchNorm2d(4))), images(2), images(3))
    assert count_operations(graph) == {"aten.sym_size.int": 1, "Conv2d": 1, "aten.reshape.default": 1}


def test_an_idle_dropout_changes_nothing():
    graph = assert_faithful(nn.Sequential(nn.Dropout(inplace=True), nn.ReLU()), images(2))
    assert [type(op) for op in graph.ops] == [Activate]


def test_what_reads_an_idle_dropout_of_a_constant_is_computed_once():
    """As DeBERTa's layers do with the embeddings of relative positions."""

    def function(m, x):
        return x + m.linear(F.dropout(m.table, 0.1, m.training)[None])

    model = Lambda(function, linear=nn.Linear(4, 8), table=torch.randn(8, 4))
    graph = assert_faithful(model, images(2))
    assert len(graph.ops) == 1


# Constants


def test_a_graph_owns_its_constants():
    def function(m, x):
        return m.linear(m.bn(m.conv(x)).relu().flatten(1)), m.table.expand(3, 2), F.layer_norm(x, (8, 8), m.w, m.w)

    layers = {"conv": conv3x3(), "bn": nn.BatchNorm2d(4), "linear": nn.Linear(256, 2)}
    model = randomised(Lambda(function, **layers, table=torch.ones(2), w=torch.ones(8, 8)))
    model.linear.weight.data = model.linear.weight.data.t().contiguous().t()
    graph = simplify(capture(model, (images(2),), {}))
    expected = run_graph(graph, images(2))
    for returned in expected:
        returned[0].add_(1)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(7)
    again = run_graph(graph, images(2))
    assert torch.equal(again[1], torch.ones(3, 2))
    assert torch.equal(again[0][1:], expected[0][1:])
    assert torch.equal(again[2][1:], expected[2][1:])
    assert only_operation(graph, Linear).weight.is_contiguous()
    assert not any(t.requires_grad for t in graph.constants())


def test_weights_may_stay_shared_with_the_model():
    model = nn.Sequential(nn.Linear(4, 4))
    (weight, _bias) = simplify(capture(model, (torch.randn(2, 4),), {}), copy_constants=False).constants()
    assert weight.data_ptr() == model[0].weight.data_ptr()
