"""From a model to a graph: it computes the same, in as few operations as it should, and the model is left alone."""

import copy
import operator
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from fggp.ship.graph.capture import CaptureError, capture, normalise_example
from fggp.ship.graph.inplace import MutationError
from fggp.ship.graph.interpret import run
from fggp.ship.graph.operations import Add, Affine, Call, Conv2d, Flatten, Graph, Linear, ReLU, Value
from fggp.ship.graph.simplify import simplify
from helpers import bits
from models import IMAGE_MODELS, nets, randomised


class Lambda(nn.Module):
    """A function, with whatever layers it uses."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            if isinstance(layer, torch.Tensor) and not isinstance(layer, nn.Parameter):
                self.register_buffer(name, layer)
            else:
                setattr(self, name, layer)

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def images(size, channels=3, side=8, seed=0):
    return torch.randn(size, channels, side, side, generator=torch.Generator().manual_seed(seed))


def call(graph, *args, **kwargs):
    return run(graph, graph.flatten(args, kwargs))


def assert_close(actual, expected, tolerance=1e-5):
    """The same structure, and tensors that are the same but for rounding."""
    assert type(actual) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert actual.shape == expected.shape
        assert actual.dtype == expected.dtype
        difference = (actual.double() - expected.double()).norm()
        assert difference <= tolerance * expected.double().norm() + 1e-12
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        assert_close(list(actual.values()), list(expected.values()), tolerance)
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, tolerance)
    else:
        assert actual == expected


def assert_faithful(model, example, *others):
    """Captured with an example, a model computes what it does itself, for that and other inputs.

    Returns:
        The simplified graph.
    """
    captured = capture(model, *normalise_example(example))
    simplified = simplify(captured)
    for inputs in (example, *others):
        args, kwargs = normalise_example(copy.deepcopy(inputs))
        with torch.no_grad():
            expected = model.eval()(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        for graph in (captured, simplified):
            assert_ordered(graph)
            assert_close(call(graph, *args, **kwargs), expected)
    return simplified


def assert_ordered(graph):
    """Everything that is read has been computed, once."""
    known = list(graph.inputs)
    for op in graph.ops:
        assert set(op.inputs) <= set(known)
        known.append(op.output)
    assert len(known) == len(set(known)) == len({v.name for v in known})
    assert {v for v in graph.outputs if isinstance(v, Value)} <= set(known)


def kinds(graph):
    return Counter(str(op.target) if isinstance(op, Call) else type(op).__name__ for op in graph.ops)


def only(graph, kind):
    (op,) = (op for op in graph.ops if isinstance(op, kind))
    return op


# Real networks


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_networks_for_images_compute_the_same_at_any_batch_size(name):
    make, side, channels = IMAGE_MODELS[name]
    model = randomised(make())
    graph = assert_faithful(
        model, images(2, channels, side), images(1, channels, side, 1), images(3, channels, side, 2)
    )
    assert graph.batch is None
    assert graph.inputs[0].shape == (2, channels, side, side)
    assert not any("norm" in kind and kind != "aten.layer_norm.default" for kind in kinds(graph))
    assert not any("dropout" in kind or kind.endswith("_.default") for kind in kinds(graph))


@pytest.mark.parametrize("name", ["lab resnet20", "vit", "mobilenet_v3_small"])
def test_an_example_of_one_image_serves_all_batch_sizes(name):
    make, side, channels = IMAGE_MODELS[name]
    model = randomised(make())
    graph = assert_faithful(model, images(1, channels, side), images(4, channels, side, 1))
    assert graph.batch is None
    for value in (*graph.inputs, *(op.output for op in graph.ops)):
        assert not value.batched or value.shape[0] == 1


def test_bert_takes_keywords_in_any_order_and_returns_its_own_structure():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=100
    )
    torch.manual_seed(0)
    model = randomised(transformers.BertModel(config))

    def example(size):
        generator = torch.Generator().manual_seed(size)
        mask = (torch.arange(8) < torch.randint(1, 9, (size, 1), generator=generator)).long()
        return {"attention_mask": mask, "input_ids": torch.randint(100, (size, 8), generator=generator)}

    graph = assert_faithful(model, example(2), example(1), dict(reversed(example(3).items())))
    assert graph.keywords == ("attention_mask", "input_ids")
    linear = [op for op in graph.ops if isinstance(op, Linear)]
    assert len(linear) == 13
    assert sum(op.residual is not None for op in linear) == 4


@pytest.mark.parametrize(("name", "convolutions", "residuals"), [("resnet18", 20, 8), ("resnet50", 53, 16)])
def test_resnets_are_convolutions_and_nothing_between(name, convolutions, residuals):
    make, side, _ = IMAGE_MODELS[name]
    graph = simplify(capture(make(), (images(2, 3, side),), {}))
    rest = {"MaxPool2d": 1, "AdaptiveAvgPool2d": 1, "Flatten": 1, "Linear": 1}
    assert kinds(graph) == {"Conv2d": convolutions, **rest}
    conv = [op for op in graph.ops if isinstance(op, Conv2d)]
    assert sum(op.residual is not None for op in conv) == residuals
    # The last 1×1 of a shortcut is added to what was computed before it, and has the ReLU.
    assert sum(not op.relu for op in conv) == 4 - (name == "resnet18")
    assert all(op.output.batched and op.output.sizes[1:] == op.output.shape[1:] for op in conv)


# Random networks


@settings(max_examples=20)
@given(nets(), st.integers(1, 3))
def test_random_networks_compute_the_same(model, size):
    assert_faithful(model, images(size, 4, 6), images(3 - size // 2, 4, 6, 1))


@settings(max_examples=12)
@given(nets(["relu_", "add_", "part_", "dropout", "conv", "bn", "add"]))
def test_writing_in_place_is_seen_wherever_it_should_be(model):
    assert_faithful(model, images(2, 4, 6), images(3, 4, 6, 1))


# Fusing, and not


def conv(out=4, **options):
    return nn.Conv2d(3, out, 3, padding=1, **options)


def test_a_convolution_whose_output_is_seen_elsewhere_stays_as_it_is():
    model = Lambda(lambda m, x: (y := m.conv(x), m.bn(y).relu()), conv=conv(), bn=nn.BatchNorm2d(4))
    graph = assert_faithful(randomised(model), images(2))
    assert kinds(graph) == {"Conv2d": 1, "Affine": 1}
    assert only(graph, Affine).relu
    assert only(graph, Affine).scale.dtype == torch.float32
    assert not only(graph, Conv2d).relu


def test_of_two_convolutions_the_last_takes_the_sum():
    model = Lambda(lambda m, x: F.relu(m.b(x) + m.a(x)), a=conv(), b=conv())
    graph = assert_faithful(model, images(2))
    first, last = graph.ops
    assert torch.equal(first.weight, model.b.weight)
    assert last.residual is first.output
    assert last.relu
    assert not first.relu


def test_a_sum_goes_into_the_convolution_before_it_even_if_its_other_part_comes_later():
    graph = assert_faithful(Lambda(lambda m, x: m.conv(x) + F.pad(x, (0, 0, 0, 0, 0, 1)).exp(), conv=conv()), images(2))
    assert isinstance(graph.ops[-1], Conv2d)
    assert graph.ops[-1].residual is graph.ops[-2].output


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda m, x: (y := m.conv(x)) + y, {"Conv2d": 1, "Add": 1}),
        (lambda m, x: m.conv(x).relu() + m.conv(x).relu(), {"Conv2d": 2, "Add": 1}),
        (lambda m, x: m.conv(x) + x[:, :1], {"Conv2d": 1, "aten.slice.Tensor": 1, "aten.add.Tensor": 1}),
        (lambda m, x: torch.add(m.conv(x), m.conv(x), alpha=2), {"Conv2d": 2, "aten.add.Tensor": 1}),
        (lambda m, x: m.bn(m.conv(x).relu()), {"Conv2d": 1, "Affine": 1}),
        (lambda m, x: F.relu6(m.conv(x)), {"Conv2d": 1, "aten.relu6.default": 1}),
        (lambda m, x: m.conv(m.conv(x)[:, :3]), {"Conv2d": 2, "aten.slice.Tensor": 1}),
    ],
)
def test_what_is_not_fused(function, expected):
    assert (
        kinds(assert_faithful(randomised(Lambda(function, conv=conv(), bn=nn.BatchNorm2d(4))), images(2))) == expected
    )


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
    model = Lambda(function, conv=conv(), bn=nn.BatchNorm2d(4), bias=torch.tensor([1.0, -2, 3, 0.5]), drop=nn.Dropout())
    assert kinds(assert_faithful(randomised(model), images(2))) == {"Conv2d": 1}


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
    assert kinds(graph) == {"MaxPool2d": 1, "AvgPool2d": 1, "AdaptiveAvgPool2d": 3, "Flatten": 3}


def test_concatenations():
    graph = assert_faithful(Lambda(lambda m, x: torch.cat([x, x.relu(), x], -3)), images(2))
    assert [type(op).__name__ for op in graph.ops] == ["ReLU", "Concat"]
    assert graph.ops[-1].dim == 1
    assert len(graph.ops[-1].inputs) == 3


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
    assert only(graph, Conv2d).padding == {"same": (1, 4), "valid": (0, 0), 2: (2, 2), (1, 0): (1, 0)}[padding]


def test_pruned_weights_stay_plus_zero_and_no_other_weight_becomes_zero():
    model = randomised(nn.Sequential(conv(16), nn.BatchNorm2d(16)))
    kept = torch.rand(model[0].weight.shape) < 0.3
    model[0].weight.data *= kept
    assert (model[1].weight < 0).any()
    weight = only(assert_faithful(model, images(2)), Conv2d).weight
    assert torch.equal(bits(weight) != 0, kept)


def test_folding_rounds_once():
    model = randomised(nn.Sequential(conv(16), nn.BatchNorm2d(16)))
    folded = only(simplify(capture(model, (images(2),), {})), Conv2d)
    norm = model[1]
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    weight = model[0].weight.double() * scale.view(-1, 1, 1, 1)
    bias = (model[0].bias.double() - norm.running_mean.double()) * scale + norm.bias.double()
    assert torch.equal(folded.weight, weight.float())
    assert (folded.bias - bias).abs().max() <= 1e-7 * bias.abs().max()


@pytest.mark.parametrize("statistic", [-1.0, float("nan")])
def test_a_norm_that_makes_nan_is_left_to_pytorch(statistic):
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    model[1].running_var[2] = statistic
    graph = simplify(capture(model, (images(2),), {}))
    assert kinds(graph) == {"Conv2d": 1, "aten.batch_norm.default": 1}
    assert call(graph, images(2)).isnan().any((0, 2, 3)).tolist() == [False, False, True, False]


def test_a_norm_that_would_overflow_weights_is_not_folded():
    model = randomised(nn.Sequential(conv(), nn.BatchNorm2d(4)))
    model[0].weight.data[1] = 1e30
    model[1].weight.data[1] = 1e20
    assert kinds(simplify(capture(model, (images(2),), {}))) == {"Conv2d": 1, "Affine": 1}


def test_a_module_called_twice_is_two_operations():
    model = randomised(
        Lambda(lambda m, x: m.bn(m.conv(m.conv(x).relu())), conv=nn.Conv2d(3, 3, 1), bn=nn.BatchNorm2d(3))
    )
    graph = assert_faithful(model, images(2))
    assert [op.relu for op in graph.ops] == [True, False]
    assert not torch.equal(graph.ops[0].weight, graph.ops[1].weight)


def test_weights_that_are_computed_are_computed_once():
    model = nn.Sequential(conv(), nn.Flatten(), nn.Linear(256, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    prune.random_unstructured(model[2], "weight", 0.5)
    graph = assert_faithful(model, images(2))
    assert kinds(graph) == {"Conv2d": 1, "Flatten": 1, "Linear": 1}
    assert not only(graph, Linear).weight[model[2].weight_mask == 0].any()


def test_what_is_random_is_not_computed_beforehand():
    graph = simplify(capture(Lambda(lambda m, x: x + torch.rand(3, 8, 8)), (images(2),), {}))
    assert not torch.equal(call(graph, images(2)), call(graph, images(2)))


def test_contiguous_copies_stay_before_what_depends_on_the_layout():
    graph = assert_faithful(Lambda(lambda m, x: x.transpose(1, 3).contiguous().as_strided((2, 3), (3, 1))), images(2))
    assert kinds(graph)["aten.contiguous.default"] == 1


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
    assert not any(v.varies for v in graph.inputs)


@pytest.mark.parametrize("size", [1, 2])
def test_a_batch_size_taken_with_len_still_varies(size):
    assert assert_faithful(Lambda(lambda m, x: x.view(len(x), -1)), images(size), images(3)).batch is None


def test_shapes_say_how_they_depend_on_the_batch():
    def function(m, x, weight):
        return x.view(-1, 8), x.transpose(0, 1), weight * 2, x.relu()

    graph = simplify(capture(Lambda(function), (images(4), torch.randn(7, 2)), {}))
    rows, swapped, fixed, same = graph.outputs
    assert (rows.sizes, rows.shape, rows.batched, rows.varies) == (("24*N", 8), (96, 8), False, True)
    assert (swapped.sizes, swapped.batched, swapped.varies) == ((3, "N", 8, 8), False, True)
    assert (fixed.sizes, fixed.batched, fixed.varies) == ((7, 2), False, False)
    assert (same.sizes, same.shape, same.batched) == (("N", 3, 8, 8), (4, 3, 8, 8), True)


def test_the_batch_size_is_read_off_the_input_so_that_values_stay_fusable():
    def function(m, x):
        y = m.conv(x)
        return m.bn(y).view(y.size(0), y.size(1), -1)

    graph = assert_faithful(randomised(Lambda(function, conv=conv(), bn=nn.BatchNorm2d(4))), images(2), images(3))
    assert kinds(graph) == {"aten.sym_size.int": 1, "Conv2d": 1, "aten.reshape.default": 1}


# The model


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(
        conv(), nn.BatchNorm2d(4), nn.Sequential(nn.ReLU(inplace=True), nn.Dropout()), nn.Conv2d(4, 2, 1)
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
    assert torch.equal(call(graph, images(2)), images(2) * 2 + 1)


def test_a_graph_owns_its_constants():
    def function(m, x):
        return m.linear(m.bn(m.conv(x)).relu().flatten(1)), m.table.expand(3, 2), F.layer_norm(x, (8, 8), m.w, m.w)

    layers = {"conv": conv(), "bn": nn.BatchNorm2d(4), "linear": nn.Linear(256, 2)}
    model = randomised(Lambda(function, **layers, table=torch.ones(2), w=torch.ones(8, 8)))
    model.linear.weight.data = model.linear.weight.data.t().contiguous().t()
    graph = simplify(capture(model, (images(2),), {}))
    expected = call(graph, images(2))
    for returned in expected:
        returned[0].add_(1)
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data.fill_(7)
    again = call(graph, images(2))
    assert torch.equal(again[1], torch.ones(3, 2))
    assert torch.equal(again[0][1:], expected[0][1:])
    assert torch.equal(again[2][1:], expected[2][1:])
    assert only(graph, Linear).weight.is_contiguous()
    assert not any(t.requires_grad for t in graph.constants())


def test_weights_may_stay_shared_with_the_model():
    model = nn.Sequential(nn.Linear(4, 4))
    (weight, _bias) = simplify(capture(model, (torch.randn(2, 4),), {}), copy_constants=False).constants()
    assert weight.data_ptr() == model[0].weight.data_ptr()


@pytest.mark.parametrize("wrap", [torch.compile, nn.DataParallel])
def test_wrappers_are_looked_through(wrap):
    graph = simplify(capture(wrap(nn.Sequential(nn.Linear(4, 4), nn.ReLU())), (torch.randn(2, 4),), {}))
    assert kinds(graph) == {"Linear": 1}


# Structures


def test_what_a_network_returns_keeps_its_structure():
    def function(m, x, *, scale):
        return {"sum": x + scale, "rest": (x, [m.table, None, 3], "name")}

    model = Lambda(function, table=torch.arange(3.0))
    graph = simplify(capture(Named(model), (), {"x": images(2), "scale": images(2, seed=1)}))
    returned = call(graph, scale=images(2, seed=1), x=images(2))
    assert_close(returned, function(model, images(2), scale=images(2, seed=1)))


class Named(nn.Module):
    """A model whose arguments have names."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, scale):
        return self.model(x, scale=scale)


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

    assert_faithful(Lambda(function, conv=conv()), images(2), images(3))


