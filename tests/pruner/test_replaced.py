"""Weights that are replaced, converted or moved after the Pruner was made: followed or refused, never missed."""

import copy

import pytest
import torch
from torch import nn

import fggp
import helpers


def pruned(make=helpers.convnet, steps=3, **options):
    model = make()
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, **options)
    helpers.train(model, optimizer, steps)
    return model, optimizer, pruner


def assign_clones(model):
    model.load_state_dict({name: t.clone() for name, t in model.state_dict().items()}, assign=True)


def hand_over(model, optimizer):
    """Give an optimizer the model's present parameters, and its state of the old ones."""
    old = optimizer.param_groups[0]["params"]
    new = list(model.parameters())
    for before, after in zip(old, new, strict=True):
        optimizer.state[after] = optimizer.state.pop(before)
    optimizer.param_groups[0]["params"] = new


class TestAssigned:
    """load_state_dict(assign=True), which puts new parameters in the modules."""

    def test_weights_that_the_optimizer_holds_are_followed(self):
        model, optimizer, pruner = pruned()
        other, other_optimizer, expected = pruned()
        assign_clones(model)
        hand_over(model, optimizer)
        for t in range(4, 8):
            helpers.train(model, optimizer, range(t, t + 1))
            helpers.train(other, other_optimizer, range(t, t + 1))
            assert helpers.identical(model.state_dict(), other.state_dict())
            assert helpers.identical(dict(pruner.masks), dict(expected.masks))
            helpers.assert_exactly_zero(pruner, optimizer)

    def test_weights_that_it_does_not_hold_are_refused_before_anything_changes(self):
        model, optimizer, _ = pruned()
        assign_clones(model)
        helpers.backward(model, optimizer, 4)
        with (
            helpers.untouched(model, optimizer),
            pytest.raises(
                RuntimeError, match=r"'0\.weight' was replaced in the model by one that the optimizer does not"
            ),
        ):
            optimizer.step()

    def test_dense_weights_are_pruned_by_remove(self):
        dense = copy.deepcopy(helpers.convnet().state_dict())
        model, optimizer, pruner = pruned()
        model.load_state_dict(dense, assign=True)
        hand_over(model, optimizer)
        with pytest.warns(UserWarning, match="got to step 3 of 6"):
            pruner.remove()
        helpers.assert_exactly_zero(pruner, optimizer)
        assert model[0].weight is helpers.pruned_parameters(pruner)["0.weight"]

    def test_dense_weights_are_pruned_by_load_state_dict(self):
        dense = copy.deepcopy(helpers.convnet().state_dict())
        model, optimizer, pruner = pruned()
        state = pruner.state_dict()
        model.load_state_dict(dense, assign=True)
        hand_over(model, optimizer)
        pruner.load_state_dict(state)
        helpers.assert_exactly_zero(pruner, optimizer)
        assert 0 < int((model[0].weight == 0).sum()) == int((~pruner.masks["0.weight"]).sum())

    def test_remove_takes_the_hooks_off_even_then(self):
        model, optimizer, pruner = pruned()
        assign_clones(model)
        with pytest.raises(RuntimeError, match="was replaced"):
            pruner.remove()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks

    def test_a_tie_that_breaks_is_refused(self):
        class Tied(nn.Sequential):
            pass

        model = Tied(nn.Linear(6, 6), nn.Linear(6, 6))
        model[1].weight = model[0].weight
        optimizer = helpers.sgd(model)
        helpers.make_pruner(model, optimizer)
        helpers.train(model, optimizer, 2)
        model[1].weight = nn.Parameter(model[0].weight.detach().clone())
        optimizer.add_param_group({"params": [model[1].weight]})
        helpers.backward(model, optimizer, 3)
        with helpers.untouched(model, optimizer), pytest.raises(RuntimeError, match=r"'0\.weight' was replaced"):
            optimizer.step()

    def test_another_shape_is_refused(self):
        model, optimizer, _ = pruned(helpers.mlp)
        model[0].weight = nn.Parameter(torch.randn(12, 6))
        optimizer.add_param_group({"params": [model[0].weight]})
        with helpers.untouched(model, optimizer), pytest.raises(RuntimeError, match="has another shape"):
            optimizer.step()

    def test_another_shape_in_place_is_refused(self):
        model, optimizer, _ = pruned(helpers.mlp)
        model[0].weight.data = torch.randn(1, 6)
        model[0].weight.grad = None
        before = model[0].weight.detach().clone()
        with pytest.raises(RuntimeError, match="has another shape"):
            optimizer.step()
        assert helpers.identical(model[0].weight.detach(), before)

    def test_a_weight_that_becomes_a_parametrization_is_refused(self):
        model, optimizer, _ = pruned(helpers.mlp)
        nn.utils.parametrizations.weight_norm(model[0])
        helpers.backward(model, optimizer, 4)
        with pytest.raises(RuntimeError, match=r"'0\.weight'"):
            optimizer.step()


