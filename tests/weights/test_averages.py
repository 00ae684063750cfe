"""Running averages of gradients: compared with a plain loop, resumed, and refused if they are wrong."""

import copy
import io
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

import fggp
import helpers
import reference
from fggp.model.find import find_prunable
from fggp.weights.averages import Averages
from helpers import Running


def by_hand(averages, parameters, decay):
    """a ← decay·a + (1 − decay)·|g|, in doubles."""
    for name, parameter in parameters.items():
        size = 0 if parameter.grad is None else parameter.grad.double().abs()
        averages[name] = decay * averages.get(name, 0) + (1 - decay) * size


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_updates_rank_by_the_average(dtype, memory_format):
    model = helpers.convnet().to(dtype=dtype, memory_format=memory_format)
    optimizer = helpers.sgd(model)
    pruner = fggp.Pruner(model, optimizer, 0.9, begin=2, end=6, every=2, method=Running())
    parameters = {name: p for name, p in model.named_parameters() if name in pruner.masks}
    averages, updates = {}, 0
    for t in range(1, 8):
        optimizer.zero_grad()
        helpers.loss_of(model, t).backward()
        before = {name: mask.clone() for name, mask in pruner.masks.items()}
        weights = {name: p.detach().clone() for name, p in parameters.items()}
        if t <= 6:  # after the last update nothing is averaged
            by_hand(averages, parameters, 0.8)
        optimizer.step()
        kept = helpers.averages_of(pruner, "size")
        for name, average in averages.items():
            torch.testing.assert_close(kept[name].double(), average, rtol=1e-5, atol=1e-9)
        if pruner.last_update != t:
            continue
        updates += 1
        # Rank by the kept averages, whose rounding the comparison above allows: it may decide ties.
        layers = list(parameters)
        active = reference.weights_of(
            [weights[n] for n in layers], [kept[n] for n in layers], [before[n] for n in layers]
        )
        excess = sum(map(int, (mask.sum() for mask in before.values()))) - sum(
            int(mask.sum()) for mask in pruner.masks.values()
        )
        gone = reference.choose(("fggp", 0.5), active, excess)
        for layer, name in enumerate(layers):
            left = before[name].reshape(-1).clone()
            left[[w.position for w in gone if w.layer == layer]] = False
            assert torch.equal(left.view(before[name].shape), pruner.masks[name]), (t, name)
    assert updates == 2


@given(
    gradients=st.lists(
        st.one_of(st.none(), st.lists(st.floats(width=32), min_size=3, max_size=3)), min_size=1, max_size=6
    ),
    decay=st.floats(0, 0.99),
    scale=st.sampled_from([1.0, 1024.0]),
)
@example(gradients=[[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]], decay=2.220446049250313e-16, scale=1.0)
def test_missing_and_infinite_gradients_count_as_zero(gradients, decay, scale):
    model = torch.nn.Linear(3, 1, bias=False)
    weights = find_prunable(model)
    averages = Averages([fggp.Average("size", torch.abs, decay)])
    expected = torch.zeros(1, 3, dtype=torch.float64)
    largest = 0.0  # rounding is relative to it, even after a small decay has forgotten it
    for gradient in gradients:
        model.weight.grad = None if gradient is None else torch.tensor([gradient])
        averages.update(weights, [scale])
        size = torch.zeros(1, 3) if gradient is None else (model.weight.grad / scale).abs()
        seen = torch.where(size.isfinite(), size, 0).double()
        largest = max(largest, float(seen.max()))
        expected = decay * expected + (1 - decay) * seen
    found = averages.of(weights[0])["size"]
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6 * largest + 1e-30)


def run(seed=0):
    model = helpers.convnet(seed)
    optimizer = helpers.sgd(model)
    return model, optimizer, fggp.Pruner(model, optimizer, 0.9, begin=0, end=8, every=2, method=Running())


def state(parts):
    buffer = io.BytesIO()
    torch.save([part.state_dict() for part in parts], buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_a_run_that_goes_back_is_the_unbroken_one():
    unbroken, again = run(), run()
    helpers.train(*unbroken[:2], range(1, 10))
    helpers.train(*again[:2], range(1, 3))
    saved = state(again)
    helpers.train(*again[:2], range(3, 8))
    for part, own in zip(again, saved, strict=True):
        part.load_state_dict(own)
    helpers.train(*again[:2], range(3, 10))
    assert helpers.identical(again[2].state_dict(), unbroken[2].state_dict())


@pytest.mark.parametrize("stop", [0, 1, 4, 8])
def test_a_resumed_run_is_the_unbroken_one(stop):
    unbroken, resumed = run(), run(seed=5)
    helpers.train(*unbroken[:2], range(1, stop + 1))
    saved = state(unbroken)
    helpers.train(*unbroken[:2], range(stop + 1, 10))
    for part, own in zip(resumed, saved, strict=True):
        part.load_state_dict(own)
    helpers.train(*resumed[:2], range(stop + 1, 10))
    for mine, theirs in zip(state(resumed), state(unbroken), strict=True):
        assert helpers.identical(mine, theirs)


def test_a_saved_state_is_not_written_to_by_later_steps():
    model, optimizer, pruner = run()
    helpers.train(model, optimizer, range(1, 3))
    saved = pruner.state_dict()
    before = copy.deepcopy(saved)
    helpers.train(model, optimizer, range(3, 5))
    assert helpers.identical(saved, before)


def damage(state, kind):
    averages = state["averages"]
    name = next(iter(averages))
    if kind == "none":
        del state["averages"]
    elif kind == "a weight's":
        del averages[name]
    elif kind == "one":
        del averages[name]["size"]
    elif kind == "another shape":
        averages[name]["size"] = averages[name]["size"][:1]
    else:
        averages[name]["size"] = averages[name]["size"].long()


@pytest.mark.parametrize("kind", ["none", "a weight's", "one", "another shape", "of ints"])
def test_a_state_without_all_averages_is_refused_and_changes_nothing(kind):
    model, optimizer, pruner = run()
    helpers.train(model, optimizer, range(1, 4))
    before, damaged = pruner.state_dict(), pruner.state_dict()
    damage(damaged, kind)
    with pytest.raises(ValueError, match=r"damaged|average"):
        pruner.load_state_dict(damaged)
    assert helpers.identical(pruner.state_dict(), before)


def test_methods_without_averages_store_none_and_read_states_from_before_there_were_any():
    model = helpers.convnet()
    pruner = helpers.make_pruner(model, helpers.sgd(model))
    state = pruner.state_dict()
    assert state.pop("averages") == {}
    pruner.load_state_dict(state)


def test_a_score_of_an_average_that_is_not_kept_says_so():
    @dataclass(frozen=True)
    class Forgetful(Running):
        name = "forgetful"

        def averages(self):
            return ()

    model = helpers.convnet()
    optimizer = helpers.sgd(model)
    fggp.Pruner(model, optimizer, 0.9, begin=0, end=2, every=1, method=Forgetful())
    with pytest.raises(ValueError, match=r"average 'size'.*averages\(\)"):
        helpers.train(model, optimizer, range(1, 2))


def test_averages_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"decay=1 .*\[0, 1\)"):
        fggp.Average("size", torch.abs, 1)
    with pytest.raises(ValueError, match="two averages named 'size'"):
        Averages([fggp.Average("size", torch.abs, 0.5)] * 2)


def test_averages_follow_a_weight_that_is_converted():
    model, optimizer, pruner = run()
    helpers.train(model, optimizer, range(1, 2))
    model.double()
    size = next(iter(helpers.averages_of(pruner, "size").values()))
    assert size.dtype == torch.float64
    assert size.count_nonzero()
