"""Training with weight norm: directions are pruned exactly, and no row of them loses its last weight."""

import pytest
import torch
from torch import nn

import fggp
import helpers

pytestmark = pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")

NORMS = {"parametrization": nn.utils.parametrizations.weight_norm, "hook": nn.utils.weight_norm}
METHODS = {
    "fggp": fggp.FGGP(),
    "gmp": fggp.GMP(),
    "random": "random",
    "rigl": fggp.RigL(share=0.9),
    "set": fggp.SET(share=0.9),
    "granet": fggp.GraNet(total_steps=8, start=0.9),
}


def network(norm, seed=0):
    """Half of the rows are so small that any ranking by size takes them whole."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), norm(nn.Linear(16, 12)), nn.Tanh(), nn.Linear(12, 3))
    [v] = [p for n, p in model.named_parameters() if n.endswith(("original1", "weight_v"))]
    with torch.no_grad():
        v[::2] *= 0.1
        model[4].weight *= 3
    return model, v


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", METHODS)
def test_no_row_is_emptied_and_counts_are_exact(norm, method):
    model, v = network(NORMS[norm])
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, 0.8, end=8, every=2, method=METHODS[method])
    total = 6 * 16 + 16 * 12 + 12 * 3
    for t in range(1, 11):
        loss = helpers.backward(model, optimizer, t)
        assert loss.isfinite()
        optimizer.step()
        helpers.assert_exactly_zero(pruner, optimizer)
        assert (v != 0).any(1).all()
    assert sum(int(m.sum()) for m in pruner.masks.values()) == round(0.2 * total)
    assert all(p.isfinite().all() for p in model.parameters())


def test_without_the_correction_rows_are_emptied(monkeypatch):
    """The recipe is one in which rows are emptied: otherwise the test above tests nothing."""
    monkeypatch.setattr(
        fggp.pruner.update, "keep_rows", lambda weights, layers, before, active, processes: list(active)
    )
    model, _ = network(NORMS["parametrization"])
    optimizer = helpers.sgd(model)
    helpers.make_pruner(model, optimizer, 0.8, end=8, every=2, method="gmp")
    helpers.train(model, optimizer, 3)
    assert helpers.loss_of(model, 4).isnan()


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_layer_keeps_as_many_weights_as_it_has_rows(scope):
    """At 99 %, 3 of the 324 weights would be left, and 12 rows need one each."""
    model, v = network(NORMS["parametrization"])
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, 0.93, end=8, every=2, scope=scope)
    for t in range(1, 11):
        assert helpers.backward(model, optimizer, t).isfinite()
        optimizer.step()
    assert (v != 0).any(1).all()
    assert sum(int(m.sum()) for m in pruner.masks.values()) == round(0.07 * 324)


def test_one_shot_methods():
    model, v = network(NORMS["parametrization"])
    optimizer = helpers.sgd(model)
    batch = torch.randn(8, 6), torch.randint(3, (8,))
    fggp.Pruner(model, optimizer, 0.8, method=fggp.SNIP(nn.functional.cross_entropy, batch))
    assert (v != 0).any(1).all()
    helpers.train(model, optimizer, 2)
    assert all(p.isfinite().all() for p in model.parameters())
