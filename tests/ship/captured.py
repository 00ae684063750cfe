"""Models to capture, and checks of their graphs."""

import copy
from collections import Counter

import torch
from torch import nn

from fggp.ship.graph.calls import Call
from fggp.ship.graph.capture import capture, normalise_example
from fggp.ship.graph.interpret import run
from fggp.ship.graph.operations import Value
from fggp.ship.graph.simplify import simplify


class Lambda(nn.Module):
    """A function as a model, with the layers and tensors that it uses."""

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


class Named(nn.Module):
    """A model whose arguments have names."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x, scale):
        return self.model(x, scale=scale)


def conv3x3(out=4, **options):
    return nn.Conv2d(3, out, 3, padding=1, **options)


def images(size, channels=3, side=8, seed=0):
    return torch.randn(size, channels, side, side, generator=torch.Generator().manual_seed(seed))


def run_graph(graph, *args, **kwargs):
    """Run a graph on arguments as the model takes them."""
    return run(graph, graph.flatten(args, kwargs))


def assert_close(actual, expected, tolerance=1e-5):
    """The same structure, and tensors that are equal up to rounding."""
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
    """A model's graph, captured with an example, computes the same as the model, for that and other inputs.

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
            assert_close(run_graph(graph, *args, **kwargs), expected)
    return simplified


def assert_ordered(graph):
    """Each value is computed once, before it is read."""
    known = list(graph.inputs)
    for op in graph.ops:
        assert set(op.inputs) <= set(known)
        known.append(op.output)
    assert len(known) == len(set(known)) == len({v.name for v in known})
    assert {v for v in graph.outputs if isinstance(v, Value)} <= set(known)


def count_operations(graph):
    """The number of operations of each kind, calls by the name of their operator."""
    return Counter(str(op.target) if isinstance(op, Call) else type(op).__name__ for op in graph.ops)


def only_operation(graph, kind):
    """The graph's only operation of a class."""
    (op,) = (op for op in graph.ops if isinstance(op, kind))
    return op
