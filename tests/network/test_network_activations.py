"""Activations: every build within 2 units in the last place of the exact result, over all magnitudes of float32.

The library computes with zeros in place of denormal numbers, so tiny results may be zero: x times a sigmoid that is
denormal is below 1e-35.
"""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.utils._pytree import tree_structure

from builds import build_name, every_build
from fggp.ship.graph.activations import FUNCTIONS, activated
from fggp.ship.graph.operations import RELU, Activate, Activation, Conv2d, Graph, Value
from models import ACTIVATIONS
from networks import closing, network_of

BUILDS = every_build()
TINY = 1e-35
SETTINGS = [
    *ACTIVATIONS,
    Activation("clamp", (1, -1)),
    Activation("leaky_relu", (0.01,)),
    Activation("elu", (1, 1, 1)),
    Activation("elu", (1.7580993408473766, 1.0507009873554805, 1)),
]


def kernels_result(build, activation, x):
    """The activation of a vector of any length, by the kernels, which read it through a product with 1."""
    value = Value("x", (1, 1, 1, len(x)), torch.float32, (1, 1, 1, len(x)))
    copied, y = replace(value, name="copied"), replace(value, name="y")
    one, zero = torch.ones(1, 1, 1, 1), torch.tensor([-0.0])
    settings = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "activation": None}
    ops = (
        Conv2d((value,), copied, weight=one, bias=zero, **settings),
        Activate((copied,), y, activation=activation),
    )
    graph = Graph((value,), (), ops, (y,), tree_structure([0]))
    with closing(network_of(graph, {"products": "kernels", "tilings": "first"}, build)) as network:
        given = {"x": x.view(1, 1, 1, -1)}
        (result,) = network.run(given).values()
    return result.flatten()


def exact(activation, x):
    """In float64, by formulas that lose nothing where the result is small."""
    x = x.double()
    tail = {
        "gelu": lambda: x * torch.special.erfc(-x / math.sqrt(2)) / 2,
        "gelu_tanh": lambda: x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x**3)),
    }
    if activation.name == "mish":
        e = x.clamp(max=30).exp()
        return x * (e * (e + 2) / (e * (e + 2) + 2))
    return tail[activation.name]() if activation.name in tail else activated(x, activation)


def error_in_last_places(y, expected):
    """The distance from the exact result, in units of the last place of its float32; zero may stand for a tiny one."""
    size = expected.float().abs()
    unit = (torch.nextafter(size, torch.tensor(torch.inf)).double() - size.double()).clamp_min(2.0**-149)
    right = (size.isinf() & (y == expected.float())) | ((y == 0) & (size < TINY))
    return ((y.double() - expected).abs() / unit).where(~right, 0)


def all_magnitudes():
    """Finite float32 numbers of both signs and every exponent, most of them where functions bend."""
    bits = torch.arange(-(2**31), 2**31, 40_009, dtype=torch.int64).to(torch.int32).view(torch.float32)
    near = torch.linspace(-20, 20, 40_001)
    far = torch.linspace(-120, 40, 20_001)
    # Every number from 16.5 to 17: exp(x) is so large that 1 + exp(x) loses the 1 by rounding.
    first, last = torch.tensor([16.5, 17]).view(torch.int32).tolist()
    lost = torch.arange(first, last, dtype=torch.int32).view(torch.float32)
    x = torch.cat([bits, near, far, lost, -lost])
    return x[x.isfinite()].contiguous()


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
@pytest.mark.parametrize("activation", SETTINGS, ids=str)
@pytest.mark.parametrize("least", [-math.inf, -80], ids=["all", "from -80"])  # from -80 on, some are computed faster
def test_two_units_in_the_last_place(build, activation, least):
    x = all_magnitudes()
    x = x[x >= least].contiguous()
    error = error_in_last_places(kernels_result(build, activation, x), exact(activation, x))
    worst = int(error.argmax())
    assert error[worst] <= 2, f"{activation} of {x[worst]} is off by {error[worst]:.2f} units"


@given(
    build=st.sampled_from(BUILDS),
    activation=st.sampled_from(SETTINGS),
    x=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=70),
)
@example(build=BUILDS[0], activation=RELU, x=[-0.0])
def test_any_numbers_of_any_count(build, activation, x):
    x = torch.tensor(x)
    assert (error_in_last_places(kernels_result(build, activation, x), exact(activation, x)) <= 2).all()


@pytest.mark.parametrize("build", BUILDS, ids=build_name)
@pytest.mark.parametrize("activation", SETTINGS, ids=str)
def test_nan_and_infinities_become_what_they_become_in_pytorch(build, activation):
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1.0] * 9)
    expected = activated(x.double(), activation).float()
    torch.testing.assert_close(kernels_result(build, activation, x), expected, equal_nan=True)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_kernels_know_every_function(name):
    assert name in {setting.name for setting in SETTINGS}  # which the tests above run
