"""Selection picks exactly what the naive reference does, whatever the values, dtypes, layouts and block sizes."""

import math

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import nn

from cases import KEYS, SCORES, expected_marks, quotas
from fggp import TopK
from fggp.scores import Score, gradient, magnitude, random, saliency
from fggp.selection import bracket, chains, kth, passes
from fggp.weights.gradients import Gradients
from fggp.weights.layers import Layout, flatten
from helpers import identical
from tensors import laid_out, layouts, models, prunables, shapes, values

# (BLOCK_SIZE, SAMPLE_SIZE): the real values, and small ones: tiny tensors have several blocks and brackets that miss.
SIZES = [(passes.BLOCK_SIZE, bracket.SAMPLE_SIZE), (7, 1 << 17), (5, 16), (3, 4), (64, 1)]


@pytest.fixture(params=SIZES, ids=lambda s: f"block={s[0]}-sample={s[1]}")
def sizes(request, monkeypatch):
    monkeypatch.setattr(passes, "BLOCK_SIZE", request.param[0])
    monkeypatch.setattr(bracket, "SAMPLE_SIZE", request.param[1])
    monkeypatch.setattr(kth, "DIRECT_SEARCH_MAX", request.param[0])
    monkeypatch.setattr(kth, "REFINING_SAMPLE_SIZE", max(1, request.param[0] // 2))


def run(thetas, grads, masks, chain):
    """Run a chain on tensors and return the marks in logical order."""
    weights = prunables(thetas, grads)
    layers = flatten(weights, Gradients.of_this_step(weights))
    active = [layer.layout.flat(m).clone() for layer, m in zip(layers, masks, strict=True)]
    before = [m.clone() for m in active]
    marks = chains.run_chain(layers, active, chain)
    assert identical(before, active)
    assert not any((m & ~a).any() for m, a in zip(marks, active, strict=True))
    assert sum(int(m.sum()) for m in marks) == chain[-1].quota
    return [layer.layout.shaped(m) for layer, m in zip(layers, marks, strict=True)]


@pytest.mark.usefixtures("sizes")
class TestAgainstTheReference:
    @given(model=models(), data=st.data())
    def test_any_chain_of_steps(self, model, data):
        thetas, grads, masks = zip(*model, strict=True)
        names = data.draw(st.lists(st.sampled_from(["magnitude", "gradient"]), min_size=1, max_size=3))
        chain = list(zip(names, quotas(data, sum(int(m.sum()) for m in masks), len(names)), strict=True))
        expected = expected_marks(thetas, grads, masks, chain)
        thetas = [data.draw(layouts(t)) for t in thetas]
        grads = [g if g is None else data.draw(layouts(g)) for g in grads]
        assert identical(run(thetas, grads, masks, [TopK(SCORES[n], q) for n, q in chain]), expected)

    @given(model=models(infinite=False), data=st.data())
    def test_saliency(self, model, data):
        thetas, grads, masks = zip(*model, strict=True)
        (k,) = quotas(data, sum(int(m.sum()) for m in masks), 1)
        expected = expected_marks(thetas, grads, masks, [("saliency", k)])
        assert identical(run(thetas, grads, masks, [TopK(saliency, k)]), expected)

    @given(st.integers(1, 300), st.integers(1, 6), st.data())
    def test_every_k_of_one_long_tensor(self, n, spread, data):
        generator = torch.Generator().manual_seed(n)
        theta = torch.randint(-spread, spread + 1, (n,), generator=generator).float()
        grad = torch.randint(-1, 2, (n,), generator=generator).float()
        mask = torch.rand(n, generator=generator) < 0.9
        (k,) = quotas(data, int(mask.sum()), 1)
        for name in KEYS:
            expected = expected_marks([theta], [grad], [mask], [(name, k)])
            assert identical(run([theta], [grad], [mask], [TopK(SCORES[name], k)]), expected)


@given(model=models(), data=st.data())
def test_the_result_is_the_same_for_every_layout(model, data):
    thetas, grads, masks = zip(*model, strict=True)
    count = sum(int(m.sum()) for m in masks)
    first, second = quotas(data, count, 2)
    chain = [TopK(gradient, first), TopK(magnitude, second)]
    expected = run(thetas, grads, masks, chain)
    other_thetas = [data.draw(layouts(t)) for t in thetas]
    other_grads = [g if g is None else data.draw(layouts(g)) for g in grads]
    assert identical(run(other_thetas, grads, masks, chain), expected)
    assert identical(run(thetas, other_grads, masks, chain), expected)
    assert identical(run(other_thetas, other_grads, masks, chain), expected)


@given(model=models(infinite=False), data=st.data())
def test_random_scores_are_the_same_for_every_layout(model, data):
    thetas, grads, masks = zip(*model, strict=True)
    (k,) = quotas(data, sum(int(m.sum()) for m in masks), 1)
    chain = [TopK(random(3, 5), k)]
    assert identical(
        run([data.draw(layouts(t)) for t in thetas], grads, masks, chain), run(thetas, grads, masks, chain)
    )


@pytest.mark.parametrize("format_", [torch.channels_last, torch.channels_last_3d], ids=str)
def test_channels_last(format_):
    shape = (6, 5, 3, 3) if format_ is torch.channels_last else (4, 5, 3, 2, 3)
    torch.manual_seed(0)
    theta, grad = torch.randint(-3, 4, shape).float(), torch.randint(-1, 2, shape).float()
    mask = torch.rand(shape) < 0.8
    chain = [("gradient", 100), ("magnitude", 41)]
    expected = expected_marks([theta], [grad], [mask], chain)
    chain = [TopK(SCORES[n], q) for n, q in chain]
    for t in (theta, theta.to(memory_format=format_)):
        for g in (grad, grad.to(memory_format=format_)):
            assert identical(run([t], [g], [mask], chain), expected)


def test_an_expanded_gradient():
    theta = torch.randn(5, 4)
    grad = torch.tensor([2.0, 1.0, 0.0, 1.0]).expand(5, 4)
    mask = torch.ones(5, 4, dtype=torch.bool)
    assert identical(
        run([theta], [grad], [mask], [TopK(gradient, 7)]), expected_marks([theta], [grad], [mask], [("gradient", 7)])
    )


def test_a_sparse_gradient():
    table = nn.Embedding(6, 4, sparse=True)
    table(torch.tensor([1, 1, 4])).pow(2).sum().backward()
    grad, mask = table.weight.grad, torch.ones(6, 4, dtype=torch.bool)
    assert grad.layout == torch.sparse_coo
    theta = table.weight.detach()
    for k in (3, 17, 20):
        assert identical(
            run([theta], [grad], [mask], [TopK(gradient, k)]),
            expected_marks([theta], [grad], [mask], [("gradient", k)]),
        )


@pytest.mark.usefixtures("sizes")
def test_empty_tensors_take_no_part():
    thetas = [torch.zeros(0, 3), torch.arange(8.0).view(2, 4), torch.zeros(2, 0, 3)]
    masks = [torch.ones(t.shape, dtype=torch.bool) for t in thetas]
    for score in (magnitude, gradient, random(0, 1)):
        marks = run(thetas, thetas, masks, [TopK(score, 3)])
        assert [int(m.sum()) for m in marks] == [0, 3, 0]


def test_ties_are_ranked_by_parameter_order_then_flat_index():
    thetas = [torch.ones(2, 2), -torch.ones(3)]
    masks = [torch.ones(t.shape, dtype=torch.bool) for t in thetas]
    for order in ((0, 1), (1, 0)):
        permuted = [laid_out(thetas[0], order, gaps=False), thetas[1]]
        first, second = run(permuted, [None, None], masks, [TopK(magnitude, 3)])
        assert first.tolist() == [[True, True], [True, False]]
        assert second.tolist() == [False] * 3
        first, second = run(permuted, [None, None], masks, [TopK(magnitude, 5)])
        assert first.all()
        assert second.tolist() == [True, False, False]


def test_equal_gradients_are_ranked_by_magnitude():
    theta, grad = torch.tensor([3.0, -1.0, 2.0, 0.5]), torch.tensor([0.0, -0.0, 0.0, 1.0])
    (marks,) = run([theta], [grad], [torch.ones(4, dtype=torch.bool)], [TopK(gradient, 2)])
    assert marks.tolist() == [False, True, True, False]


def test_half_and_double_precision_are_ranked_without_rounding():
    # 1 + 2⁻⁴⁰ is 1 as a float32, and 1 − 2⁻⁹ is 1 as a bfloat16: neither may be rounded.
    thetas = [
        torch.tensor([1 + 2**-40], dtype=torch.float64),
        torch.tensor([1.0], dtype=torch.bfloat16),
        torch.tensor([1 - 2**-9], dtype=torch.float16),
    ]
    masks = [torch.ones(1, dtype=torch.bool)] * 3
    assert [m.item() for m in run(thetas, [None] * 3, masks, [TopK(magnitude, 1)])] == [False, False, True]
    assert [m.item() for m in run(thetas, [None] * 3, masks, [TopK(magnitude, 2)])] == [False, True, True]


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("nans", [1, 20, 39])
def test_nan_ranks_last_and_is_never_selected(nans):
    generator = torch.Generator().manual_seed(nans)
    theta = torch.randn(40, generator=generator)
    theta[torch.randperm(40, generator=generator)[:nans]] = math.nan
    mask = torch.ones(40, dtype=torch.bool)
    for k in range(1, 40 - nans + 1):
        (marks,) = run([theta], [None], [mask], [TopK(magnitude, k)])
        assert not theta[marks].isnan().any()
        assert sorted(theta[marks].abs().tolist()) == sorted(theta[~theta.isnan()].abs().tolist())[:k]
    if nans > 1:
        with pytest.raises(ValueError, match=f"'magnitude' is NaN for {nans} of the 40 weights"):
            run([theta], [None], [mask], [TopK(magnitude, 40 - nans + 1)])


@pytest.mark.usefixtures("sizes")
def test_infinite_scores_of_either_sign_are_ranked():
    theta = torch.tensor([3.0, -math.inf, math.inf, 0.0, -math.inf, 1.0] * 4)
    signed = Score("signed", lambda block: block.weight)
    order = sorted(range(24), key=lambda i: (theta[i].item(), i))
    for k in range(25):
        (marks,) = run([theta], [None], [torch.ones(24, dtype=torch.bool)], [TopK(signed, k)])
        assert marks.nonzero().flatten().tolist() == sorted(order[:k])


@pytest.mark.parametrize("k", [-1, 7])
def test_a_quota_that_cannot_be_met_is_refused(k):
    layers = flatten(prunables([torch.randn(6)], [None]))
    marks = [torch.ones(6, dtype=torch.bool)]
    with pytest.raises(ValueError, match=rf"k={k} must lie in \[0, 6\]"):
        chains.select_smallest(layers, marks, 6, magnitude, k)
    assert marks[0].all()


def test_a_bracket_that_misses_does_not_change_the_result(monkeypatch):
    """A first bracket that is above the k-th score, below it, or ends at it."""
    theta = torch.cat([torch.zeros(500), torch.linspace(1, 2, 500)])
    mask = torch.ones(1000, dtype=torch.bool)
    real_bracket = kth._bracket
    for misleading in ((1.5, 1.6), (1.1, 1.2), (0.0, 1.0), (1.9, math.inf), (-math.inf, 0.0), (-math.inf, -1.0)):
        calls = []

        def mislead_once(*args, calls=calls, misleading=misleading):
            calls.append(args)
            return misleading if len(calls) == 1 else real_bracket(*args)

        monkeypatch.setattr(kth, "_bracket", mislead_once)
        monkeypatch.setattr(bracket, "SAMPLE_SIZE", 1)
        for k in (1, 499, 500, 501, 620, 800, 999):
            calls.clear()
            expected = expected_marks([theta], [None], [mask], [("magnitude", k)])
            assert identical(run([theta], [None], [mask], [TopK(magnitude, k)]), expected)


@pytest.mark.parametrize("ties", [False, True])
def test_a_million_weights_with_the_real_constants(ties):
    """Enough weights for a sample and for several blocks in a layer."""
    torch.manual_seed(0)
    sizes = [(600, 1000), (64, 128, 7, 7), (300,)]
    thetas, grads = [torch.randn(s) for s in sizes], [torch.randn(s) for s in sizes]
    if ties:
        thetas, grads = [t.mul(20).round() for t in thetas], [g.relu() for g in grads]
    masks = [torch.rand(s) < 0.9 for s in sizes]
    total = sum(int(m.sum()) for m in masks)
    assert total > 2 * max(passes.BLOCK_SIZE, bracket.SAMPLE_SIZE)
    # sorted() over a million tuples takes seconds, so a stable lexicographic sort stands in for it here
    g, t, m = (torch.cat([x.flatten() for x in xs]) for xs in (grads, thetas, masks))
    where = m.nonzero().flatten()

    def smallest(index, k, *keys):
        for key in reversed(keys):
            index = index[key[index].sort(stable=True).indices]
        return index[:k].sort().values

    k, n = total // 2, total // 20
    candidates = smallest(where, k, g.abs(), t.abs())
    chosen = smallest(candidates, n, t.abs())
    permuted = [thetas[0].T.contiguous().T, thetas[1].to(memory_format=torch.channels_last), thetas[2]]
    marks = run(permuted, grads, masks, [TopK(gradient, k), TopK(magnitude, n)])
    assert torch.equal(torch.cat([x.reshape(-1) for x in marks]).nonzero().flatten(), chosen)


@given(values((40,), torch.float32), st.integers(0, 40))
@example(torch.zeros(40), 20)
def test_selection_leaves_weights_gradients_and_the_global_generator_alone(theta, k):
    grad = theta.flip(0).clone()
    before = theta.clone(), grad.clone(), torch.get_rng_state()
    run([theta], [grad], [torch.ones(40, dtype=torch.bool)], [TopK(gradient, 30), TopK(random(1, 2), min(k, 30))])
    assert identical(before, (theta, grad, torch.get_rng_state()))


# The layout that makes it free


@given(st.data())
def test_layout_maps_memory_order_to_logical_positions_and_back(data):
    shape = data.draw(shapes())
    logical = torch.arange(math.prod(shape), dtype=torch.float64).view(shape)
    tensor = data.draw(layouts(logical))
    layout = Layout.of_mask(tensor)
    flat = layout.flat(tensor)
    assert flat.shape == (tensor.numel(),)
    assert torch.equal(layout.position(torch.arange(len(flat))), flat.long())
    assert torch.equal(layout.shaped(flat.contiguous()), logical)
    mask = torch.empty_like(tensor, dtype=torch.bool)
    assert layout.flat(mask).data_ptr() == mask.data_ptr()


@given(st.data())
def test_a_dense_tensor_is_read_in_place_whatever_its_order(data):
    shape = data.draw(shapes())
    assume(math.prod(shape) > 1)
    tensor = laid_out(torch.randn(shape), data.draw(st.permutations(range(len(shape)))), gaps=False)
    assert Layout.of_mask(tensor).flat(tensor).data_ptr() == tensor.data_ptr()
