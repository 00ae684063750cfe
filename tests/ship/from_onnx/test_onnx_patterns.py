"""What exporters spell out is recognised, and what is nearly the same is not."""

import math

import numpy as np
import pytest
from onnx import helper

pytest.importorskip("onnxruntime")

from onnx_models import assert_same, model_of, randn

X = randn(3, 8) * 2


class Spelled:
    """Writes a formula as nodes."""

    def __init__(self):
        self.nodes, self.constants = [], {}

    def __call__(self, op, *inputs, **attributes):
        names = [x if isinstance(x, str) else self.constant(x) for x in inputs]
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [output], **attributes))
        return output

    def constant(self, x):
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(x, np.int64 if isinstance(x, list) else np.float32)
        return name


def operations(formula, *numbers):
    """The number of operations of a formula of x; it computes what ONNX Runtime does."""
    spelled = Spelled()
    formula(spelled, "x", *numbers)
    spelled.nodes[-1].output[0] = "y"
    net = assert_same(model_of(spelled.nodes, {"x": X}, constants=spelled.constants), {"x": X}, tolerance=3e-5)
    return int(repr(net).partition(" operations")[0].rpartition(" ")[2])


def silu(o, x, number):
    return o("Mul", o("Mul", x, number), o("Sigmoid", x))


def hardswish(o, x, shift, divisor):
    return o("Div", o("Mul", x, o("Clip", o("Add", x, shift), 0.0, 6.0)), divisor)


def gelu(o, x, half, scale, one):
    return o("Mul", o("Mul", x, half), o("Add", o("Erf", o("Mul", x, scale)), one))


def gelu_by_tanh(o, x, half, scale, cubic):
    inner = o("Mul", o("Add", x, o("Mul", o("Pow", x, 3.0), cubic)), scale)
    return o("Mul", o("Mul", x, half), o("Add", o("Tanh", inner), 1.0))


def mish(o, x, number):
    return o("Mul", o("Mul", x, number), o("Tanh", o("Softplus", x)))


def layer_norm(o, x, factor):
    centred = o("Sub", x, o("ReduceMean", x, [-1]))
    squares = o("Mul", o("Pow", centred, 2.0), factor)
    return o("Div", centred, o("Sqrt", o("Add", o("ReduceMean", squares, [-1]), 1e-3)))


def rms_norm(o, x, factor):
    squares = o("Mul", o("Mul", x, x), factor)
    inverse = o("Reciprocal", o("Sqrt", o("Add", o("ReduceMean", squares, [-1]), 1e-3)))
    return o("Mul", x, inverse)


FORMULAS = [
    (silu, (1.0,)),
    (hardswish, (3.0, 6.0)),
    (gelu, (0.5, math.sqrt(0.5), 1.0)),
    (gelu_by_tanh, (0.5, math.sqrt(2 / math.pi), 0.044715)),
    (mish, (1.0,)),
    (layer_norm, (1.0,)),
    (rms_norm, (1.0,)),
]


@pytest.mark.parametrize(("formula", "numbers"), FORMULAS)
def test_a_known_function_is_one_operation(formula, numbers):
    assert operations(formula, *numbers) == 1


@pytest.mark.parametrize(
    ("formula", "numbers", "place"), [(f, numbers, i) for f, numbers in FORMULAS for i in range(len(numbers))]
)
@pytest.mark.parametrize("factor", [2.0, 1.0005])
def test_a_function_that_is_off_by_a_factor_is_not_taken_for_it(formula, numbers, place, factor):
    off = [x * factor if i == place else x for i, x in enumerate(numbers)]
    assert operations(formula, *off) > 1


@pytest.mark.parametrize(("formula", "numbers", "place"), [(silu, (1.0,), 0), (gelu, (0.5, math.sqrt(0.5), 1.0), 0)])
def test_exact_numbers_are_compared_exactly(formula, numbers, place):
    off = [x * 1.00005 if i == place else x for i, x in enumerate(numbers)]
    assert operations(formula, *off) > 1


def test_roots_may_be_written_with_few_digits():
    assert operations(gelu, 0.5, 0.70711, 1.0) == 1
