"""Scenarios: sharded weights are selected as one process would select them."""

import pytest
import torch
from many_processes import EXCHANGES, beside_one_process, rank, sharded, whole, world
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy
from torch.distributed.tensor import Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fggp
import helpers


def fsdp_methods(folder):
    """Every method, global and layer by layer, from dense and from half sparse."""
    for method in (*helpers.GRADUAL, *EXCHANGES):
        options = {"method": EXCHANGES.get(method, method), "init_sparsity": 0.5}
        beside_one_process(sharded(helpers.convnet()), helpers.convnet(), 6, **options)
    for method in ("fggp", "random"):
        beside_one_process(sharded(helpers.mlp()), helpers.mlp(), 6, method=method, scope="layer")


def fsdp_groups(folder):
    """Blocks, rows and patterns, over parts that end inside groups too: those of transposed convolutions do."""

    def transposed():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(2, 7, 3), nn.ReLU(), nn.ConvTranspose2d(7, 5, 2), nn.Flatten(), nn.Linear(125, 3)
        )

    for granularity in (fggp.Blocks(4), fggp.Rows(), fggp.NM(2, 4)):
        options = {"granularity": granularity, "sparsity": 0.55, "floor": 2}
        beside_one_process(sharded(helpers.convnet()), helpers.convnet(), 6, init_sparsity=0.3, **options)
        for method in ("fggp", EXCHANGES["granet"]):
            beside_one_process(
                sharded(transposed()), transposed(), 6, ties=True, scope="layer", method=method, **options
            )
    pruner, _ = beside_one_process(sharded(transposed()), transposed(), 6, granularity=fggp.Blocks(4), sparsity=0.5)
    masks = {name: whole(mask) for name, mask in pruner.masks.items()}
    for init in (masks, "keep"):
        given, plain = sharded(transposed()), transposed()
        for p, mask in zip((w for w in plain.parameters() if w.ndim > 1), masks.values(), strict=True):
            p.data.mul_(mask)
        for p, theirs in zip(given.parameters(), plain.parameters(), strict=True):
            p.data.copy_(distribute_tensor(theirs.data, p.device_mesh, p.placements))
        _, kept = beside_one_process(given, plain, 6, granularity=fggp.Blocks(4), sparsity=0.8, init=init)
        assert not any((kept.masks[name] & ~mask).any() for name, mask in masks.items())


def tensor_parallel_groups(folder):
    """Blocks of rows and of columns, which end inside rows and groups."""

    def model():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))

    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    for granularity in (fggp.Blocks(4), fggp.Rows(), fggp.NM(2, 4)):
        for method in ("fggp", EXCHANGES["rigl"]):
            beside_one_process(
                parallelize_module(model(), world(), plan),
                model(),
                6,
                granularity=granularity,
                method=method,
                sparsity=0.6,
                floor=1,
            )


def fsdp_ties(folder):
    """Gradients that are mostly equal, over parts that are uneven, and empty for some."""
    for model, method in (
        (helpers.convnet, "fggp"),
        (helpers.mlp, "gradient-only"),
        (helpers.mlp, EXCHANGES["granet"]),
    ):
        beside_one_process(sharded(model()), model(), 7, ties=True, method=method)


def fsdp_mixed_precision_and_offload(folder):
    half = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    beside_one_process(sharded(helpers.mlp(), mp_policy=half), helpers.mlp(), 7)
    offload = CPUOffloadPolicy(pin_memory=False)
    beside_one_process(sharded(helpers.mlp(), offload_policy=offload), helpers.mlp(), 7, ties=True)
    beside_one_process(sharded(helpers.mlp(dtype=torch.bfloat16)), helpers.mlp(dtype=torch.bfloat16), 7)
    beside_one_process(sharded(helpers.mlp(dtype=torch.float64)), helpers.mlp(dtype=torch.float64), 7)


def fsdp_with_replicas(folder):
    """A mesh of replicas × shards (HSDP): each weight counts once, and replicas are compared."""
    mesh = world(2, 2, names=("replicate", "shard"))
    for method in ("fggp", EXCHANGES["rigl"]):
        beside_one_process(sharded(helpers.mlp(), mesh), helpers.mlp(), 7, method=method, ties=True)
    model = sharded(helpers.mlp(), mesh)
    optimizer = helpers.sgd(model)
    helpers.make_pruner(model, optimizer, begin=0, end=1, every=1)
    helpers.backward(model, optimizer, 1)
    if rank() == 3:
        model[2].weight.grad.to_local().mul_(-100).add_(5)
    with pytest.raises(RuntimeError, match=r"another mask of '[02]\.weight' than process"):
        optimizer.step()


def averages(folder):
    method = helpers.Running()
    pruner, expected = beside_one_process(sharded(helpers.convnet()), helpers.convnet(), 7, method=method)
    theirs = expected.state_dict()["averages"]
    for name, own in pruner.state_dict()["averages"].items():
        assert own.keys() == {"size", "mean"}
        for kind, value in own.items():
            assert torch.equal(whole(value), theirs[name][kind]), (name, kind)


def tensor_parallel(folder):
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    beside_one_process(parallelize_module(helpers.mlp(), world(), plan), helpers.mlp(), 7)
    beside_one_process(parallelize_module(helpers.mlp(), world(), plan), helpers.mlp(), 7, ties=True, init_sparsity=0.3)


def fsdp_and_tensor_parallel(folder):
    mesh = world(2, 2, names=("data", "tensor"))
    for plan in ({"0": ColwiseParallel(), "2": RowwiseParallel()}, {"0": RowwiseParallel(), "2": ColwiseParallel()}):
        layouts = {
            name: type(style)(input_layouts=Replicate(), output_layouts=Replicate()) for name, style in plan.items()
        }
        model = parallelize_module(helpers.mlp(), mesh["tensor"], layouts)
        beside_one_process(sharded(model, mesh["data"]), helpers.mlp(), 7, ties=True)
    # One layer over both dimensions of the mesh, the other over one.
    model = parallelize_module(helpers.mlp(), mesh["tensor"], {"0": ColwiseParallel(output_layouts=Replicate())})
    beside_one_process(sharded(model, mesh["data"]), helpers.mlp(), 7)


def weight_norm(folder):
    """Directions, of which half of the rows are small enough to be emptied."""

    def model():
        torch.manual_seed(0)
        normed = nn.utils.parametrizations.weight_norm(nn.Linear(10, 7))
        net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), normed, nn.Tanh(), nn.Linear(7, 3))
        with torch.no_grad():
            net[2].parametrizations.weight.original1[::2] *= 0.1
        return net

    for method in ("fggp", "gmp"):
        pruner, _ = beside_one_process(sharded(model()), model(), 7, method=method)
        assert whole(pruner.masks["2.parametrizations.weight.original1"]).any(1).all()
