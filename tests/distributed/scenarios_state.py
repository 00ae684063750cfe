"""Scenarios: state that is saved, resumed, and loaded by another number of processes."""

import contextlib
import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from many_processes import compare, rank, sharded, whole

import fggp
import helpers


def after_an_evaluation(folder):
    """The root's weights stay gathered after a forward pass without a backward one: that is no replacement."""
    model = sharded(helpers.mlp())
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer)
    helpers.train(model, optimizer, 3)
    with torch.no_grad():
        helpers.loss_of(model, 1)
    pruner.state_dict()
    with pytest.warns(UserWarning, match="got to step 3 of 6"):
        pruner.remove()
    for name, weight in model.named_parameters():
        if name in pruner.masks:
            assert not whole(weight)[~whole(pruner.masks[name])].any()
    if rank() == 0:
        repr(pruner), pruner.densities(), pruner.sparsity  # one process alone may call these


def resumed(folder):
    """A run resumed from its own state, or from the packed state of one process, has the bits of an unbroken one."""
    model, other = sharded(helpers.mlp()), sharded(helpers.mlp())
    optimizer, other_optimizer = helpers.sgd(model), helpers.sgd(other)
    pruner = helpers.make_pruner(model, optimizer)
    helpers.train(model, optimizer, 3)
    plain = helpers.mlp()
    plain_optimizer = helpers.sgd(plain)
    plain_pruner = helpers.make_pruner(plain, plain_optimizer)
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        p.data.copy_(whole(q.detach()))
    full = {**plain_pruner.state_dict(), **{k: v for k, v in pruner.state_dict().items() if k != "masks"}}
    full["masks"] = {name: fggp.masks.packing.pack(whole(m)) for name, m in pruner.masks.items()}
    later = helpers.make_pruner(other, other_optimizer, sparsity=0.5)
    for state in (pruner.state_dict(), full, {**full, "masks": {n: whole(m) for n, m in pruner.masks.items()}}):
        asked = contextlib.nullcontext() if later.step else pytest.warns(UserWarning, match=r"sparsity=0\.5; .* 0\.8")
        with asked:
            later.load_state_dict(state)
        compare(later, pruner)
    plain_pruner.load_state_dict(full)
    compare(plain_pruner, pruner)
    other.load_state_dict(model.state_dict())
    other_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for m, o in ((model, optimizer), (other, other_optimizer)):
        helpers.train(m, o, range(4, 8))
    compare(later, pruner)
    assert helpers.identical(
        [whole(p.detach()) for p in other.parameters()], [whole(p.detach()) for p in model.parameters()]
    )


def sizes(pruner):
    return {name: whole(own["size"]) for name, own in pruner.state_dict()["averages"].items()}


def saved_by_all(folder):
    """torch.distributed.checkpoint, to be loaded by another number of processes: see `loaded_by_others`."""
    model = sharded(helpers.convnet())
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, method=helpers.Running())
    helpers.train(model, optimizer, 4)
    dcp.save({"model": model.state_dict(), "pruner": pruner}, checkpoint_id=folder / "dcp")
    expected = {name: (whole(m), sizes(pruner)[name]) for name, m in pruner.masks.items()}
    if rank() == 0:
        torch.save(expected, folder / "expected.pt")


def loaded_by_others(folder):
    model = sharded(helpers.convnet(seed=1))
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, sparsity=0.3, end=8, method=helpers.Running())
    state = {"model": model.state_dict(), "pruner": pruner}
    with pytest.warns(UserWarning, match=r"sparsity=0\.3; the state that it goes on with has 0\.8"):
        dcp.load(state, checkpoint_id=folder / "dcp")
    model.load_state_dict(state["model"])
    expected = torch.load(folder / "expected.pt")
    for name, mask in pruner.masks.items():
        assert torch.equal(whole(mask), expected[name][0]), name
        assert torch.equal(sizes(pruner)[name], expected[name][1]), name
    assert pruner.step == 4
    assert pruner.schedule.sparsity == 0.8
    for name, weight in model.named_parameters():
        if name in expected:
            assert not whole(weight)[~expected[name][0]].any()
    helpers.train(model, optimizer, range(5, 8))
    assert pruner.sparsity == 1 - round(0.2 * 436) / 436