class TestSwappedModules:
    @pytest.mark.parametrize("wrap", [lambda m: m, lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
    def test_a_module_that_left_the_model_is_refused_at_the_next_update(self, wrap):
        model = helpers.mlp()
        optimizer = helpers.sgd(model)
        helpers.make_pruner(wrap(model), optimizer)
        model[2] = nn.Linear(10, 3)
        helpers.train(model, optimizer, 1)
        helpers.backward(model, optimizer, 2)
        with (
            helpers.untouched(model, optimizer),
            pytest.raises(RuntimeError, match=r"module of '2\.weight' is no longer part of the model"),
        ):
            optimizer.step()

    def test_it_is_refused_even_where_the_optimizer_holds_the_new_weights(self):
        model, optimizer, _ = pruned(helpers.mlp)
        model[2] = nn.Linear(10, 3)
        optimizer.add_param_group({"params": model[2].parameters()})
        helpers.backward(model, optimizer, 4)
        with pytest.raises(RuntimeError, match="no longer part of the model"):
            optimizer.step()

    def test_modules_may_move_within_the_model(self):
        model, optimizer, pruner = pruned(helpers.mlp)
        model[0] = nn.Sequential(model[0])
        helpers.train(model, optimizer, range(4, 8))
        assert pruner.sparsity == 0.8

    def test_modules_that_are_not_pruned_may_be_swapped(self):
        model, optimizer, pruner = pruned(helpers.convnet)
        model[1] = nn.Identity()
        helpers.train(model, optimizer, range(4, 8))
        assert pruner.last_update == 6


class TestConverted:
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
    def test_to_another_dtype_is_followed(self, dtype):
        def convert(t, model, optimizer):
            if t == 4:
                model.to(dtype)
                # PyTorch leaves it to the user to convert the optimizer's state.
                for state in optimizer.state.values():
                    state["momentum_buffer"] = state["momentum_buffer"].to(dtype)

        helpers.run_beside_the_reference(helpers.convnet, helpers.sgd, 8, before_step=convert)

    def test_state_of_another_dtype_than_the_weights_is_zeroed_too(self):
        model, optimizer, pruner = pruned(helpers.mlp)
        for state in optimizer.state.values():
            state["momentum_buffer"] = state["momentum_buffer"].double()
        optimizer.param_groups[0]["foreach"] = False
        helpers.backward(model, optimizer, 4)
        optimizer.step()
        helpers.assert_exactly_zero(pruner, optimizer)

    @pytest.mark.parametrize("when", [1, 2, 3, 6])
    def test_to_channels_last_mid_training_is_followed(self, when):
        def convert(t, model, optimizer):
            if t == when:
                model.to(memory_format=torch.channels_last)

        pruner = helpers.run_beside_the_reference(helpers.convnet, helpers.sgd, 8, before_step=convert)
        assert pruner.masks["3.weight"].is_contiguous(memory_format=torch.channels_last)

    def test_weights_with_gaps_in_memory(self):
        storages = []

        def make():
            model = helpers.mlp()
            storages.append(torch.full((10, 12), 7.0))
            storages[-1][:, ::2] = model[0].weight.detach()
            model[0].weight = nn.Parameter(storages[-1][:, ::2])
            assert not model[0].weight.is_contiguous()
            return model

        helpers.run_beside_the_reference(make, helpers.sgd, 8)
        assert all((s[:, 1::2] == 7).all() for s in storages)

    def test_parameters_that_are_swapped_not_assigned(self):
        """module.to and load_state_dict swap parameters like this for FSDP2 and tensor subclasses."""

        def convert(t, model, optimizer):
            optimizer.zero_grad()  # torch cannot swap a parameter that has a graph
            if t == 4:
                model.to(torch.float64)
                for state in optimizer.state.values():
                    state["momentum_buffer"] = state["momentum_buffer"].double()
            if t == 6:
                model.load_state_dict({name: value.clone() for name, value in model.state_dict().items()})

        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            helpers.run_beside_the_reference(helpers.mlp, helpers.sgd, 8, before_step=convert)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    def test_new_data_in_the_same_parameter_is_pruned_at_the_next_step(self):
        model, optimizer, pruner = pruned()
        model[3].weight.data = torch.ones_like(model[3].weight)
        helpers.train(model, optimizer, range(4, 5))
        helpers.assert_exactly_zero(pruner, optimizer)

    def test_weights_loaded_in_place_are_not_trained_on(self):
        model, optimizer, pruner = pruned()
        model.load_state_dict(helpers.convnet(seed=3).state_dict())
        with pytest.raises(RuntimeError, match=r"pruned weights are not zero any more.*pruner\.zero\(\)"):
            helpers.train(model, optimizer, range(4, 5))
        assert pruner.step == 3
        pruner.zero()
        helpers.assert_exactly_zero(pruner, optimizer)
        helpers.train(model, optimizer, range(4, 5))
        helpers.assert_exactly_zero(pruner, optimizer)

    def test_a_loaded_optimizer_state_is_pruned_at_the_next_step(self):
        model, optimizer, pruner = pruned()
        dense = helpers.convnet()
        dense_optimizer = helpers.sgd(dense)
        helpers.train(dense, dense_optimizer, 3)
        optimizer.load_state_dict(dense_optimizer.state_dict())
        helpers.train(model, optimizer, range(4, 5))
        helpers.assert_exactly_zero(pruner, optimizer)


def test_a_copied_model_and_a_pickled_optimizer_do_not_carry_the_pruner_along():
    model, optimizer, _ = pruned(helpers.mlp)
    twin = copy.deepcopy(model)
    free = helpers.sgd(twin)
    helpers.train(twin, free, range(4, 7))
    assert (twin[0].weight != 0).all()
    assert isinstance(optimizer.state_dict(), dict)
    assert fggp.Pruner  # and the library keeps no reference
