"""Scenarios: gradients that are missing, zero or not finite, on some processes or on all."""

import copy
import warnings

import pytest
import torch
from many_processes import EXCHANGES, beside_one_process, rank, sharded, whole, world
from torch import nn
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import helpers
from fggp.weights.dtensor import Part
from fggp.weights.gradients import LastGradients
from fggp.weights.processes import ALONE, Processes
from fggp.weights.prunable import Prunable


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