def test_a_graph_prints_its_operations():
    model = Lambda(lambda m, x: F.gelu(m.conv(x).relu()) + m.w, conv=conv(), w=torch.ones(8))
    text = str(simplify(capture(model, (images(2),), {})))
    assert "any batch size N" in text
    assert "float32[N, 4, 8, 8] = Conv2d(" in text
    assert "weight [4, 3, 3, 3], bias [4], stride (1, 1)" in text
    assert "relu)" in text
    assert "aten.gelu.default(" in text
    assert "<float32[8]>" in text


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


def test_examples_in_all_their_forms():
    x = torch.ones(1)
    assert normalise_example(x) == normalise_example((x,)) == normalise_example([x]) == ((x,), {})
    assert normalise_example({"x": x}) == ((), {"x": x})


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


def test_an_idle_dropout_changes_nothing():
    graph = assert_faithful(nn.Sequential(nn.Dropout(inplace=True), nn.ReLU()), images(2))
    assert [type(op) for op in graph.ops] == [ReLU]


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


def test_sums_of_values_have_a_relu_of_their_own():
    graph = assert_faithful(Lambda(lambda m, x: (x + x.exp()).relu().flatten(1)), images(2))
    assert only(graph, Add).relu
    assert isinstance(graph.ops[-1], Flatten)
