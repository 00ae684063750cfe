"""Models over several processes, and pruners beside one on plain tensors that must do the same."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import fggp
import helpers

EXCHANGES = {"granet": fggp.GraNet(total_steps=12), "rigl": fggp.RigL(), "set": fggp.SET()}


def rank():
    return dist.get_rank()


def world(*shape, names=None):
    return init_device_mesh("cpu", shape or (dist.get_world_size(),), mesh_dim_names=names)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded(model, mesh=None, **options):
    """Shard a model with FSDP2 in the usual way: layers first, then the root."""
    mesh = mesh or world()
    for layer in model:
        if list(layer.parameters(recurse=False)):
            fully_shard(layer, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def beside_one_process(model, plain, steps, ties=False, momentum=0.9, **options):
    """Train a sharded model; a pruner on plain tensors gets the same weights and gradients, and must do the same.

    Args:
        model: the sharded model.
        plain: the same model, not sharded.
        steps: the number of steps.
        ties: whether to round gradients, so that most are equal to others.
        momentum: the momentum of both optimizers.
        options: options of both pruners.
    """
    optimizer, alone = helpers.sgd(model, momentum=momentum), helpers.sgd(plain, momentum=momentum)
    pruner, expected = helpers.make_pruner(model, optimizer, **options), helpers.make_pruner(plain, alone, **options)
    compare(pruner, expected)
    for t in range(1, steps + 1):
        loss = helpers.loss_of(model, t)
        optimizer.zero_grad()
        loss.backward()
        for mine, theirs in zip(model.parameters(), plain.parameters(), strict=True):
            if ties:
                with torch.no_grad():
                    mine.grad.mul_(30).round_().div_(30)
            theirs.data.copy_(whole(mine.detach()))
            theirs.grad = None if mine.grad is None else whole(mine.grad).clone()
        optimizer.step()
        alone.step()
        compare(pruner, expected)
        for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
            # In bfloat16, vector instructions round differently depending on where a part begins.
            if mine.dtype != torch.bfloat16:
                assert helpers.identical(whole(mine.detach()), theirs.detach()), (t, name)
    assert pruner.last_update > 0
    return pruner, expected


def compare(pruner, expected):
    assert list(pruner.masks) == list(expected.masks)
    for (name, mine), theirs in zip(pruner.masks.items(), expected.masks.values(), strict=True):
        assert torch.equal(whole(mine), whole(theirs)), name
    assert (pruner.sparsity, pruner.densities()) == (expected.sparsity, expected.densities())
    assert (pruner.step, pruner.last_update) == (expected.step, expected.last_update)
