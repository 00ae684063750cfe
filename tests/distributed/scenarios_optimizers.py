"""Scenarios: data parallelism, optimizers that share their state, and what is refused."""

import copy
import importlib.util

import pytest
import torch
import torch.distributed as dist
from many_processes import compare, rank, sharded, world
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor

import fggp
import helpers
from optimizer_states import package, torchao_numbers


def ddp(folder):
    """Masks are the same on all ranks though no rank sends any; if one differs, all ranks name the weight."""
    model = nn.parallel.DistributedDataParallel(helpers.mlp())
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, init_sparsity=0.2)
    for t in range(1, 8):
        helpers.loss_of(model, 10 * t + rank()).backward()  # a different batch on each rank
        optimizer.step()
        optimizer.zero_grad()
        for mask in pruner.masks.values():
            every = [torch.empty_like(mask) for _ in range(dist.get_world_size())]
            dist.all_gather(every, mask.contiguous())
            assert all(torch.equal(mask, other) for other in every)
    assert pruner.sparsity == 1 - round(0.2 * 90) / 90

    other = nn.parallel.DistributedDataParallel(helpers.mlp())
    optimizer = helpers.sgd(other)
    pruner = helpers.make_pruner(other, optimizer, begin=0, end=2, every=1)
    helpers.backward(other, optimizer, 1)
    optimizer.step()
    helpers.backward(other, optimizer, 2)
    if rank() == 1:
        other.module[2].weight.grad.neg_().add_(0.1)
    before = copy.deepcopy(dict(pruner.masks)), [p.detach().clone() for p in other.parameters()]
    with pytest.raises(RuntimeError, match=r"process 1 has another mask of '[02]\.weight' than process 0"):
        optimizer.step()
    assert helpers.identical(before, (dict(pruner.masks), [p.detach().clone() for p in other.parameters()]))


def ddp_that_starts_apart(folder):
    masks = {name: torch.ones(w.shape, dtype=torch.bool) for name, w in helpers.mlp().named_parameters() if w.ndim > 1}
    masks["2.weight"][0, rank()] = False
    model = nn.parallel.DistributedDataParallel(helpers.mlp())
    optimizer = helpers.sgd(model)
    with pytest.raises(RuntimeError, match=r"process 1 has another mask of '2\.weight' than process 0"):
        helpers.make_pruner(model, optimizer, init=masks)
    assert not optimizer._optimizer_step_pre_hooks
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3 + rank()))
    inner = nn.parallel.DistributedDataParallel(model[0])
    whole_model = nn.Sequential(inner, model[1])
    with pytest.raises(ValueError, match=r"model differs between processes 0 and 1"):
        helpers.make_pruner(whole_model, helpers.sgd(whole_model))


def refused(folder):
    model = sharded(helpers.mlp())
    optimizer = helpers.sgd(model)
    once = fggp.SNIP(nn.functional.cross_entropy, (torch.randn(4, 6), torch.zeros(4, dtype=torch.int64)))
    with pytest.raises(ValueError, match="'snip' needs unsharded weights"):
        fggp.Pruner(model, optimizer, 0.8, method=once)
    model[0].weight.data.to_local().fill_(torch.nan)
    helpers.make_pruner(model, optimizer, begin=0, end=1, every=1, method="gmp")
    helpers.backward(model, optimizer, 1)
    for p in model.parameters():
        p.grad.zero_()
    with pytest.raises(ValueError, match="score 'magnitude' is NaN for"):
        optimizer.step()

    flat = nn.Sequential(nn.Linear(2, 2))
    flat.add_module("1", type("FullyShardedDataParallel", (nn.Identity,), {})())
    with pytest.raises(ValueError, match="fully_shard"):
        helpers.make_pruner(flat, helpers.sgd(flat))
    apart = helpers.mlp()  # every process holds the plain weight beside the sharded one
    apart[0].weight = nn.Parameter(distribute_tensor(apart[0].weight.detach(), world(), [Shard(0)]))
    assert helpers.make_pruner(apart, helpers.sgd(apart), init_sparsity=0.5).sparsity == 0.5
    half = nn.Parameter(DTensor.from_local(torch.ones(3, 3), world(), [Partial()]))
    apart[2].weight = half
    with pytest.raises(ValueError, match=r"'2\.weight' is a DTensor with a Partial placement"):
        helpers.make_pruner(apart, helpers.sgd(apart))


def zero_redundancy(folder):
    """Each process has the state of its share of the weights: weights, masks and state are those of one optimizer."""
    for view in (False, True):
        for kind, options in ((torch.optim.Adam, {"lr": 0.01}), (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9})):
            model = nn.parallel.DistributedDataParallel(helpers.mlp())
            optimizer = ZeroRedundancyOptimizer(model.parameters(), kind, parameters_as_bucket_view=view, **options)
            plain = nn.parallel.DistributedDataParallel(helpers.mlp())
            plain_optimizer = kind(plain.parameters(), **options)
            pruner = helpers.make_pruner(model, optimizer)
            expected = helpers.make_pruner(plain, plain_optimizer)
            for t in range(1, 9):
                if t == 5:
                    optimizer.consolidate_state_dict(0)
                    saved = [optimizer.state_dict() if rank() == 0 else None]
                    dist.broadcast_object_list(saved)
                    optimizer.load_state_dict(saved[0])
                for m, o in ((model, optimizer), (plain, plain_optimizer)):
                    o.zero_grad()
                    helpers.loss_of(m, 10 * t + rank()).backward()
                    o.step()
                compare(pruner, expected)
                for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
                    assert helpers.identical(p.detach(), q.detach()), (t, name)
                    if p in optimizer.optim.state:
                        assert helpers.identical(optimizer.optim.state[p], plain_optimizer.state[q]), (t, name)
            assert pruner.sparsity == 0.8
            pruned = [p for p in optimizer.optim.state if p.ndim > 1]
            assert len(pruned) == 1  # one of the two weights: or nothing is tested
    overlapped = ZeroRedundancyOptimizer(model.parameters(), torch.optim.SGD, overlap_with_ddp=True, lr=0.1)
    with pytest.raises(ValueError, match="overlap_with_ddp=True"):
        helpers.make_pruner(model, overlapped)


def fsdp_with_quantised_state(folder):
    """Each process has codes of its own part of the state, inside a DTensor."""
    if importlib.util.find_spec("torchao") is None:
        return  # not among the oldest versions
    optim = package("torchao.optim")
    torch.compiler.set_stance("force_eager")
    for kind in ("AdamW8bit", "AdamW4bit", "AdamWFp8"):
        torch.manual_seed(0)
        model = sharded(nn.Sequential(nn.Linear(6, 1536), nn.Tanh(), nn.Linear(1536, 6)))
        optimizer = getattr(optim, kind)(model.parameters(), lr=0.01)
        pruner = helpers.make_pruner(model, optimizer, every=1, end=3)
        for t in range(1, 5):
            helpers.backward(model, optimizer, t)
            optimizer.step()
            quantised = 0
            for weight, mask in zip(helpers.pruned_parameters(pruner).values(), pruner.masks.values(), strict=True):
                kept = mask.to_local()
                assert not weight.to_local()[~kept].any()
                for key in ("exp_avg", "exp_avg_sq"):
                    state = optimizer.state[weight][key].to_local()
                    quantised += type(state).__name__.startswith("OptimState")
                    numbers = torchao_numbers(state)
                    assert numbers[kept].any()
                    assert (kind, key) == ("AdamW4bit", "exp_avg_sq") or not numbers[~kept].any(), (kind, key)
            assert quantised == 4
        assert abs(pruner.sparsity - 0.8) < 1e-3
