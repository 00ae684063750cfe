"""`fggp.quantization_aware`: layers round as int8 does, gradients pass, and pruning goes on as without."""

import copy
import io
import itertools
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fggp
import helpers
from fggp.ship.graph.quantized import Quantization, dequantize, quantize
from fggp.ship.quantize.layers import ROUNDED, rounded, rounded_weight
from fggp.ship.quantize.rewrite import quantized_weight


def images(count, seed=1):
    return torch.randn(count, 2, 6, 6, generator=torch.Generator().manual_seed(seed))


class Residual(nn.Module):
    """A sum reads what a convolution reads too, which only the convolution rounds in training."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.norm, self.end = nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, x):
        x = self.first(x).relu()
        x = (x + self.norm(self.b(self.a(x).relu()))).relu()
        return self.end(x.mean((2, 3)))


def trained(build, steps=20):
    torch.manual_seed(0)
    model = build()
    optimizer = helpers.sgd(model, lr=0.02)
    helpers.train(model, optimizer, steps)
    return model


@pytest.mark.parametrize(("build", "share"), [(helpers.convnet, 0.001), (Residual, 0.6)])
def test_computes_what_int8_computes(build, share):
    """All that differs is where a product lies at half a step; in `Residual`, also what its sum and its mean read.

    So the share of int8's error that training does not see.
    """
    model = trained(build).eval()
    aware = fggp.quantization_aware(model, [images(32)])
    x = images(64, seed=2)
    with torch.no_grad():
        ours = model(x)
        whole = aware.quantize()
        assert torch.equal(model(x), ours)
        aware.remove()
        assert (ours - whole(x)).norm() <= share * (model(x) - whole(x)).norm()
    assert "in float32" not in repr(whole)


def test_the_ranges_are_those_of_quantize():
    model = trained(Residual)
    expected = fggp.quantize(model, [images(32)])
    aware = fggp.quantization_aware(model, [images(32)])
    found = aware.quantize()
    assert helpers.identical(found.state_dict(), expected.state_dict())
    assert aware.layers == ("first", "a", "b", "end")


@pytest.mark.parametrize("training", [True, False])
def test_taken_away_it_was_never_there(training):
    model = trained(Residual).train(training)
    before = copy.deepcopy(model)
    aware = fggp.quantization_aware(model, [images(32)])
    assert helpers.identical(model.state_dict(), before.state_dict())
    assert model.training is training
    copied = copy.deepcopy(model)
    assert not torch.equal(copied(images(4)), copy.deepcopy(before)(images(4)))
    aware.remove()
    aware.remove()
    assert torch.equal(model(images(4)), before(images(4)))
    assert [type(m) for m in model.modules()] == [type(m) for m in before.modules()]
    assert vars(model.first).keys() == vars(before.first).keys()
    assert type(copied.first) is ROUNDED[nn.Conv2d]


def passing(x, whole, keep):
    """A rounding whose gradient is x's own, written out."""
    kept = torch.where(keep, x, x.detach())
    return kept + (whole - x).detach()


@pytest.mark.parametrize("zero", [0, 17, 255])
def test_gradients_of_what_is_read(zero):
    to = Quantization(float(torch.tensor(0.03)), zero)
    x = (4 * torch.randn(2000, generator=torch.Generator().manual_seed(0))).requires_grad_()
    y, slope = rounded(x, to), torch.randn(2000)
    (slope * y).sum().backward()
    other = x.detach().clone().requires_grad_()
    level = (other.detach() * (1 / torch.tensor(to.scale))).round() + zero
    expected = passing(other, dequantize(quantize(other.detach(), to), to), (level >= 0) & (level <= 255))
    (slope * expected).sum().backward()
    assert torch.allclose(y, expected, atol=1e-6)
    assert torch.equal(x.grad, other.grad)
    assert (x.grad == 0).any()


def test_gradients_of_weights():
    weight = torch.randn(6, 5, 3, 3) * torch.tensor([1, 1e-3, 0, 1e3, 1, 1.0]).view(-1, 1, 1, 1)
    weight[4:] *= torch.rand(2, 5, 3, 3) > 0.7
    x = torch.randn(4, 5, 8, 8)
    given, other = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    whole, scale = quantized_weight(weight)
    y = rounded_weight(given)
    expected = passing(other, whole * scale.view(-1, 1, 1, 1), torch.ones_like(other, dtype=torch.bool))
    assert torch.allclose(y, expected, rtol=1e-6)
    assert not y[weight == 0].any()
    F.conv2d(x, y).square().sum().backward()
    F.conv2d(x, expected).square().sum().backward()
    assert torch.allclose(given.grad, other.grad, rtol=1e-4)


