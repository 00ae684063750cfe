"""state_dict: a resumed run has the same bits as an unbroken one; a damaged state changes nothing."""

import copy
import io
import math
import warnings

import pytest
import torch

import fggp
import helpers
from helpers import identical


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def everything(model, optimizer, pruner):
    """The states of model, optimizer and pruner, and the masks."""
    return copy.deepcopy([model.state_dict(), optimizer.state_dict(), pruner.state_dict(), dict(pruner.masks)])


def adam(model):
    return torch.optim.Adam(model.parameters(), lr=0.01)


CONFIGURATIONS = {
    "default": (helpers.sgd, {}),
    "adam": (adam, {}),
    "layer scope": (helpers.sgd, {"scope": "layer"}),
    "sparse start": (adam, {"init_sparsity": 0.5, "begin": 1, "end": 7, "every": 3}),
    "uniform, layer": (helpers.sgd, {"init_sparsity": 0.3, "init": "uniform", "scope": "layer", "seed": 4}),
    "random": (helpers.sgd, {"method": "random", "seed": 9}),
    "annealed": (helpers.sgd, {"method": "gradient-first-annealed", "every": 1}),
    "granet": (adam, {"method": fggp.GraNet(total_steps=9), "init_sparsity": 0.5}),
    "rigl": (helpers.sgd, {"method": "rigl", "every": 1}),
    "set": (helpers.sgd, {"method": "set", "seed": 3}),
    "linear": (helpers.sgd, {"method": fggp.FGGP(rate=0.2), "schedule": fggp.linear, "every": 1}),
}
STEPS = 9
POISONED = (2, 6)  # postponed to 3 and 7


def step(model, optimizer, t, poisoned):
    if t in poisoned:
        helpers.poison(model, optimizer, t)
        with warnings.catch_warnings(), helpers.not_learning(optimizer):
            warnings.simplefilter("ignore", RuntimeWarning)
            optimizer.step()
        # remove the NaNs from the optimizer's state, which are not tested here
        for state in optimizer.state.values():
            for value in state.values():
                value.nan_to_num_(0)
    else:
        helpers.train(model, optimizer, range(t, t + 1))


