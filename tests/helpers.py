"""Helpers of all tests: small models, a training loop, comparison to the bit."""

import copy
import math
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

import fggp
import reference
from fggp.methods import REGISTRY, candidates
from fggp.scores import Score, magnitude

GRADUAL = (
    "fggp",
    "gmp",
    "gradient-only",
    "gradient-first-annealed",
    "magnitude-first",
    "magnitude-first-annealed",
    "taylor",
    "random",
)
"""The methods that only prune: those that the reference implements, and random."""

_INT = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def convnet(seed=0, dtype=torch.float32):
    """Convolution, norm, convolution, linear: 436 prunable weights, and a norm and biases that are not pruned."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 7),
    ).to(dtype)


CONVNET_WEIGHTS = {"0.weight": 108, "3.weight": 216, "6.weight": 112}


def mlp(seed=0, dtype=torch.float32):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).to(dtype)


def loss_of(model, step, size=8):
    """The loss on a batch that depends on the step alone: the same for every model and in every run."""
    first = next(model.parameters())
    generator = torch.Generator().manual_seed(1000 + step)
    shape = (size, 2, 6, 6) if any(isinstance(m, nn.Conv2d) for m in model.modules()) else (size, 6)
    x = torch.randn(shape, generator=generator).to(first.dtype)
    y = torch.randint(3, (size,), generator=generator)
    return nn.functional.cross_entropy(model(x).float(), y)


def backward(model, optimizer, step):
    optimizer.zero_grad()
    loss = loss_of(model, step)
    loss.backward()
    return loss


def train(model, optimizer, steps):
    """Train for a number or a range of steps."""
    for step in range(1, steps + 1) if isinstance(steps, int) else steps:
        backward(model, optimizer, step)
        optimizer.step()


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, "momentum": 0.9, **options})


def prunable(model):
    """The weights of these models that are pruned by default, in order."""
    return [p for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d)) for p in [m.weight]]


def bits(tensor):
    """A tensor's bits, so that −0 differs from 0 and NaN equals itself."""
    tensor = tensor.detach()
    return tensor.contiguous().view(_INT[tensor.element_size()]) if tensor.is_floating_point() else tensor


def identical(a, b):
    """Whether two nested structures are the same, floats to the bit."""
    if isinstance(a, torch.Tensor):
        return (
            isinstance(b, torch.Tensor)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and bool((bits(a) == bits(b)).all())
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(identical, a, b))
    return type(a) is type(b) and a == b


def pruned_parameters(pruner):
    """The parameters that a pruner prunes, by weight name."""
    return {w.name: w.parameter for w in pruner._masks.weights}


def averages_of(pruner, name):
    """A running average that a pruner keeps, by weight name: the tensors themselves."""
    return {w.name: pruner._averages.of(w)[name] for w in pruner._masks.weights}


def assert_exactly_zero(pruner, optimizer):
    """Pruned weights and every floating-point state tensor of their shape are +0, and the count is exact."""
    parameters = {p for group in optimizer.param_groups for p in group["params"]}
    weights = list(pruned_parameters(pruner).values())
    assert parameters.issuperset(weights)
    kept = 0
    for weight, mask in zip(weights, pruner.masks.values(), strict=True):
        state = [s for s in optimizer.state.get(weight, {}).values() if isinstance(s, torch.Tensor)]
        for tensor in [weight, *(s for s in state if s.shape == weight.shape and s.is_floating_point())]:
            assert not bits(tensor)[~mask.contiguous()].any()
        kept += int(mask.sum())
    assert pruner.sparsity == 1 - kept / sum(map(torch.Tensor.numel, weights))


def twin(make_model, make_optimizer):
    """Two identical models, each with its optimizer: ((model, optimizer), (model, optimizer))."""
    pair = []
    for _ in range(2):
        model = make_model()
        pair.append((model, make_optimizer(model)))
    return pair


def snapshot(model, optimizer):
    """Everything that a refused call must not change."""
    return copy.deepcopy(
        {
            "model": dict(model.state_dict()),
            "grads": [p.grad for p in model.parameters()],
            "state": optimizer.state_dict(),
            "hooks": [len(optimizer._optimizer_step_pre_hooks), len(optimizer._optimizer_step_post_hooks)],
            "module_hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
            "rng": torch.get_rng_state(),
        }
    )


@contextmanager
def untouched(model, optimizer):
    """Assert that the block changes no bit of model, optimizer and global generator."""
    before = snapshot(model, optimizer)
    yield
    assert identical(before, snapshot(model, optimizer))


def make_pruner(model, optimizer, sparsity=0.8, begin=0, end=6, every=2, **options):
    return fggp.Pruner(model, optimizer, sparsity, begin=begin, end=end, every=every, **options)


def run_beside_the_reference(make_model, make_optimizer, steps, naive=("fggp", 0.5), before_step=None, **options):
    """Train identical models, one with a Pruner, one with the reference; compare all bits after every step.

    ``before_step(t, model, optimizer)`` is called for both before every step, and may do what a user might do there.
    The option ``granularity`` is that of the Pruner; ``extents`` and ``limit`` say the same to the reference.
    """
    (model, optimizer), (other, other_optimizer) = twin(make_model, make_optimizer)
    method = REGISTRY[naive[0]](*naive[1:])
    groups = {name: options.pop(name) for name in ("extents", "limit") if name in options}
    pruner = make_pruner(model, optimizer, method=method, **options)
    options.pop("granularity", None)
    options = {"sparsity": 0.8, "begin": 0, "end": 6, "every": 2, **options}
    if options.get("init_sparsity") is not None:
        options["initial"] = options.pop("init_sparsity")
        options["masks"] = list(pruner.masks.values())
    options.pop("init", None)
    by_hand = reference.PrunedTraining(prunable(other), other_optimizer, method=naive, **options, **groups)
    for t in range(1, steps + 1):
        if before_step:
            before_step(t, model, optimizer)
            before_step(t, other, other_optimizer)
        loss = backward(model, optimizer, t)
        optimizer.step()
        other_loss = backward(other, other_optimizer, t)
        by_hand.before_step()
        other_optimizer.step()
        by_hand.after_step()
        assert identical(loss, other_loss), t
        assert identical(list(pruner.masks.values()), by_hand.masks), t
        assert identical(list(model.state_dict().values()), list(other.state_dict().values())), t
        assert identical(optimizer.state_dict(), other_optimizer.state_dict()), t
        assert_exactly_zero(pruner, optimizer)
        assert (pruner.step, pruner.last_update) == (t, max(by_hand.updates, default=0))
    return pruner


def poison(model, optimizer, t, value=math.nan, where=None):
    """A backward pass, after which one gradient is not finite."""
    backward(model, optimizer, t)
    grad = model[0].weight.grad
    grad.view(-1)[0 if where is None else where] = value


@contextmanager
def not_learning(optimizer):
    """Restore the weights after the block, in which a NaN gradient destroys them."""
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    before = [p.detach().clone() for p in parameters]
    yield
    with torch.no_grad():
        for p, b in zip(parameters, before, strict=True):
            p.copy_(b)


running = Score("running |g|", lambda block: block.average("size"), ties=magnitude)


@dataclass(frozen=True)
class Running(fggp.Method):
    """FGGP by a running average of the gradients; a second average is kept and not read."""

    name = "running"
    rate: float = 0.5
    decay: float = 0.8

    def averages(self):
        return [fggp.Average("size", torch.abs, self.decay), fggp.Average("mean", lambda g: g, 0.5)]

    def chain(self, now):
        return [fggp.TopK(running, candidates(self.rate, now)), fggp.TopK(magnitude, now.excess)]