def run(steps, save_at=None):
    """Training with rounding and pruning; the states at a step, and the model at the end."""
    model = trained(helpers.convnet)
    optimizer = helpers.sgd(model, lr=0.02)
    pruner = helpers.make_pruner(model, optimizer)
    aware = fggp.quantization_aware(model, [images(32)])
    if isinstance(save_at, dict):
        for name, part in (("model", model), ("optimizer", optimizer), ("pruner", pruner), ("aware", aware)):
            part.load_state_dict(save_at[name])
    helpers.train(model, optimizer, steps)
    return {"model": model, "optimizer": optimizer, "pruner": pruner, "aware": aware}


def test_pruning_goes_on():
    parts = run(8)
    helpers.assert_exactly_zero(parts["pruner"], parts["optimizer"])
    assert parts["pruner"].finished
    whole = dict(parts["aware"].quantize().named_buffers())
    for name, mask in parts["pruner"].masks.items():
        assert not whole[name][~mask].any()


def test_resumed_as_if_never_stopped():
    parts = run(8)
    first = run(4)
    file = io.BytesIO()
    torch.save({name: part.state_dict() for name, part in first.items()}, file)
    file.seek(0)
    second = run(range(5, 9), torch.load(file, weights_only=True))
    for name in ("model", "aware"):
        assert helpers.identical(second[name].state_dict(), parts[name].state_dict())
    assert helpers.identical(second["aware"].quantize().state_dict(), parts["aware"].quantize().state_dict())


def test_a_state_of_another_model_is_refused():
    model = trained(Residual)
    aware = fggp.quantization_aware(model, [images(8)])
    before = aware.state_dict()
    other = fggp.quantization_aware(trained(helpers.convnet), [images(8)])
    with pytest.raises(ValueError, match="the ranges are of another model"):
        aware.load_state_dict(other.state_dict())
    assert aware.state_dict() == before
    assert aware.layers == ("first", "a", "b", "end")


def test_a_damaged_state_changes_nothing():
    model = trained(Residual)
    aware = fggp.quantization_aware(model, [images(8)])
    before, y = aware.state_dict(), model.eval()(images(4))
    with pytest.raises(KeyError):
        aware.load_state_dict({"ranges": dict.fromkeys(before["ranges"], (1.0, 0))})
    assert aware.state_dict() == before
    assert torch.equal(model(images(4)), y)


def test_rounding_twice_is_refused():
    model = trained(helpers.convnet)
    aware = fggp.quantization_aware(model, [images(8)])
    for again in (fggp.quantize, fggp.quantization_aware):
        with pytest.raises(ValueError, match="'0' rounds already"):
            again(model, [images(8)])
    aware.remove()
    fggp.quantize(model, [images(8)])


def test_excluded_layers_do_not_round():
    model = trained(helpers.convnet)
    aware = fggp.quantization_aware(model, [images(8)], exclude=["0"])
    assert aware.layers == ("3", "6")
    assert "in float32: 0" in repr(aware.quantize())
    assert repr(aware) == "Sequential rounds as int8 does in 2 layers: 3, 6"


class Derived(nn.Linear):
    pass


def test_layers_that_cannot_round_in_training_are_named():
    twice = nn.Linear(6, 6)
    model = nn.Sequential(twice, nn.ReLU(), twice, Derived(6, 6), nn.Linear(6, 3))
    with pytest.warns(UserWarning, match=r"quantization_aware: 0, 2, 3 will be rounded in int8, but not in training"):
        aware = fggp.quantization_aware(model, [torch.randn(8, 6)])
    assert aware.layers == ("4",)
    aware.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="will be rounded in int8"):
            fggp.quantization_aware(model, [torch.randn(8, 6)])
    assert type(model[4]) is nn.Linear  # a warning that is an error leaves the model as it was
    with pytest.raises(ValueError, match=r"no nn.Conv2d or nn.Linear of the model, used once, would run in int8"):
        fggp.quantization_aware(nn.Sequential(Derived(6, 6)), [torch.randn(8, 6)])


def test_the_block_in_the_documentation_runs():
    page = Path(__file__).parents[3] / "docs" / "int8.md"
    (block,) = (b for b in re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.M | re.S) if "aware" in b)
    model = trained(helpers.convnet)
    loader = [(images(4, seed=i), torch.randint(3, (4,))) for i in range(3)]
    names = {"model": model, "optimizer": helpers.sgd(model), "loader": loader, "loss_fn": F.cross_entropy}
    exec(block, {**names, "fggp": fggp, "itertools": itertools})
