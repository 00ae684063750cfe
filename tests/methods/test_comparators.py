"""GraNet, RigL, SET, SNIP, GraSP, SynFlow and static ERK compared with plain restatements of their definitions."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fggp
import helpers
import reference
from fggp.scores import gradient, magnitude
from fggp.selection.chains import Exchange, run_exchange
from fggp.weights.gradients import Gradients
from fggp.weights.layers import flatten
from reference import annealed, weights_of
from tensors import models, prunables

# Regrowth


@given(models(infinite=False), st.floats(0, 1))
def test_an_exchange_drops_the_smallest_and_grows_the_largest_of_each_layer(model, share):
    thetas, grads, masks = zip(*model, strict=True)
    weights = prunables(thetas, grads)
    layers = flatten(weights, Gradients.of_this_step(weights))
    active = [layer.layout.flat(m) for layer, m in zip(layers, masks, strict=True)]
    after = run_exchange(layers, active, Exchange(share, magnitude, gradient))
    everywhere = [torch.ones_like(m) for m in masks]
    for i, mask in enumerate(masks):
        before = [w for w in weights_of(thetas, grads, masks) if w.layer == i]
        moved = math.ceil(share * len(before))
        dropped = sorted(before, key=reference.by_magnitude)[:moved]
        kept = [w for w in before if w not in dropped]
        inactive = [w for w in weights_of(thetas, grads, everywhere) if w.layer == i and w not in kept]
        grown = sorted(inactive, key=lambda w: (-abs(w.grad), -abs(w.theta), w.position))[:moved]
        expected = sorted(w.position for w in kept + grown)
        assert layers[i].layout.shaped(after[i]).reshape(-1).nonzero().flatten().tolist() == expected
        assert len(expected) == int(mask.sum())


class Plain:
    """GraNet, RigL or SET by hand, as docs/methods.md states them: with sort, and a mask per layer."""

    def __init__(self, parameters, optimizer, masks, final, begin, end, every, share, last, grow="gradient"):
        self.parameters, self.optimizer, self.masks = parameters, optimizer, [m.clone() for m in masks]
        self.total = sum(p.numel() for p in parameters)
        self.initial = 1 - sum(int(m.sum()) for m in masks) / self.total
        self.final, self.begin, self.end, self.every = final, begin, end, every
        self.share, self.last, self.grow, self.t = share, last, grow, 0

    def before_step(self):
        t = self.t + 1
        self.new = None
        due = t == self.end or (t > self.begin and (t - self.begin) % self.every == 0 and t <= self.last)
        if not due:
            return
        s = reference.sparsity(t, self.final, self.begin, self.end, self.initial)
        # Globally by magnitude to s_t …
        magnitudes = torch.cat([p.detach().abs().where(m, torch.inf).flatten() for p, m in self.pairs()])
        excess = sum(int(m.sum()) for m in self.masks) - round((1 - s) * self.total)
        flat = torch.cat([m.flatten() for m in self.masks])
        flat[magnitudes.sort(stable=True).indices[: max(0, excess)]] = False
        split = flat.split([p.numel() for p in self.parameters])
        self.new = [m.view_as(p).clone() for m, p in zip(split, self.parameters, strict=True)]
        # … then in each layer drop a further share, and regrow the same number.
        for p, mask in zip(self.parameters, self.new, strict=True):
            moved = math.ceil(self.share(t) * int(mask.sum()))
            order = p.detach().abs().where(mask, torch.inf).flatten().sort(stable=True).indices
            mask.view(-1)[order[:moved]] = False
            order = p.grad.abs().where(~mask, -1.0).flatten().sort(stable=True, descending=True).indices
            mask.view(-1)[order[:moved]] = True

    def after_step(self):
        self.t += 1
        old = self.masks
        self.masks = self.masks if self.new is None else self.new
        for p, before, after in zip(self.parameters, old, self.masks, strict=True):
            for tensor in (p.data, self.optimizer.state[p]["momentum_buffer"]):
                tensor[~(before & after)] = 0  # what is pruned, and what has just regrown

    def pairs(self):
        return zip(self.parameters, self.masks, strict=True)


@pytest.mark.parametrize("init_sparsity", [0.0, 0.5])
@pytest.mark.parametrize("name", ["granet", "rigl"])
def test_training_beside_a_plain_restatement(name, init_sparsity):
    (model, optimizer), (other, other_optimizer) = helpers.twin(helpers.convnet, helpers.sgd)
    if name == "granet":
        method, last, options = fggp.GraNet(total_steps=20), 20, {"init_sparsity": init_sparsity}
        share = lambda t: annealed(t / 20)  # noqa: E731
    else:
        method, last, options = fggp.RigL(), 12, {}
        share = lambda t: annealed((t - 1) / 11, 0.3, 0.0)  # noqa: E731
    pruner = fggp.Pruner(model, optimizer, 0.8, begin=1, end=12, every=3, method=method, **options)
    plain = Plain(helpers.prunable(other), other_optimizer, list(pruner.masks.values()), 0.8, 1, 12, 3, share, last)
    for p, m in plain.pairs():
        p.data[~m] = 0
    regrown = 0
    for t in range(1, 24):
        old = [m.clone() for m in pruner.masks.values()]
        helpers.backward(model, optimizer, t)
        optimizer.step()
        helpers.backward(other, other_optimizer, t)
        plain.before_step()
        other_optimizer.step()
        plain.after_step()
        assert helpers.identical(list(pruner.masks.values()), plain.masks), t
        assert helpers.identical(list(model.state_dict().values()), list(other.state_dict().values())), t
        helpers.assert_exactly_zero(pruner, optimizer)
        for weight, before, after in zip(helpers.prunable(model), old, pruner.masks.values(), strict=True):
            new = after & ~before
            regrown += int(new.sum())
            assert not weight[new].any()
            assert not optimizer.state[weight]["momentum_buffer"][new].any()
        if t >= 12 or name == "rigl":
            assert pruner.sparsity == pytest.approx(0.8, abs=0.5 / plain.total)
    assert regrown
    assert pruner.last_update == (19 if name == "granet" else 12)


def test_what_is_dropped_and_regrown_at_once_keeps_its_value():
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = fggp.Pruner(model, optimizer, 0.0, begin=0, end=1, every=1, method=fggp.GraNet(1, start=0.5, end=0.5))
    model[0].weight.grad = torch.ones(1, 4)
    optimizer.step()
    assert pruner.last_update == 1
    assert model[0].weight.tolist() == [[1.0, 2.0, 3.0, 4.0]]


def test_set_moves_a_fixed_share_at_random():
    def run(seed):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        pruner = fggp.Pruner(model, optimizer, 0.7, begin=0, end=6, every=2, method="set", seed=seed)
        history = [[m.clone() for m in pruner.masks.values()]]
        for t in range(1, 9):
            helpers.backward(model, optimizer, t)
            optimizer.step()
            helpers.assert_exactly_zero(pruner, optimizer)
            if pruner.last_update == t:
                history.append([m.clone() for m in pruner.masks.values()])
        return history

    history = run(0)
    assert len(history) == 4
    for before, after in itertools.pairwise(history):
        for b, a in zip(before, after, strict=True):
            assert int(a.sum()) == int(b.sum())
            gone = int((b & ~a).sum())
            assert 0 < gone <= math.ceil(0.3 * int(b.sum()))
    assert helpers.identical(history, run(0))
    assert not helpers.identical(history[1], run(1)[1])


def test_constant_methods_start_at_their_sparsity_unless_told_otherwise():
    for method in ("rigl", "set"):
        model = helpers.convnet()
        pruner = helpers.make_pruner(model, helpers.sgd(model), 0.8, method=method)
        assert pruner.schedule.init_sparsity == 0.8
        assert pruner.sparsity == pytest.approx(0.8, abs=0.002)
        model = helpers.convnet()
        pruner = helpers.make_pruner(model, helpers.sgd(model), 0.8, method=method, init_sparsity=0.3)
        assert pruner.sparsity == pytest.approx(0.3, abs=0.002)


def test_granet_needs_all_of_training():
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    with helpers.untouched(model, optimizer):
        with pytest.raises(ValueError, match=r"method='granet' needs total_steps: pass fggp\.GraNet\("):
            helpers.make_pruner(model, optimizer, method="granet")
        with pytest.raises(ValueError, match="total_steps=5 must be at least end=6"):
            helpers.make_pruner(model, optimizer, method=fggp.GraNet(5))
        with pytest.raises(ValueError, match="total_steps=0 must be an int above 0"):
            fggp.GraNet(0)


# One shot


def batch():
    generator = torch.Generator().manual_seed(7)
    return torch.randn(8, 2, 6, 6, generator=generator), torch.randint(7, (8,), generator=generator)


def kept(values, count, model):
    """Masks with the ``count`` largest values, ties to the first."""
    flat = torch.cat([v.flatten() for v in values])
    mask = torch.zeros(len(flat), dtype=torch.bool)
    mask[flat.sort(stable=True, descending=True).indices[:count]] = True
    weights = helpers.prunable(model)
    return [m.view_as(w) for m, w in zip(mask.split([w.numel() for w in weights]), weights, strict=True)]


def one_shot(method, sparsity=0.8):
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    return model, optimizer, fggp.Pruner(model, optimizer, sparsity, method=method)


def test_snip():
    model = helpers.convnet()
    inputs, targets = batch()
    grads = torch.autograd.grad(F.cross_entropy(model(inputs), targets), helpers.prunable(model))
    values = [(w * g).abs() for w, g in zip(helpers.prunable(model), grads, strict=True)]
    *_, pruner = one_shot(fggp.SNIP(F.cross_entropy, batch()))
    assert helpers.identical(list(pruner.masks.values()), kept(values, round(0.2 * 436), model))


def test_grasp():
    model = helpers.convnet().double()
    inputs, targets = batch()
    weights = helpers.prunable(model)

    def gradients():
        return torch.autograd.grad(F.cross_entropy(model(inputs.double()), targets), weights)

    # Hg by central differences of the gradient along g.
    g, step = gradients(), 1e-5
    for w, d in zip(weights, g, strict=True):
        w.data += step * d
    ahead = gradients()
    for w, d in zip(weights, g, strict=True):
        w.data -= 2 * step * d
    behind = gradients()
    for w, d in zip(weights, g, strict=True):
        w.data += step * d
    values = [w * (a - b) / (2 * step) for w, a, b in zip(weights, ahead, behind, strict=True)]

    model = helpers.convnet().double()
    loss = lambda logits, y: F.cross_entropy(logits, y)  # noqa: E731
    method = fggp.GraSP(loss, (inputs.double(), targets))
    pruner = fggp.Pruner(model, helpers.sgd(model), 0.8, method=method)
    assert helpers.identical(list(pruner.masks.values()), kept(values, round(0.2 * 436), model))


def test_synflow():
    model = helpers.convnet().double().eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.abs_()
    weights = helpers.prunable(model)
    values = [w.detach().clone() for w in weights]
    masks = [torch.ones_like(w, dtype=torch.bool) for w in weights]
    for done in range(1, 11):
        grads = torch.autograd.grad(model(torch.ones(1, 2, 6, 6, dtype=torch.float64)).sum(), weights)
        flow = [(w * g).detach().where(m, -1.0) for w, g, m in zip(weights, grads, masks, strict=True)]
        masks = kept(flow, round(0.2 ** (done / 10) * 436), model)
        for w, v, m in zip(weights, values, masks, strict=True):
            w.data = v * m
    *_, pruner = one_shot(fggp.SynFlow((2, 6, 6), rounds=10))
    assert helpers.identical(list(pruner.masks.values()), masks)


def test_static_erk_is_the_erk_start():
    model, _, pruner = one_shot("erk-static")
    other = helpers.make_pruner(model, helpers.sgd(model), 0.9, init_sparsity=0.8)
    assert helpers.identical(list(pruner.masks.values()), list(other.masks.values()))


ONE_SHOT = {
    "snip": lambda: fggp.SNIP(F.cross_entropy, batch()),
    "grasp": lambda: fggp.GraSP(F.cross_entropy, batch()),
    "synflow": lambda: fggp.SynFlow((2, 6, 6), rounds=5),
    "erk-static": fggp.StaticERK,
}


@pytest.mark.parametrize("name", ONE_SHOT)
class TestOneShot:
    def test_only_the_weights_to_be_pruned_change(self, name):
        dense = helpers.convnet().state_dict()
        rng = torch.get_rng_state()
        model, optimizer, pruner = one_shot(ONE_SHOT[name]())
        assert torch.equal(rng, torch.get_rng_state())
        assert model.training
        assert all(p.grad is None for p in model.parameters())
        for key, tensor in model.state_dict().items():
            expected = dense[key] * pruner.masks[key] if key in pruner.masks else dense[key]
            assert torch.equal(tensor, expected)
        helpers.assert_exactly_zero(pruner, optimizer)

    def test_masks_hold_through_training_and_a_checkpoint(self, name):
        model, optimizer, pruner = one_shot(ONE_SHOT[name]())
        masks = [m.clone() for m in pruner.masks.values()]
        helpers.train(model, optimizer, 4)
        assert helpers.identical(list(pruner.masks.values()), masks)
        assert (pruner.step, pruner.last_update) == (4, 0)
        helpers.assert_exactly_zero(pruner, optimizer)
        *_, resumed = one_shot(ONE_SHOT[name](), sparsity=0.5)
        with pytest.warns(UserWarning, match=r"sparsity=0\.5; the state that it goes on with has 0\.8"):
            resumed.load_state_dict(pruner.state_dict())
        assert helpers.identical(list(resumed.masks.values()), masks)
        assert resumed.step == 4
        assert resumed.schedule.sparsity == 0.8

    @pytest.mark.parametrize(
        "option", [{"begin": 0}, {"every": 1}, {"init_sparsity": 0.5}, {"init": "uniform"}, {"scope": "layer"}]
    )
    def test_what_does_not_apply_is_refused(self, name, option):
        model = helpers.convnet()
        optimizer = helpers.sgd(model)
        with (
            helpers.untouched(model, optimizer),
            pytest.raises(ValueError, match=f"{next(iter(option))}.* does not apply"),
        ):
            fggp.Pruner(model, optimizer, 0.8, method=ONE_SHOT[name](), **option)


def test_a_pruner_with_a_batch_prints_no_batch():
    *_, pruner = one_shot(ONE_SHOT["snip"]())
    assert repr(pruner).startswith("Pruner(SNIP(loss_fn=")
    assert "tensor(" not in repr(pruner)


def test_a_loss_that_is_not_finite_is_refused():
    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    method = fggp.SNIP(lambda logits, _: logits.sum() * math.nan, batch())
    with helpers.untouched(model, optimizer), pytest.raises(ValueError, match="some scores are infinite or NaN"):
        fggp.Pruner(model, optimizer, 0.8, method=method)
