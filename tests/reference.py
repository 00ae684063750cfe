"""A naive implementation of the methods, which the library is tested against: lists, `sorted` and exact floats.

It is written from the mathematics alone and shares no code with the library. A weight is (layer, position, θ, g): layer
is the index of its tensor among the prunable ones, position its flat index in the tensor. It is slow on purpose.
"""

import itertools
import math
from fractions import Fraction
from typing import NamedTuple

import torch


class Weight(NamedTuple):
    layer: int
    position: int
    theta: float
    grad: float


# The schedule


def sparsity(t, final, begin, end, initial=0.0, curve=lambda p: (1 - p) ** 3):
    """s_t, the sparsity after step t."""
    if t <= begin:
        return initial
    if t >= end:
        return final
    return final + (initial - final) * curve((t - begin) / (end - begin))


def active_count(s, total):
    """N_t, the number of active weights at sparsity s."""
    return round((1 - s) * total)


def update_steps(begin, end, every):
    """The steps at which the masks are updated."""
    steps, t = [], begin + every
    while t < end:
        steps.append(t)
        t += every
    return [*steps, end]


def share_out(total, shares, caps):
    """Split an integer in proportion to shares, no part above its cap: largest remainder, ties to the first."""
    parts, below_cap = [0] * len(shares), [i for i in range(len(shares)) if caps[i]]
    while below_cap:
        remaining = total - sum(parts)
        exact = {i: Fraction(remaining * shares[i], sum(shares[j] for j in below_cap)) for i in below_cap}
        over = [i for i in below_cap if exact[i] >= caps[i]]
        if not over:
            for i in below_cap:
                parts[i] = math.floor(exact[i])
            for i in sorted(below_cap, key=lambda i: (math.floor(exact[i]) - exact[i], i))[: total - sum(parts)]:
                parts[i] += 1
            break
        for i in over:
            parts[i] = caps[i]
            below_cap.remove(i)
    return parts


# Selection


def weights_of(tensors, grads, masks):
    """The active weights of some tensors; a missing gradient is zero."""
    found = []
    for layer, (tensor, grad, mask) in enumerate(zip(tensors, grads, masks, strict=True)):
        theta = tensor.detach().reshape(-1).tolist()  # a float of any width is exact as a Python float
        g = [0.0] * len(theta) if grad is None else grad.detach().to_dense().reshape(-1).tolist()
        kept = mask.reshape(-1).tolist()
        found += [Weight(layer, i, theta[i], g[i]) for i in range(len(theta)) if kept[i]]
    return found


def by_magnitude(w):
    return (abs(w.theta), w.layer, w.position)


def by_gradient(w):
    return (abs(w.grad), abs(w.theta), w.layer, w.position)


def by_saliency(double):
    """|θ·g| as a float32 product, or as a float64 product if any weight is float64."""
    rounded = float if double else _float32
    return lambda w: (abs(rounded(w.theta * w.grad)), w.layer, w.position)


def _float32(x):
    return torch.tensor(x, dtype=torch.float64).to(torch.float32).item()


def smallest(weights, k, key):
    """The k weights with the smallest keys."""
    return sorted(weights, key=key)[:k]


def quota(rate, count, excess):
    """K, how many candidates the first Top-K step keeps."""
    return max(excess, math.floor(rate * count))


def annealed(progress, start=0.5, end=0.005):
    """The rate r, annealed along a cosine."""
    return end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def choose(method, weights, excess, progress=0.0, double=False):
    """The weights that an update prunes; ``method`` is (name, *hyper-parameters)."""
    name, *given = method
    n = len(weights)
    if name == "fggp":
        candidates = smallest(weights, quota(given[0], n, excess), by_gradient)
        return smallest(candidates, excess, by_magnitude)
    if name == "magnitude-first":
        candidates = smallest(weights, quota(given[0], n, excess), by_magnitude)
        return smallest(candidates, excess, by_gradient)
    if name == "gradient-first-annealed":
        return choose(("fggp", annealed(progress, *given)), weights, excess)
    if name == "magnitude-first-annealed":
        return choose(("magnitude-first", annealed(progress, *given)), weights, excess)
    if name == "gmp":
        return smallest(weights, excess, by_magnitude)
    if name == "gradient-only":
        return smallest(weights, excess, by_gradient)
    if name == "taylor":
        return smallest(weights, excess, by_saliency(double))
    raise KeyError(name)


# Groups


