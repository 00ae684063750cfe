"""The selection for a GPU keeps the same weights as on a CPU, and more layers cause no more waits of the host.

It runs on the CPU here, and also on a GPU if there is one.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

import fggp
from cases import KEYS, SCORES, expected_marks, quotas
from fggp import TopK
from fggp.scores import Score, gradient, magnitude, random
from fggp.selection import bracket, chains, one_gpu
from fggp.weights.gradients import Gradients
from fggp.weights.layers import flatten
from helpers import identical
from tensors import laid_out, layouts, models, prunables

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]

# (SAMPLE_SIZE, TIE_SORT_MAX): the real values, and small ones that give brackets, misses and many ties in tiny tensors.
SIZES = [(bracket.SAMPLE_SIZE, one_gpu.TIE_SORT_MAX), (16, 1 << 20), (4, 0), (1, 3)]


@pytest.fixture(params=SIZES, ids=lambda s: f"sample={s[0]}-ties={s[1]}")
def sizes(request, monkeypatch):
    monkeypatch.setattr(bracket, "SAMPLE_SIZE", request.param[0])
    monkeypatch.setattr(one_gpu, "TIE_SORT_MAX", request.param[1])


@pytest.fixture(autouse=True)
def use_the_selection_for_a_gpu(monkeypatch):
    monkeypatch.setattr(chains, "_on_one_gpu", lambda tensors: True)


def run(thetas, grads, masks, chain, device="cpu"):
    """Run a chain and return the marks in logical order, on the CPU."""
    weights = prunables([t.to(device) for t in thetas], [g if g is None else g.to(device) for g in grads])
    layers = flatten(weights, Gradients.of_this_step(weights))
    active = [layer.layout.flat(m.to(device)).clone() for layer, m in zip(layers, masks, strict=True)]
    before = [m.clone() for m in active]
    marks = chains.run_chain(layers, active, chain)
    assert identical([m.cpu() for m in before], [m.cpu() for m in active])
    assert sum(int(m.sum()) for m in marks) == chain[-1].quota
    return [layer.layout.shaped(m).cpu() for layer, m in zip(layers, marks, strict=True)]


@pytest.mark.usefixtures("sizes")
@pytest.mark.parametrize("device", DEVICES)
class TestAgainstTheReference:
    @given(model=models(), data=st.data())
    def test_any_chain_of_steps(self, device, model, data):
        thetas, grads, masks = zip(*model, strict=True)
        names = data.draw(st.lists(st.sampled_from(["magnitude", "gradient"]), min_size=1, max_size=3))
        chain = list(zip(names, quotas(data, sum(int(m.sum()) for m in masks), len(names)), strict=True))
        expected = expected_marks(thetas, grads, masks, chain)
        thetas = [data.draw(layouts(t)) for t in thetas]
        grads = [g if g is None else data.draw(layouts(g)) for g in grads]
        assert identical(run(thetas, grads, masks, [TopK(SCORES[n], q) for n, q in chain], device), expected)

    @given(st.integers(1, 300), st.integers(1, 6), st.data())
    def test_every_k_of_one_long_tensor(self, device, n, spread, data):
        generator = torch.Generator().manual_seed(n)
        theta = torch.randint(-spread, spread + 1, (n,), generator=generator).float()
        grad = torch.randint(-1, 2, (n,), generator=generator).float()
        mask = torch.rand(n, generator=generator) < 0.9
        (k,) = quotas(data, int(mask.sum()), 1)
        for name in KEYS:
            expected = expected_marks([theta], [grad], [mask], [(name, k)])
            assert identical(run([theta], [grad], [mask], [TopK(SCORES[name], k)], device), expected)

    def test_integer_scores_of_any_size(self, device):
        generator = torch.Generator().manual_seed(0)
        thetas = [torch.zeros(4, 30), torch.zeros(50)]
        masks = [torch.rand(t.shape, generator=generator) < 0.8 for t in thetas]
        count = sum(int(m.sum()) for m in masks)
        score = random(3, 5)
        for k in range(0, count + 1, 7):
            marks = run(thetas, [None] * 2, masks, [TopK(score, k)], device)
            layers = flatten(prunables(thetas, [None] * 2))
            ranked = [
                (value, layer.name, position)
                for layer, mask in zip(layers, masks, strict=True)
                for position, value in enumerate(score.of(layer.block(0, len(layer))).tolist())
                if mask.reshape(-1)[position]
            ]
            chosen = [
                (name, i)
                for name, m in zip(("w0", "w1"), marks, strict=True)
                for i in m.reshape(-1).nonzero().flatten().tolist()
            ]
            assert sorted(chosen) == sorted((name, i) for _, name, i in sorted(ranked)[:k])

    @pytest.mark.parametrize("nans", [1, 20, 39])
    def test_nan_ranks_last_and_is_never_selected(self, device, nans):
        generator = torch.Generator().manual_seed(nans)
        theta = torch.randn(40, generator=generator)
        theta[torch.randperm(40, generator=generator)[:nans]] = math.nan
        mask = torch.ones(40, dtype=torch.bool)
        for k in range(1, 40 - nans + 1):
            (marks,) = run([theta], [None], [mask], [TopK(magnitude, k)], device)
            assert not theta[marks].isnan().any()
            assert sorted(theta[marks].abs().tolist()) == sorted(theta[~theta.isnan()].abs().tolist())[:k]
        if nans > 1:
            with pytest.raises(ValueError, match=f"'magnitude' is NaN for {nans} of the 40 weights"):
                run([theta], [None], [mask], [TopK(magnitude, 40 - nans + 1)], device)

    def test_infinite_scores_of_either_sign_are_ranked(self, device):
        theta = torch.tensor([3.0, -math.inf, math.inf, 0.0, -math.inf, 1.0] * 4)
        signed = Score("signed", lambda block: block.weight)
        order = sorted(range(24), key=lambda i: (theta[i].item(), i))
        for k in range(25):
            (marks,) = run([theta], [None], [torch.ones(24, dtype=torch.bool)], [TopK(signed, k)], device)
            assert marks.nonzero().flatten().tolist() == sorted(order[:k])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("ties", [False, True])
def test_a_million_weights_as_the_cpu_picks_them(device, ties, monkeypatch):
    torch.manual_seed(0)
    sizes = [(600, 1000), (64, 128, 7, 7), (300,)]
    thetas, grads = [torch.randn(s) for s in sizes], [torch.randn(s) for s in sizes]
    if ties:
        thetas, grads = [t.mul(20).round() for t in thetas], [g.relu() for g in grads]
    thetas[0], thetas[1] = laid_out(thetas[0], (1, 0), gaps=False), thetas[1].to(memory_format=torch.channels_last)
    masks = [torch.rand(s) < 0.9 for s in sizes]
    total = sum(int(m.sum()) for m in masks)
    assert total > 2 * bracket.SAMPLE_SIZE
    chain = [TopK(gradient, total // 2), TopK(magnitude, total // 20)]
    found = run(thetas, grads, masks, chain, device)
    monkeypatch.setattr(chains, "_on_one_gpu", lambda tensors: False)
    assert identical(found, run(thetas, grads, masks, chain))


class Waits(TorchDispatchMode):
    """Count what makes the host wait for a GPU: every size or number that depends on the values of tensors."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count = 0
        tolist = torch.Tensor.tolist

        def counted(tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        booleans = name.startswith("index") and any(
            t is not None and t.dtype == torch.bool for t in (args[1] if isinstance(args[1], list | tuple) else [])
        )
        if booleans or name in ("_local_scalar_dense", "nonzero", "masked_select", "bincount", "unique", "equal"):
            self.count += 1
        return func(*args, **(kwargs or {}))


def update_waits(monkeypatch, layers, width, ties=False):
    """How often the host waits during one update of FGGP."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(width, width) for _ in range(layers)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, foreach=True)
    fggp.Pruner(model, optimizer, sparsity=0.9, begin=0, end=2, every=1)
    for p in model.parameters():
        p.grad = torch.randn_like(p).relu() if ties else torch.randn_like(p)
    with monkeypatch.context() as patch, Waits(patch) as waits:
        optimizer.step()
    return waits.count


@pytest.mark.parametrize("ties", [False, True])
def test_the_number_of_waits_does_not_depend_on_the_number_or_size_of_layers(monkeypatch, ties):
    monkeypatch.setattr(bracket, "SAMPLE_SIZE", 500)
    few = update_waits(monkeypatch, 2, 20, ties)
    many = update_waits(monkeypatch, 12, 100, ties)
    # Two Top-K steps of 3, of 3 more where weights tie; whether gradients are zero and finite, the count before and the
    # count after; and, at the first step alone, whether the weights have strange zeros.
    # (Making the index of the layers on a GPU is the third wait of a tie, and is not seen here.)
    assert few <= many <= 11 + 4 * ties


def test_a_bracket_that_misses_does_not_change_the_result(monkeypatch):
    """A first bracket that is above the k-th score, below it, or ends at it; one is empty, as of a sample of ties."""
    theta = torch.cat([torch.zeros(500), torch.linspace(1, 2, 500)])
    mask = torch.ones(1000, dtype=torch.bool)
    real_bracket = one_gpu._bracket
    exact = theta.tolist()
    for misleading in (
        *((1.5, 1.6), (1.1, 1.2), (0.0, 1.0), (0.0, 0.0), (1.0, 1.0)),
        *((1.9, math.inf), (-math.inf, 0.0), (exact[600], exact[800])),
    ):
        calls = []

        def mislead_once(*args, calls=calls, misleading=misleading):
            calls.append(args)
            return misleading if len(calls) == 1 else real_bracket(*args)

        monkeypatch.setattr(one_gpu, "_bracket", mislead_once)
        for k in (1, 499, 500, 501, 600, 601, 602, 620, 800, 801, 802, 999):
            calls.clear()
            expected = expected_marks([theta], [None], [mask], [("magnitude", k)])
            assert identical(run([theta], [None], [mask], [TopK(magnitude, k)]), expected)
            assert len(calls) <= 2
