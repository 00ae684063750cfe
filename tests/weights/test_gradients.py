"""Weights that a batch leaves without a gradient: ranked by their last one, as in a slow reference."""

import copy

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import helpers
from fggp.weights.gradients import LastGradients
from fggp.weights.processes import ALONE
from fggp.weights.prunable import Prunable


class Skipping(nn.Module):
    """Three blocks, of which each call uses those that a pattern says."""

    def __init__(self, pattern, zeros):
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))
        self.head = nn.Linear(6, 3)
        self.pattern, self.zeros, self.calls = pattern, zeros, 0

    def forward(self, x):
        used = self.pattern[self.calls]
        self.calls += 1
        for block, is_used in zip(self.blocks, used, strict=True):
            x = x + (block(x).tanh() if is_used else 0 * block(x) if self.zeros else 0)
        return self.head(x)


@pytest.mark.filterwarnings("ignore:.* had no gradient in 3 updates", "ignore:no weight is left")
@settings(max_examples=settings.default.max_examples // 2)
@given(
    st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=9, max_size=9),
    st.sampled_from([("fggp", 0.5), ("magnitude-first", 0.5), ("taylor",), ("gradient-only",), ("gmp",)]),
    st.sampled_from(["global", "layer"]),
    st.booleans(),
)
@example([[False] * 3] * 3 + [[True, False, False]] * 3 + [[False] * 3] * 3, ("fggp", 0.5), "global", False)
def test_pruning_is_that_of_the_reference(pattern, naive, scope, zeros):
    helpers.run_beside_the_reference(
        lambda: Skipping(pattern, zeros), helpers.sgd, 9, naive, scope=scope, sparsity=0.7, every=3, end=9
    )


@pytest.mark.filterwarnings("ignore:.* had no gradient in 3 updates", "ignore:no weight is left")
@pytest.mark.parametrize("stop", range(1, 18))
def test_a_resumed_run_is_the_unbroken_one(stop):
    generator = torch.Generator().manual_seed(0)
    pattern = (torch.rand(18, 3, generator=generator) < 0.6).tolist()

    def run():
        model = Skipping(pattern, False)
        optimizer = helpers.sgd(model)
        return model, optimizer, helpers.make_pruner(model, optimizer, 0.7, every=3, end=18)

    model, optimizer, pruner = run()
    helpers.train(model, optimizer, range(1, stop + 1))
    resumed = run()
    for part, own in zip(resumed, (model, optimizer, pruner), strict=True):
        part.load_state_dict(copy.deepcopy(own.state_dict()))
    resumed[0].calls = stop
    for each in ((model, optimizer), resumed[:2]):
        helpers.train(*each, range(stop + 1, 19))
    assert helpers.identical(pruner.state_dict(), resumed[2].state_dict())
    assert helpers.identical(dict(model.state_dict()), dict(resumed[0].state_dict()))


def make(shape, matrices=1):
    parameter = nn.Parameter(torch.randn(shape))
    return Prunable("w", parameter, [], matrices=matrices)


def test_nothing_is_kept_of_weights_that_always_have_a_gradient():
    weight, last = make((4, 3)), LastGradients()
    for _ in range(3):
        weight.parameter.grad = torch.randn(4, 3)
        last.observe([weight], [1.0], ALONE)
        read = last.read([weight], [1.0], ALONE)
        assert read.tensors[0].data_ptr() == weight.parameter.grad.data_ptr()
    assert last.state_dict([weight]) == {}


@pytest.mark.parametrize("scale", [1.0, 4.0])
def test_the_last_gradient_is_unscaled_and_finite(scale):
    weight, last = make((4, 3)), LastGradients()
    last.observe([weight], [1.0], ALONE)
    kept = torch.randn(4, 3)
    for grad in (kept * scale, torch.full((4, 3), torch.inf), torch.zeros(4, 3)):
        weight.parameter.grad = grad
        last.observe([weight], [scale], ALONE)
    weight.parameter.grad = None
    read = last.read([weight], [scale], ALONE)
    assert (read.scales, read.known, read.present) == ([1.0], [True], 0)
    torch.testing.assert_close(read.tensors[0], kept)


@pytest.mark.parametrize(("shape", "rows"), [((3, 2, 5), 1), ((6, 5), 2)])
def test_each_matrix_of_a_batch_has_its_own_last_gradient(shape, rows):
    weight, last = make(shape, matrices=3), LastGradients()
    first, second = torch.randn(shape), torch.randn(shape)
    second[rows : 2 * rows] = 0  # the second matrix is not used
    for grad in (first, second):
        weight.parameter.grad = grad
        last.observe([weight], [1.0], ALONE)
        read = last.read([weight], [1.0], ALONE)
    # Only from the step on that left it out: what the first step had is gone.
    assert torch.equal(read.tensors[0], second)
    assert read.known == [False]
    third = torch.randn(shape)
    third[:rows] = 0
    weight.parameter.grad = third
    last.observe([weight], [1.0], ALONE)
    expected = torch.cat([second[:rows], third[rows:]])
    read = last.read([weight], [1.0], ALONE)
    assert torch.equal(read.tensors[0], expected)
    assert read.known == [True]


def test_a_gradient_is_let_go_that_was_there_from_one_update_to_the_next():
    weight, last = make((4, 3)), LastGradients()
    last.observe([weight], [1.0], ALONE)
    last.count_update()
    weight.parameter.grad = torch.ones(4, 3)
    for _ in range(2):
        last.observe([weight], [1.0], ALONE)
    assert last.state_dict([weight])
    last.count_update()
    assert last.state_dict([weight]) == {}


def test_a_weight_is_named_that_had_none_since_the_update_before():
    weight, last = make((4, 3)), LastGradients()
    for update in range(1, 5):
        last.observe([weight], [1.0], ALONE)
        last.read([weight], [1.0], ALONE)
        last.count_update()
        assert last.without(3) == (["w"] if update >= 3 else [])
    weight.parameter.grad = torch.ones(4, 3)
    last.observe([weight], [1.0], ALONE)
    weight.parameter.grad = None
    last.read([weight], [1.0], ALONE)
    last.count_update()
    assert last.without(1) == []


@pytest.mark.parametrize("given_shape", [(3, 4), (4, 3)])
def test_a_damaged_state_is_refused(given_shape):
    dtype = torch.float32 if given_shape == (3, 4) else torch.int64
    state = {"w": {"gap": False, "value": torch.ones(given_shape, dtype=dtype), "known": torch.tensor(True)}}
    with pytest.raises(ValueError, match=r"the last gradient of weight 'w' is torch\..* must be a floating-point"):
        LastGradients.restored(state, [make((4, 3))])


def test_a_state_of_another_number_of_matrices_is_refused():
    state = {"w": {"gap": False, "value": torch.ones(6, 3), "known": torch.ones(2, dtype=torch.bool)}}
    assert LastGradients.restored(state, [make((6, 3), matrices=2)]).state_dict([make((6, 3), matrices=2)])
    with pytest.raises(ValueError, match="the last gradient of weight 'w' is known for 2 matrices: it must be for 3"):
        LastGradients.restored(state, [make((6, 3), matrices=3)])