def cells(shape, steps):
    """The cells of a grid over a tensor, in order: the flat positions of the weights in each."""
    found = {}
    for position, index in enumerate(itertools.product(*map(range, shape))):
        found.setdefault(tuple(i // s for i, s in zip(index, steps, strict=True)), []).append((position, index))
    return [found[cell] for cell in sorted(found)]


def mean(numbers, steps, rounded):
    """The mean of a cell's numbers, a list of (index, number); halves are added up, one dimension after the other."""
    sums = {tuple(i % s for i, s in zip(index, steps, strict=True)): number for index, number in numbers}
    for d, step in enumerate(steps):
        lines = {}
        for index, number in sums.items():
            lines.setdefault((*index[:d], 0, *index[d + 1 :]), [0.0] * step)[index[d]] = number
        sums = {index: added_up(line, rounded) for index, line in lines.items()}
    [total] = sums.values()
    return rounded(total / len(numbers))


def added_up(numbers, rounded):
    """The sum of numbers: the second half is added to the first, until one is left."""
    while len(numbers) > 1:
        half = math.ceil(len(numbers) / 2)
        numbers = [
            rounded(numbers[i] + numbers[half + i]) if half + i < len(numbers) else numbers[i] for i in range(half)
        ]
    return numbers[0]


def groups_of(weights, shapes, steps, double=False, product=False):
    """Groups as `Weight`: their index in the grid, and the means of |θ| and |g|; or of |θ·g|, and 1.

    A group is active if its weights are: all of them are given, or none.
    """
    rounded = float if double else _float32
    given = {(w.layer, w.position): w for w in weights}
    found = []
    for layer, (shape, step) in enumerate(zip(shapes, steps, strict=True)):
        for number, cell in enumerate(cells(shape, step)):
            if (layer, cell[0][0]) not in given:
                continue
            members = [(index, given[layer, position]) for position, index in cell]
            if product:
                scores = [(i, abs(rounded(w.theta * w.grad))) for i, w in members]
                found.append(Weight(layer, number, mean(scores, step, rounded), 1.0))
            else:
                theta, grad = ([(i, abs(w[field])) for i, w in members] for field in (2, 3))
                found.append(Weight(layer, number, mean(theta, step, rounded), mean(grad, step, rounded)))
    return found


def surplus(weights, shapes, steps, limit, key):
    """The active weights that exceed a pattern: all but the ``limit`` highest-ranked ones of each cell."""
    found = []
    for layer, (shape, step) in enumerate(zip(shapes, steps, strict=True)):
        for cell in cells(shape, step):
            positions = {position for position, _ in cell}
            active = [w for w in weights if w.layer == layer and w.position in positions]
            found += smallest(active, max(0, len(active) - limit), key)
    return found


LAST_KEY = {"fggp": by_magnitude, "gmp": by_magnitude, "magnitude-first": by_gradient, "gradient-only": by_gradient}
"""The key of the last step of a method's chain."""


def choose_in_pattern(method, weights, excess, shapes, steps, limit):
    """`choose`, of weights that keep to a pattern: those that exceed it first."""
    exceeding = surplus(weights, shapes, steps, limit, LAST_KEY[method[0]])
    if len(exceeding) >= excess:
        return choose(method, exceeding, excess)
    rest = [w for w in weights if w not in exceeding]
    return exceeding + choose(method, rest, excess - len(exceeding))


# Training


class PrunedTraining:
    """Pruning as a user would write it into a training loop: call `before_step` and `after_step` around each step.

    Args:
        parameters: the prunable weights, in the model's order.
        optimizer: the optimizer that trains them.
        method: (name, *hyper-parameters).
        masks: the masks to start from; dense by default.
        initial: s_ini, if it is not the sparsity of the masks.
        extents: for each weight the extent of its groups in each dimension, if weights are pruned in groups.
        limit: how many weights stay in a group at most, if single weights are pruned to a pattern.
    """

    def __init__(self, parameters, optimizer, sparsity, begin, end, every, method=("fggp", 0.5), **options):
        self.parameters, self.optimizer, self.method = list(parameters), optimizer, method
        self.final, self.begin, self.end, self.every = sparsity, begin, end, every
        self.scope = options.pop("scope", "global")
        masks = options.pop("masks", None) or [torch.ones(p.shape, dtype=torch.bool) for p in self.parameters]
        self.masks = [m.clone(memory_format=torch.contiguous_format) for m in masks]
        self.shapes = [tuple(p.shape) for p in self.parameters]
        self.extents, self.limit = options.pop("extents", None), options.pop("limit", None)
        if self.extents is not None:
            self.extents = [tuple(map(min, s, shape)) for s, shape in zip(self.extents, self.shapes, strict=True)]
        self.in_groups = self.extents is not None and self.limit is None
        units = self.units([p.grad for p in self.parameters], [torch.ones_like(m) for m in self.masks])
        self.total = len(units)
        self.start = [sum(w.layer == i for w in self.units([None] * len(self.masks))) for i in range(len(self.masks))]
        self.initial = options.pop("initial", 1 - sum(self.start) / self.total)
        assert not options
        self.t, self.pending, self.updates = 0, False, []
        self.last = {}  # the last gradient of each layer that a step left without one; None before the first
        self.gaps = set()  # the layers that a step since the last update left without one
        self.zero()

    def units(self, grads, masks=None):
        """What is pruned as one: the active weights, or groups."""
        weights = weights_of(self.parameters, grads, masks or self.masks)
        if not self.in_groups:
            return weights
        double = any(p.dtype == torch.float64 for p in self.parameters)
        return groups_of(weights, self.shapes, self.extents, double, self.method[0] == "taylor")

    def gradients(self, keep):
        """The gradients to rank by: the last one of a layer that a step left without, None if there never was one."""
        grads = [p.grad for p in self.parameters]
        for i, grad in enumerate(grads):
            values = [] if grad is None else grad.to_dense().reshape(-1).tolist()
            usable = any(values) and all(map(math.isfinite, values))
            if grad is None or (keep and not any(values)):
                self.last.setdefault(i, None)
            elif i in self.last and usable:
                self.last[i] = grad.clone()
            if not usable:
                self.gaps.add(i)
        return [self.last.get(i, grad) for i, grad in enumerate(grads)]

    def before_step(self):
        """Choose the weights to prune, from the weights and gradients before the optimizer's step."""
        t = self.t + 1
        self.chosen = None
        due = t in update_steps(self.begin, self.end, self.every) or self.pending
        grads = self.gradients(keep=due)
        if not due:
            return
        present = [p.grad for p in self.parameters if p.grad is not None]
        self.pending = any(not math.isfinite(x) for g in present for x in g.reshape(-1).tolist())
        if self.pending:
            return
        s = sparsity(t, self.final, self.begin, self.end, self.initial)
        weights = self.units(grads)
        double = any(p.dtype == torch.float64 for p in self.parameters)
        progress = min(1.0, (t - self.begin) / (self.end - self.begin))
        target = min(active_count(s, self.total), len(weights))
        if self.scope == "global":
            groups = [(weights, len(weights) - target)]
        else:
            layers = [[w for w in weights if w.layer == i] for i in range(len(self.parameters))]
            kept = share_out(target, self.start, [len(layer) for layer in layers])
            groups = [(layer, len(layer) - k) for layer, k in zip(layers, kept, strict=True)]
        self.chosen = []
        for group, excess in groups:
            seen = [w for w in group if grads[w.layer] is not None or self.method == ("gmp",)]
            unseen = [w for w in group if w not in seen]
            of_seen, of_unseen = share_out(excess, [len(seen), len(unseen)], [len(seen), len(unseen)])
            if self.limit is not None:
                assert not unseen
                self.chosen += choose_in_pattern(self.method, seen, of_seen, self.shapes, self.extents, self.limit)
                continue
            self.chosen += choose(self.method, seen, of_seen, progress, double) if of_seen else []
            self.chosen += choose(("gmp",), unseen, of_unseen)
        # Those that had one at each step since the last update are like any other layer again.
        self.last = {i: grad for i, grad in self.last.items() if i in self.gaps}
        self.gaps = set()

    def after_step(self):
        """Prune the chosen weights, and zero all pruned ones."""
        self.t += 1
        if self.chosen is not None:
            for w in self.chosen:
                cell = [w.position]
                if self.in_groups:
                    cell = [p for p, _ in cells(self.shapes[w.layer], self.extents[w.layer])[w.position]]
                self.masks[w.layer].view(-1)[cell] = False
            self.updates.append(self.t)
        self.zero()

    def zero(self):
        """Zero the pruned weights and their optimizer state."""
        for p, mask in zip(self.parameters, self.masks, strict=True):
            same = [s for s in self.optimizer.state.get(p, {}).values() if getattr(s, "shape", None) == p.shape]
            for tensor in [p.detach(), *(s for s in same if s.is_floating_point())]:
                tensor[~mask] = 0.0
