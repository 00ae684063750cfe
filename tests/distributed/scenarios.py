"""Scenarios of distributed training: each function runs in all processes at once, and asserts."""

import contextlib
import copy
import importlib.util
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fggp
import helpers
from fggp.weights.dtensor import Part
from fggp.weights.gradients import LastGradients
from fggp.weights.processes import ALONE, Processes
from fggp.weights.prunable import Prunable
from optimizer_states import package, torchao_numbers

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


def postponed_together(folder):
    """One rank's part of a gradient is not finite: no rank updates."""
    model = sharded(helpers.mlp())
    optimizer = helpers.sgd(model)
    pruner = helpers.make_pruner(model, optimizer, begin=0, end=6, every=1)
    helpers.backward(model, optimizer, 1)
    if rank() == 1:
        model[0].weight.grad.to_local()[0, 0] = torch.inf
    with helpers.not_learning(optimizer), pytest.warns(RuntimeWarning, match="postponed: a gradient is not finite"):
        optimizer.step()
    assert (pruner.step, pruner.last_update) == (1, 0)
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()
    helpers.backward(model, optimizer, 2)
    optimizer.step()
    assert (pruner.step, pruner.last_update) == (2, 2)


class Turns(nn.Sequential):
    """Three layers, of which the last two take turns: each has a gradient in every second step only.

    Args:
        layers: the layers.
        zeros: whether the other one's gradient is zero, instead of missing.
        always: the number of steps, from the first, in which the last layer is the one that is used.
    """

    def __init__(self, *layers, zeros=False, always=0):
        super().__init__(*layers)
        self.zeros, self.always, self.calls = zeros, always, 0

    def forward(self, x):
        self.calls += 1
        used, other = (2, 1) if self.calls % 2 or self.calls <= self.always else (1, 2)
        hidden = self[0](x).tanh()
        return self[used](hidden) + (0 * self[other](hidden) if self.zeros else 0)


def left_out_of_batches(folder):
    """Weights whose gradient is missing or zero at an update are ranked by their last one, as in one process."""
    for method in (*helpers.GRADUAL, *EXCHANGES.values()):
        for zeros, always in ((False, 0), (True, 0), (True, 9)):
            torch.manual_seed(0)
            model = Turns(nn.Linear(6, 10), nn.Linear(10, 5), nn.Linear(10, 5), zeros=zeros, always=always)
            plain = copy.deepcopy(model)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "'1.weight' had no gradient in 3 updates")
                beside_one_process(sharded(model), plain, 9, method=method, floor=1)


def last_gradients(folder):
    """What is kept of sharded gradients is what one process keeps, whatever parts are zero, missing or not finite."""
    shapes = [((7, 3), 1, Shard(0)), ((2, 5), 1, Shard(0)), ((6, 5), 3, Shard(0)), ((3, 2, 5), 3, Shard(1))]
    shapes += [((2, 4, 3), 2, Shard(0)), ((4, 3), 1, Replicate())]
    generator = torch.Generator().manual_seed(0)

    def drawn(shape, matrices):
        """None, or a gradient of which nothing, some rows or columns, a matrix, or all is zero, or one value is NaN."""
        kind = int(torch.randint(6, (), generator=generator))
        grad = torch.randn(shape, generator=generator)
        first = int(torch.randint(grad.shape[0], (), generator=generator))
        if kind == 0:
            return None
        if kind == 1:
            return grad * 0
        if kind == 2:
            grad[first:] = 0
        if kind == 3:
            grad[:, 1:] = 0
        if kind == 4:
            grad.view(matrices, -1)[first % matrices] = 0
        if kind == 5 and first == 0:
            grad.view(-1)[-1] = torch.nan
        return grad

    plain = [Prunable(f"{i}", nn.Parameter(torch.zeros(s)), [], m) for i, (s, m, _) in enumerate(shapes)]
    parts = [nn.Parameter(distribute_tensor(torch.zeros(s), world(), [placed])) for s, _, placed in shapes]
    split = [Prunable(w.name, p, [], w.matrices) for w, p in zip(plain, parts, strict=True)]
    processes, scales = Processes.of(nn.Module(), split), [1.0, 4.0] * 3
    expected, found = LastGradients(), LastGradients()
    seen = set()
    for t in range(1, 301):
        for w, mine, (shape, matrices, placed) in zip(plain, split, shapes, strict=True):
            grad = drawn(shape, matrices)
            w.parameter.grad = grad
            mine.parameter.grad = None if grad is None else distribute_tensor(grad, world(), [placed])
        expected.observe(plain, scales, ALONE)
        found.observe(split, scales, processes)
        if t % int(torch.randint(1, 4, (), generator=generator)) == 0:
            finite = t % 2 == 0
            theirs = expected.read(plain, scales, ALONE, finite)
            mine = found.read(split, scales, processes, finite)
            assert (mine.known, mine.scales, mine.present > 0) == (theirs.known, theirs.scales, theirs.present > 0)
            for w, part, full in zip(split, mine.tensors, theirs.tensors, strict=True):
                assert helpers.identical(part, None if full is None else Part.of(w.parameter).cut_from(full)), t
            expected.count_update()
            found.count_update()
            seen.add(tuple(mine.known))
        assert found.without(1) == expected.without(1)
        saved, own = expected.state_dict(plain), found.state_dict(split)
        for state in own.values():
            state.update({name: whole(value) for name, value in state.items()})
        assert helpers.identical(own, saved), t
        if t % 20 == 0:  # go on with what was saved
            expected, found = LastGradients.restored(saved, plain), LastGradients.restored(saved, split)
    assert len(seen) > 10


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