@pytest.mark.parametrize("order", ["model, optimizer, pruner", "pruner, optimizer, model"])
@pytest.mark.parametrize("poisoned", [(), POISONED], ids=["", "postponed"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_resumed_anywhere_is_the_unbroken_one(name, poisoned, order):
    make_optimizer, options = CONFIGURATIONS[name]

    def make(seed):
        model = helpers.convnet(seed)
        optimizer = make_optimizer(model)
        return model, optimizer, helpers.make_pruner(model, optimizer, **options)

    run = make(0)
    saved, unbroken = [through_a_file(everything(*run)[:3])], []
    for t in range(1, STEPS + 1):
        step(*run[:2], t, poisoned)
        saved.append(through_a_file(everything(*run)[:3]))
        unbroken.append(everything(*run))

    for split in range(STEPS):
        resumed = make(1)  # from other weights
        parts = list(zip(resumed, copy.deepcopy(saved[split]), strict=True))
        for part, state in parts if order.startswith("model") else reversed(parts):
            part.load_state_dict(state)
        for t in range(split + 1, STEPS + 1):
            step(*resumed[:2], t, poisoned)
            assert identical(everything(*resumed), unbroken[t - 1]), (split, t)


def test_weights_and_optimizer_state_are_zero_when_a_state_has_been_loaded():
    *_, pruner = make_run()
    state = pruner.state_dict()
    dense = helpers.convnet(seed=4)
    dense_optimizer = helpers.sgd(dense)
    helpers.train(dense, dense_optimizer, 2)
    fresh = helpers.make_pruner(dense, dense_optimizer)
    fresh.load_state_dict(state)
    assert fresh.sparsity == pruner.sparsity > 0
    helpers.assert_exactly_zero(fresh, dense_optimizer)


def make_run(steps=5, make=helpers.convnet, **options):
    model = make()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, **options)
    helpers.train(model, optimizer, steps)
    return model, optimizer, pruner


@pytest.mark.parametrize("method", [*helpers.GRADUAL, "rigl", "set"])
def test_every_setting_is_restored_through_a_file(method):
    _, _, pruner = make_run(
        method=method,
        sparsity=0.9,
        begin=1,
        end=9,
        every=2,
        init_sparsity=0.25,
        scope="layer",
        seed=12,
        schedule=fggp.linear,
    )
    _, _, other = make_run(0)
    with pytest.warns(UserWarning, match=r"sparsity=0\.8; the state that it goes on with has 0\.9"):
        other.load_state_dict(through_a_file(pruner.state_dict()))
    assert other.method == pruner.method
    assert other.schedule == pruner.schedule
    assert (other.scope, other.seed, other.step, other.last_update) == ("layer", 12, 5, 5)
    assert identical(dict(other.masks), dict(pruner.masks))
    assert identical(other.state_dict(), pruner.state_dict())
    assert repr(other) == repr(pruner)


def test_masks_take_one_bit_a_weight():
    _, _, pruner = make_run()
    packed = pruner.state_dict()["masks"]
    assert {name: p.numel() for name, p in packed.items()} == {
        name: math.ceil(n / 8) for name, n in helpers.CONVNET_WEIGHTS.items()
    }
    assert all(p.dtype == torch.uint8 for p in packed.values())


def test_numpy_numbers_are_saved_as_plain_ones():
    np = pytest.importorskip("numpy")
    _, _, pruner = make_run(
        sparsity=np.float64(0.8), init_sparsity=np.float64(0.1), method=fggp.FGGP(rate=np.float64(0.3))
    )
    assert identical(through_a_file(pruner.state_dict()), pruner.state_dict())


def test_a_saved_state_is_a_snapshot():
    model, optimizer, pruner = make_run(3)
    state = pruner.state_dict()
    kept = copy.deepcopy(state)
    helpers.train(model, optimizer, range(4, 8))
    assert identical(state, kept)
    pruner.load_state_dict(state)
    helpers.train(model, optimizer, range(4, 8))
    assert identical(state, kept)


def test_the_models_state_dict_never_changes_its_keys():
    plain = list(helpers.convnet().state_dict())
    model, _, pruner = make_run(init_sparsity=0.2)
    assert list(model.state_dict()) == plain
    with pytest.warns(UserWarning, match="pruning got to step"):
        pruner.remove()
    assert list(model.state_dict()) == plain
    helpers.convnet().load_state_dict(model.state_dict())


def test_a_state_loads_whatever_the_memory_layout():
    _, _, pruner = make_run()
    _, _, other = make_run(0, make=lambda: helpers.convnet().to(memory_format=torch.channels_last))
    other.load_state_dict(pruner.state_dict())
    assert identical(dict(other.masks), dict(pruner.masks))


def test_a_state_loads_under_a_wrapper():
    _, _, pruner = make_run()
    model = helpers.convnet()
    compiled = torch.compile(model, backend="eager")
    other = helpers.make_pruner(compiled, helpers.sgd(model))
    other.load_state_dict(pruner.state_dict())
    assert identical(dict(other.masks), dict(pruner.masks))


# Damaged and foreign states


def without(key, *path):
    def change(state):
        for p in path:
            state = state[p]
        del state[key]

    return change


def having(value, *path):
    def change(state):
        for p in path[:-1]:
            state = state[p]
        state[path[-1]] = value

    return change


def reordered(state):
    state["shapes"] = dict(reversed(state["shapes"].items()))


KEYS = ["version", "step", "last_update", "overdue", "schedule", "method", "scope", "seed", "start", "shapes", "masks"]
DAMAGED = {
    **{f"no {key}": (without(key), key) for key in KEYS},
    **{
        f"no {key} in schedule": (without(key, "schedule"), key)
        for key in ("sparsity", "begin", "end", "every", "curve")
    },
    "no name of the method": (without("name", "method"), "name"),
    "no mask of a weight": (without("3.weight", "masks"), "3.weight"),
    "another version": (having(2, "version"), "version 2; this fggp reads version 1"),
    "an unknown method": (having("obd", "method", "name"), "saved with the method 'obd'"),
    "an unknown hyper-parameter": (having(1, "method", "beta"), "beta"),
    "a bad rate": (having(1.5, "method", "rate"), "rate=1.5"),
    "an unknown schedule": (having("cosine", "schedule", "curve"), "saved with the schedule 'cosine'"),
    "an unknown setting": (having(3, "schedule", "warmup"), "warmup"),
    "a bad sparsity": (having(1.5, "schedule", "sparsity"), "sparsity=1.5"),
    "a bad phase": (having(-3, "schedule", "end"), "end=-3"),
    "a bad scope": (having("both", "scope"), "scope='both'"),
    "a step that is none": (having("many", "step"), "many"),
    "a list too short": (having([1], "start"), r"start=\[1\]"),
    "a mask too small": (having(torch.zeros(2, dtype=torch.uint8), "masks", "0.weight"), "packed mask"),
    "a mask of another dtype": (having(torch.zeros(14, dtype=torch.int8), "masks", "0.weight"), "int8"),
    "a mask that is no tensor": (having([0] * 14, "masks", "0.weight"), "state"),
    "masks that are none": (having(None, "masks"), "state"),
    "shapes that are none": (having(None, "shapes"), "state"),
    "another shape": (
        having([6, 2, 3, 4], "shapes", "0.weight"),
        r"'0.weight' has shape \[6, 2, 3, 4\] there and \[6, 2, 3, 3\]",
    ),
    "another order": (reordered, "another model"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_state_is_refused_and_changes_nothing(what):
    change, told = DAMAGED[what]
    model, optimizer, pruner = make_run()
    state = make_run(3, init_sparsity=0.5)[2].state_dict()
    change(state)
    before = everything(model, optimizer, pruner)
    with helpers.untouched(model, optimizer), pytest.raises(ValueError, match=told):
        pruner.load_state_dict(state)
    assert identical(everything(model, optimizer, pruner), before)


@pytest.mark.parametrize("state", [None, {}, [], 3, {"version": 1}, {"state": {}, "param_groups": []}], ids=str)
def test_what_is_no_state_is_refused(state):
    model, optimizer, pruner = make_run()
    before = everything(model, optimizer, pruner)
    with pytest.raises(ValueError, match="state is damaged, or not the state_dict of a Pruner"):
        pruner.load_state_dict(state)
    assert identical(everything(model, optimizer, pruner), before)


def test_the_state_of_another_model_is_refused():
    model, optimizer, pruner = make_run()
    before = everything(model, optimizer, pruner)
    with pytest.raises(
        ValueError, match=r"another model: weight '0\.weight' has shape \[10, 6\] there and \[6, 2, 3, 3\]"
    ):
        pruner.load_state_dict(make_run(make=helpers.mlp)[2].state_dict())
    with pytest.raises(ValueError, match=r"another model: weight '3\.weight' has shape None there"):
        pruner.load_state_dict(make_run(exclude="3.*")[2].state_dict())
    assert identical(everything(model, optimizer, pruner), before)


def test_loading_leaves_the_state_as_it_was():
    _, _, pruner = make_run()
    state = pruner.state_dict()
    kept = copy.deepcopy(state)
    pruner.load_state_dict(state)
    assert identical(state, kept)


def halfway(progress):
    return 1 - progress**2


def test_a_schedule_of_ones_own_must_be_given_again():
    *_, pruner = make_run(schedule=halfway)
    state = through_a_file(pruner.state_dict())
    *_, same = make_run(0, schedule=halfway)
    same.load_state_dict(state)
    assert same.schedule.curve is halfway
    *_, other = make_run(0)
    with pytest.raises(ValueError, match="saved with the schedule 'halfway'"):
        other.load_state_dict(state)
