"""Every method prunes what its definition says: compared with the reference and with examples by hand."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import fggp
import helpers
import reference
from fggp import TopK, Update
from fggp.methods import REGISTRY, resolve
from fggp.scores import Score, _salt, magnitude, splitmix64
from fggp.selection.chains import run_chain
from fggp.weights.gradients import Gradients
from fggp.weights.layers import flatten
from tensors import models, prunables

rates = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1))


def pruned(method, thetas, grads, masks, excess, progress=0.5, seed=0, step=1):
    """The weights that a method prunes in one update, as (layer, position)."""
    weights = prunables(thetas, grads)
    layers = flatten(weights, Gradients.of_this_step(weights))
    active = [layer.layout.flat(m) for layer, m in zip(layers, masks, strict=True)]
    now = Update(step, sum(int(m.sum()) for m in masks), excess, progress, seed)
    marks = run_chain(layers, active, method.chain(now))
    return [(i, p) for i, m in enumerate(marks) for p in m.nonzero().flatten().tolist()]


@st.composite
def cases(draw):
    name = draw(st.sampled_from([n for n in helpers.GRADUAL if n != "random"]))
    if name in ("fggp", "magnitude-first"):
        given_ = (draw(rates),)
    elif name.endswith("annealed"):
        given_ = draw(st.sampled_from([(), (0.5, 0.005), (1.0, 0.0), (0.2, 0.9)]))
    else:
        given_ = ()
    return REGISTRY[name](*given_), (name, *given_)


@given(cases(), models(infinite=False), st.floats(0, 1), st.data())
def test_every_method_prunes_what_the_reference_picks(case, model, progress, data):
    method, naive = case
    thetas, grads, masks = zip(*model, strict=True)
    count = sum(int(m.sum()) for m in masks)
    if not count:
        return
    excess = data.draw(st.integers(1, count))
    double = any(t.dtype == torch.float64 for t in thetas)
    chosen = reference.choose(naive, reference.weights_of(thetas, grads, masks), excess, progress, double)
    expected = sorted((w.layer, w.position) for w in chosen)
    assert pruned(method, thetas, grads, masks, excess, progress) == expected


# Eight weights by hand:          0     1     2     3     4     5     6     7
THETA = torch.tensor([[0.1, -0.8, 0.2, 0.7], [-0.3, 0.6, 0.4, -0.5]])
GRAD = torch.tensor([[9.0, 0.1, -8.0, 0.2], [0.3, -0.4, 7.0, 6.0]])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (fggp.FGGP(rate=0.5), [4, 5]),  # smallest gradients 1, 3, 4, 5; of those, smallest weights 4, 5
        (fggp.FGGP(rate=0.7), [4, 7]),  # ⌊5.6⌋ = 5 candidates: 7 joins them
        (fggp.FGGP(rate=0.0), [1, 3]),  # never fewer candidates than weights to prune
        (fggp.FGGP(rate=1.0), [0, 2]),
        (fggp.FGGP(), [4, 5]),  # the default rate is one half
        (fggp.GMP(), [0, 2]),
        (fggp.GradientOnly(), [1, 3]),
        (fggp.MagnitudeFirst(rate=0.5), [4, 6]),  # smallest weights 0, 2, 4, 6: gradients 9, 8, 0.3, 7
        (fggp.MagnitudeFirst(), [4, 6]),
        (fggp.Taylor(), [1, 4]),  # products 0.9, 0.08, 1.6, 0.14, 0.09, 0.24, 2.8, 3
    ],
    ids=repr,
)
def test_two_of_eight_weights_by_hand(method, expected):
    everything = torch.ones(2, 4, dtype=torch.bool)
    assert pruned(method, [THETA], [GRAD], [everything], 2) == [(0, p) for p in expected]


@given(models(infinite=False), st.data())
def test_rate_one_is_magnitude_pruning_and_rate_zero_gradient_pruning(model, data):
    thetas, grads, masks = zip(*model, strict=True)
    count = sum(int(m.sum()) for m in masks)
    if not count:
        return
    excess = data.draw(st.integers(1, count))

    def by(method):
        return pruned(method, thetas, grads, masks, excess)

    assert by(fggp.FGGP(rate=1.0)) == by(fggp.GMP()) == by(fggp.MagnitudeFirst(rate=0.0))
    assert by(fggp.FGGP(rate=0.0)) == by(fggp.GradientOnly()) == by(fggp.MagnitudeFirst(rate=1.0))


@given(rates, st.integers(1, 10**9), st.floats(0, 1))
@example(0.29, 100, 0.0)  # 0.29 · 100 is 28.999… in doubles: 28
@example(0.5, 7, 0.9)
def test_the_quota_of_the_first_step(rate, active, share):
    excess = max(1, int(share * active))
    first, second = fggp.FGGP(rate=rate).chain(Update(1, active, excess, 0.0, 0))
    assert (first.quota, second.quota) == (reference.quota(rate, active, excess), excess)
    assert (first.score, second.score) == (fggp.scores.gradient, fggp.scores.magnitude)
    assert [s.quota for s in fggp.MagnitudeFirst(rate=rate).chain(Update(1, active, excess, 0.0, 0))] == [
        first.quota,
        excess,
    ]


@pytest.mark.parametrize("kind", [fggp.GradientFirstAnnealed, fggp.MagnitudeFirstAnnealed])
def test_the_annealed_quota_falls_by_a_cosine_from_start_to_end(kind):
    def quota(progress):
        return kind().chain(Update(1, 10**6, 1, progress, 0))[0].quota

    assert [quota(p) for p in (0.0, 0.5, 1.0)] == [500_000, 252_500, 5_000]
    assert quota(0.25) == int((0.005 + 0.495 * (1 + 2**-0.5) / 2) * 10**6)
    curve = [quota(i / 50) for i in range(51)]
    assert curve == sorted(curve, reverse=True)


# Random: a function of (seed, step, name, flat index) alone


def by_hand(salt, index):
    """Steele et al. 2014, in Python integers."""
    word = (1 << 64) - 1
    z = (salt + index * 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


@given(st.integers(0, (1 << 64) - 1), st.integers(0, 10**12))
def test_random_scores_are_splitmix64(salt, index):
    signed = salt - (1 << 64) if salt >> 63 else salt
    assert splitmix64(torch.tensor([index]), signed).item() == by_hand(salt, index) & ((1 << 63) - 1)


def test_random_scores_never_change_from_one_version_to_the_next():
    """A checkpoint resumes to the same bits with a later version."""
    assert splitmix64(torch.arange(3), _salt(0, 1, "fc.weight")).tolist() == GOLDEN


GOLDEN = [8960387703414382588, 1682905016746144238, 544505450491661782]


def test_random_pruning_differs_by_seed_step_and_name_and_is_even():
    thetas = [torch.randn(40, 25), torch.randn(1000)]
    masks = [torch.ones(t.shape, dtype=torch.bool) for t in thetas]

    def by(seed, step):
        return pruned(fggp.Random(), thetas, [None, None], masks, 1000, seed=seed, step=step)

    first = by(0, 1)
    assert first == by(0, 1)
    # Two independent halves of 2000 weights share a quarter, about 500.
    assert all(400 < len(set(first) & set(other)) < 600 for other in (by(1, 1), by(0, 2)))
    positions = [[p for i, p in first if i == layer] for layer in (0, 1)]
    assert all(400 < len(p) < 600 for p in positions)
    assert 150 < len(set(positions[0]) & set(positions[1])) < 350


# Names, settings, custom methods


@pytest.mark.parametrize("name", helpers.GRADUAL)
def test_methods_go_by_name_and_are_made_again_from_their_settings(name):
    method = resolve(name)
    assert method.name == name
    assert REGISTRY[name](**method.settings()) == method
    assert resolve(method) is method


@pytest.mark.parametrize("bad", ["FGGP", "magnitude", "", None, 3, fggp.FGGP])
def test_an_unknown_method_is_refused(bad):
    with pytest.raises(ValueError, match=r"must be a fggp\.Method or one of 'fggp', 'gmp'") as error:
        resolve(bad)
    assert f"method={bad!r}" in str(error.value)


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("kind", "argument"),
    [
        (fggp.FGGP, "rate"),
        (fggp.MagnitudeFirst, "rate"),
        (fggp.GradientFirstAnnealed, "start"),
        (fggp.GradientFirstAnnealed, "end"),
        (fggp.MagnitudeFirstAnnealed, "start"),
        (fggp.MagnitudeFirstAnnealed, "end"),
    ],
)
def test_a_rate_that_is_no_share_is_refused(kind, argument, bad):
    with pytest.raises(ValueError, match=rf"{argument}={bad!r} must lie in \[0, 1\]"):
        kind(**{argument: bad})


@pytest.mark.parametrize("bad", ["0.5", None, [0.5]])
def test_a_rate_that_is_no_number_is_refused(bad):
    with pytest.raises(TypeError, match="rate="):
        fggp.FGGP(rate=bad)


position_last = Score("position, last first", lambda block: -block.position)


@dataclass(frozen=True)
class LargeLast(fggp.Method):
    """A custom method with a custom score: of the smaller half, the last ones by position."""

    name = "large-last"
    share: float = 0.5

    def chain(self, now):
        return [TopK(magnitude, max(now.excess, int(self.share * now.active))), TopK(position_last, now.excess)]


class TestCustomMethod:
    def test_it_prunes_as_it_says(self):
        model = helpers.mlp()
        optimizer = helpers.sgd(model, momentum=0)
        pruner = helpers.make_pruner(model, optimizer, 0.3, 0, 1, 1, method=LargeLast())
        before = torch.cat([w.detach().flatten() for w in helpers.prunable(model)])
        helpers.train(model, optimizer, 1)
        kept = torch.cat([m.flatten() for m in pruner.masks.values()])
        excess = len(before) - round(0.7 * len(before))
        smaller = before.abs().sort(stable=True).indices[: len(before) // 2]
        # flat index within the layer, the larger first, then parameter order
        place = [(-(i if i < 60 else i - 60), i) for i in smaller.tolist()]
        assert (~kept).nonzero().flatten().tolist() == sorted(i for _, i in sorted(place)[:excess])

    def test_its_state_is_resumed_and_refused_without_it(self):
        def make(method):
            model = helpers.mlp()
            optimizer = helpers.sgd(model)
            return model, optimizer, helpers.make_pruner(model, optimizer, method=method)

        model, optimizer, pruner = make(LargeLast(share=0.7))
        helpers.train(model, optimizer, 3)
        state = pruner.state_dict()
        *_, resumed = make(LargeLast(share=0.7))
        resumed.load_state_dict(state)
        assert resumed.method == LargeLast(share=0.7)
        assert helpers.identical(dict(resumed.masks), dict(pruner.masks))
        *_, other = make(fggp.FGGP())
        with pytest.raises(ValueError, match="saved with the method 'large-last'"):
            other.load_state_dict(state)
        assert other.method == fggp.FGGP()
        assert other.step == 0

    def test_its_hyper_parameters_are_restored(self):
        model = helpers.mlp()
        optimizer = helpers.sgd(model)
        pruner = helpers.make_pruner(model, optimizer, method=LargeLast(share=0.7))
        state = pruner.state_dict()
        pruner.method = LargeLast(share=0.2)
        pruner.load_state_dict(state)
        assert pruner.method == LargeLast(share=0.7)

    def test_one_that_inherits_a_built_in_name_stays_itself(self):
        @dataclass(frozen=True)
        class Mine(fggp.FGGP):
            def chain(self, now):
                return [TopK(magnitude, now.excess)]

        model = helpers.mlp()
        pruner = helpers.make_pruner(model, helpers.sgd(model), method=Mine(rate=0.3))
        pruner.load_state_dict(pruner.state_dict())
        assert type(pruner.method) is Mine

    @pytest.mark.parametrize(
        "wrong", [lambda n: [], lambda n: [TopK(magnitude, n + 1)], lambda n: [TopK(magnitude, 0)]]
    )
    def test_a_chain_that_would_miss_the_count_is_refused(self, wrong):
        class Wrong(fggp.Method):
            name = "wrong"

            def chain(self, now):
                return wrong(now.excess)

        model = helpers.mlp()
        optimizer = helpers.sgd(model)
        helpers.make_pruner(model, optimizer, method=Wrong(), every=1)
        helpers.backward(model, optimizer, 1)
        before = helpers.snapshot(model, optimizer)
        with pytest.raises(ValueError, match="'wrong'"):
            optimizer.step()
        assert helpers.identical(before, helpers.snapshot(model, optimizer))
