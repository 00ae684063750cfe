"""Optimizers that evaluate a closure once, twice or never, and steps that fail."""

import pytest
import torch

import helpers


def closure_for(model, optimizer, t):
    def closure():
        """All of a training step, as in Lightning."""
        optimizer.zero_grad()
        loss = helpers.loss_of(model, t)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("how", ["positional", "keyword", "with a scheduler"])
@pytest.mark.parametrize(
    "kind", [helpers.sgd, lambda m: torch.optim.AdamW(m.parameters(), lr=0.01)], ids=["SGD", "AdamW"]
)
def test_closures_are_ranked_by_the_gradient_that_they_compute(how, kind):
    (model, optimizer), (other, other_optimizer) = helpers.twin(helpers.convnet, kind)
    pruner = helpers.make_pruner(model, optimizer)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0) if how == "with a scheduler" else None
    plain = helpers.make_pruner(other, other_optimizer)
    for t in range(1, 9):
        closure = closure_for(model, optimizer, t)
        loss = optimizer.step(closure) if how == "positional" else optimizer.step(closure=closure)
        if scheduler:
            scheduler.step()
        expected = helpers.backward(other, other_optimizer, t)
        other_optimizer.step()
        assert helpers.identical(loss, expected)
        assert helpers.identical(dict(pruner.masks), dict(plain.masks))
        assert helpers.identical(model.state_dict(), other.state_dict())
        assert (pruner.step, pruner.last_update) == (plain.step, plain.last_update)
        helpers.assert_exactly_zero(pruner, optimizer)


def test_a_closure_given_as_none_is_none():
    model = helpers.mlp()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, every=1)
    for step in (lambda: optimizer.step(None), lambda: optimizer.step(closure=None)):
        helpers.backward(model, optimizer, 1)
        step()
    assert (pruner.step, pruner.last_update) == (2, 2)


class Twice(torch.optim.SGD):
    def step(self, closure=None):
        with torch.enable_grad():
            closure()
            return closure()


class Never(torch.optim.SGD):
    evaluates = False

    def step(self, closure=None):
        if self.evaluates:
            with torch.enable_grad():
                return closure()
        return None


class Nested(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)


def test_an_optimizer_that_evaluates_its_closure_twice_gets_a_clear_error():
    model = helpers.mlp()
    optimizer = Twice(model.parameters(), lr=0.1)
    helpers.make_pruner(model, optimizer)
    with pytest.raises(RuntimeError, match="evaluates its closure several times a step"):
        optimizer.step(closure_for(model, optimizer, 1))


def test_lbfgs_is_refused():
    model = helpers.mlp()
    optimizer = torch.optim.LBFGS(model.parameters())
    with (
        helpers.untouched(model, optimizer),
        pytest.raises(ValueError, match="optimizer=LBFGS evaluates the loss several"),
    ):
        helpers.make_pruner(model, optimizer)


def test_an_update_whose_closure_was_never_evaluated_is_made_later():
    model = helpers.mlp()
    optimizer = Never(model.parameters(), lr=0.1)
    pruner = helpers.make_pruner(model, optimizer, end=2, every=2)
    for t in (1, 2, 3):
        optimizer.step(closure_for(model, optimizer, t))
    assert (pruner.step, pruner.last_update, pruner.sparsity) == (3, 0, 0)
    optimizer.evaluates = True
    optimizer.step(closure_for(model, optimizer, 4))
    assert (pruner.last_update, pruner.sparsity) == (4, 0.8)


def test_an_optimizer_whose_step_calls_its_base_class_counts_once():
    torch.optim.SGD(helpers.mlp().parameters())  # the base class gets its hooks when one of it is made
    (model, optimizer), (other, _) = helpers.twin(helpers.mlp, lambda m: Nested(m.parameters(), lr=0.1, momentum=0.9))
    plain = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    pruner, expected = helpers.make_pruner(model, optimizer), helpers.make_pruner(other, plain)
    for t in range(1, 8):
        if t % 2:
            helpers.train(model, optimizer, range(t, t + 1))
        else:
            optimizer.step(closure_for(model, optimizer, t))
        helpers.train(other, plain, range(t, t + 1))
        assert (pruner.step, pruner.last_update) == (expected.step, expected.last_update)
        assert helpers.identical(model.state_dict(), other.state_dict())


def test_a_step_that_fails_is_no_step():
    """The next call that works makes the update that was due, postponed or not."""
    model = helpers.mlp()
    optimizer = helpers.sgd(model, momentum=0)
    pruner = helpers.make_pruner(model, optimizer, end=5, every=3)

    def step_with_a_nan():
        helpers.poison(model, optimizer, 4)
        with helpers.not_learning(optimizer):
            optimizer.step()

    helpers.train(model, optimizer, 2)
    with pytest.warns(RuntimeWarning, match="due at step 3 is postponed"):
        step_with_a_nan()

    def fails():
        helpers.backward(model, optimizer, 4)
        raise KeyError("data")

    with pytest.raises(KeyError):
        optimizer.step(fails)
    helpers.backward(model, optimizer, 4)
    lr, optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["lr"], None
    with pytest.raises(TypeError):
        optimizer.step()  # fails after the choice was made
    optimizer.param_groups[0]["lr"] = lr
    assert (pruner.step, pruner.last_update) == (3, 0)
    step_with_a_nan()  # does not put the choice of the failed call in force
    assert (pruner.step, pruner.last_update, pruner.sparsity) == (4, 0, 0)
    helpers.train(model, optimizer, range(5, 6))
    assert (pruner.step, pruner.last_update, pruner.sparsity) == (5, 5, 0.8)
