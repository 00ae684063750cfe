"""Pruned directions of weight norm in the small file and in the runtime: both see the zeros."""

import pytest
import torch
from torch import nn

import fggp
import helpers
from fggp.ship.graph.calls import Call
from fggp.ship.graph.capture import capture
from fggp.ship.graph.operations import Conv2d, Linear
from fggp.ship.graph.simplify import simplify

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")

NORMS = {
    "parametrization": nn.utils.parametrizations.weight_norm,
    "hook": nn.utils.weight_norm,
}


def network(norm, dim, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        norm(nn.Conv2d(2, 32, 3), dim=dim),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        norm(nn.Conv2d(32, 32, 3), dim=dim),
        nn.ReLU(),
        nn.Flatten(),
        norm(nn.Linear(32 * 4, 64), dim=dim),
    )


def directions(model):
    return {n: p for n, p in model.named_parameters() if n.endswith(("original1", "weight_v"))}


@pytest.fixture(params=[(norm, dim) for norm in NORMS for dim in (0, 1, None)], ids=str)
def trained(request):
    """A model that was pruned to 90 % while it was trained, and the function that makes it."""
    norm, dim = NORMS[request.param[0]], request.param[1]
    model = network(norm, dim)
    optimizer = helpers.sgd(model)
    pruner = fggp.Pruner(model, optimizer, 0.9, begin=0, end=6, every=2, method="gmp")
    assert list(pruner.masks) == list(directions(model))
    for t in range(1, 8):
        loss = helpers.backward(model, optimizer, t)
        assert loss.isfinite()
        optimizer.step()
        helpers.assert_exactly_zero(pruner, optimizer)
    assert pruner.sparsity == pytest.approx(0.9, abs=1e-4)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("original0", "weight_g")):  # a zero times a negative length is −0
                p.view(-1)[:1] *= -1
    return model.eval(), lambda: network(norm, dim, seed=1)


def test_the_file_keeps_the_zeros_and_is_small(trained, tmp_path):
    model, make = trained
    fggp.save(model, tmp_path / "small.safetensors")
    other = make()
    fggp.load(tmp_path / "small.safetensors", other)
    assert helpers.identical(dict(other.state_dict()), dict(model.state_dict()))
    x = torch.randn(3, 2, 6, 6)
    assert torch.equal(other.eval()(x), model(x))
    assert (tmp_path / "small.safetensors").stat().st_size < sum(p.numel() for p in model.parameters()) * 4 / 5


def test_the_runtime_skips_the_zeros(trained):
    model, _ = trained
    x = torch.randn(3, 2, 6, 6)
    graph = simplify(capture(model, (x,), {}))
    assert not [op for op in graph.ops if isinstance(op, Call)]  # nothing is computed from g and v at a call
    products = [op for op in graph.ops if isinstance(op, (Conv2d, Linear))]
    for op, v in zip(products, directions(model).values(), strict=True):
        assert torch.equal(op.weight != 0, v != 0)
    fast = fggp.compile(model, x)
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-5)
    y = torch.randn(8, 2, 6, 6)
    torch.testing.assert_close(fast(y), model(y), rtol=1e-4, atol=1e-5)
