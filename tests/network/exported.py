"""Models described as network files and run by the library, for tests."""

import math

import torch
from torch.utils._pytree import tree_leaves

from fggp.ship.graph.capture import normalise_example
from fggp.ship.network.describe import describe_model
from networks import build, closing


def described(model, example):
    """The description of a model, in evaluation mode."""
    return describe_model(model.eval(), *normalise_example(example))


def results(description, *examples, threads=2):
    """What the library computes for each example: lists of outputs, in order."""
    names = [given["name"] for given in description.network["inputs"]]
    found = []
    with closing(build(description.network, description.tensors)) as network:
        for example in examples:
            args, kwargs = normalise_example(example)
            inputs = dict(zip(names, [*args, *kwargs.values()], strict=True))
            outputs = network.run(inputs, threads)
            found.append([outputs[output["name"]] for output in description.network["outputs"]])
    return found


def relative_difference(ours, expected):
    """‖ours − expected‖ / ‖expected‖; infinite if dtypes or shapes differ, or if integers or bools do."""
    if ours.dtype != expected.dtype or ours.shape != expected.shape:
        return math.inf
    if not expected.is_floating_point():
        return 0.0 if torch.equal(ours, expected) else math.inf
    same = (ours == expected) | (ours.isnan() & expected.isnan())
    if bool(same.all()):
        return 0.0
    difference = (ours.double() - expected.double()).norm() / expected.double().norm().clamp_min(1e-30)
    return float(difference.nan_to_num(nan=math.inf))


def assert_same(model, *examples, tolerance=1e-6):
    """The library computes what the model does, described with the first example, for all of them.

    Returns:
        The description.
    """
    model.eval()
    description = described(model, examples[0])
    for example, ours in zip(examples, results(description, *examples), strict=True):
        args, kwargs = normalise_example(example)
        with torch.no_grad():
            expected = [x for x in tree_leaves(model(*args, **kwargs)) if isinstance(x, torch.Tensor)]
        names = [output["name"] for output in description.network["outputs"]]
        differences = {
            name: relative_difference(a, widened(e)) for name, a, e in zip(names, ours, expected, strict=True)
        }
        wrong = {name: difference for name, difference in differences.items() if not difference <= tolerance}
        assert not wrong, wrong
    return description


def widened(x):
    """A tensor in the dtype that the file has for it."""
    return x.long() if x.dtype == torch.int32 else x
