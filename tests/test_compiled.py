"""Under torch.compile: the same bits, no recompilation, at most one graph break. In a CUDA graph: refused."""

from dataclasses import dataclass
from functools import partial

import pytest
import torch
import torch._dynamo
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy

import helpers

pytestmark = [
    # The compiler reads the .grad of a loss when a graph breaks at the backward pass.
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]

STEPS = 14  # updates at 4, 6, 8, 10 and 12


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Forget what other tests compiled."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Own(torch.optim.Optimizer):
    """An optimizer that compiles into one full graph; PyTorch's own ones break it."""

    def __init__(self, parameters, lr=0.1):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])
        return loss


def own(model):
    return Own(model.parameters())


def sgd(model):
    return helpers.sgd(model, foreach=True)  # as when compiled; by default a CPU uses a loop over weights


def adamw(model, **options):
    return torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01), **options)


WAYS = ["model", "gradients", "step", "function", "all", "closure"]


def training_step(way, model, optimizer, compile):
    """A training step on a batch (x, y), a part of which is compiled by ``compile``."""
    network = compile(model) if way == "model" else model

    def gradients(x, y):
        optimizer.zero_grad()
        loss = cross_entropy(network(x), y)
        loss.backward()
        return loss

    def whole(x, y):
        loss = gradients(x, y)
        optimizer.step()
        return loss

    def with_closure(x, y):
        return optimizer.step(lambda: gradients(x, y))

    if way == "all":
        return compile(whole)
    if way == "closure":
        return compile(with_closure)
    if way == "gradients":
        gradients = compile(gradients)
    elif way == "step":
        optimizer.step = compile(optimizer.step)
    elif way == "function":
        optimizer.step = compile(lambda step=optimizer.step: step())
    return whole


def batch(t):
    generator = torch.Generator().manual_seed(t)
    return torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)


def train(way, make_optimizer, compile, prune=True):
    """Train a small net; yield model, optimizer, pruner and loss after every step."""
    model = helpers.mlp()
    optimizer = make_optimizer(model)
    pruner = helpers.make_pruner(model, optimizer, begin=2, end=12, every=2) if prune else None
    step = training_step(way, model, optimizer, compile)
    for t in range(1, STEPS + 1):
        loss = step(*batch(t))
        yield model, optimizer, pruner, loss


@pytest.mark.parametrize("way", WAYS)
def test_the_run_is_the_eager_one_to_the_bit(way):
    compiled = train(way, sgd, lambda f: torch.compile(f, backend="eager"))
    eager = train(way, sgd, lambda f: f)
    for (model, optimizer, pruner, loss), (model_, optimizer_, pruner_, loss_) in zip(compiled, eager, strict=True):
        assert helpers.identical(loss, loss_)
        assert helpers.identical(dict(model.state_dict()), dict(model_.state_dict()))
        assert helpers.identical(optimizer.state_dict(), optimizer_.state_dict())
        assert helpers.identical(pruner.state_dict(), pruner_.state_dict())
        helpers.assert_exactly_zero(pruner, optimizer)
    assert (pruner.step, pruner.last_update, pruner.sparsity) == (STEPS, 12, 0.8)


@pytest.mark.parametrize(("make_optimizer", "backend"), [(sgd, "aot_eager"), (adamw, "aot_eager"), (adamw, "inductor")])
def test_a_compiled_optimizer_is_pruned_as_by_hand(make_optimizer, backend):
    def make(model):
        optimizer = make_optimizer(model)
        optimizer.step = torch.compile(optimizer.step, backend=backend)
        return optimizer

    helpers.run_beside_the_reference(helpers.mlp, make, 8)


@dataclass
class Work:
    """The compiler's work in a run: graphs and traced functions up to each step, and all graph breaks."""

    graphs: list[int]
    functions: list[int]
    breaks: int
    breaks_by_pruner: int


def work(way, make_optimizer, prune):
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("eager")
    graphs, functions = [], []
    for _, optimizer, pruner, _ in train(way, make_optimizer, lambda f: torch.compile(f, backend=counter), prune):
        graphs.append(counter.frame_count)
        functions.append(counters["frames"]["total"])
        if prune:
            helpers.assert_exactly_zero(pruner, optimizer)
    breaks = counters["graph_break"]
    return Work(graphs, functions, sum(breaks.values()), sum(n for why, n in breaks.items() if "Pruner" in why))


@pytest.mark.parametrize("make_optimizer", [sgd, own])
@pytest.mark.parametrize("way", WAYS)
def test_the_compiler_has_no_more_work_but_for_one_break(way, make_optimizer):
    plain = work(way, make_optimizer, prune=False)
    pruned = work(way, make_optimizer, prune=True)
    # The same number at every step: nothing is recompiled. (The hook that sees all optimizers may split a plain step.)
    assert all(p <= q for p, q in zip(pruned.graphs, plain.graphs, strict=True))
    assert set(pruned.functions[3:]) == {pruned.functions[2]}  # from the first update on, nothing is traced again
    assert pruned.breaks_by_pruner <= 1
    # PyTorch's optimizers do not break a graph that the pruner has broken before them.
    assert pruned.breaks <= plain.breaks + (make_optimizer is own)


def test_capturable_optimizers_go_on_working():
    make = partial(adamw, capturable=True)
    pruned = work("step", make, prune=True)  # on a CPU they have to be compiled
    assert pruned.graphs == work("step", make, prune=False).graphs


@pytest.mark.parametrize("way", ["step", "function"])
def test_a_full_graph_of_the_step_is_refused_and_leaves_all_as_it_was(way):
    model = helpers.mlp()
    optimizer = own(model)
    pruner = helpers.make_pruner(model, optimizer, end=1)
    eager = optimizer.step
    training_step(way, model, optimizer, lambda f: torch.compile(f, backend="eager", fullgraph=True))
    helpers.backward(model, optimizer, 1)
    reason = r"Pruner acts inside optimizer\.step\(\).* compile the step without fullgraph=True"
    with helpers.untouched(model, optimizer), pytest.raises(torch._dynamo.exc.Unsupported, match=reason):
        optimizer.step()
    assert (pruner.step, pruner.sparsity) == (0, 0)
    eager()
    assert (pruner.step, pruner.sparsity) == (1, 0.8)


def test_a_full_graph_of_the_model_is_not():
    run = train("model", sgd, lambda f: torch.compile(f, backend="eager", fullgraph=True))
    for _, optimizer, pruner, _ in run:
        helpers.assert_exactly_zero(pruner, optimizer)
    assert pruner.sparsity == 0.8


@pytest.mark.parametrize("way", ["step", "function", "all", "closure"])
def test_what_was_compiled_before_is_pruned_until_the_pruner_is_removed(way):
    model = helpers.mlp()
    optimizer = sgd(model)
    step = training_step(way, model, optimizer, lambda f: torch.compile(f, backend="eager"))
    for t in range(1, 4):
        step(*batch(t))
    pruner = helpers.make_pruner(model, optimizer)
    for t in range(4, 11):
        step(*batch(t))
        helpers.assert_exactly_zero(pruner, optimizer)
    assert (pruner.step, pruner.sparsity) == (7, 0.8)
    pruner.remove()
    step(*batch(11))
    assert pruner.step == 7
    assert sum(int(weight.count_nonzero()) for weight in helpers.prunable(model)) > 18  # of 90


def test_a_step_that_is_captured_in_a_cuda_graph_is_refused(monkeypatch):
    model = helpers.mlp()
    optimizer = sgd(model)
    pruner = helpers.make_pruner(model, optimizer, end=1)
    helpers.backward(model, optimizer, 1)
    with monkeypatch.context() as capturing:
        capturing.setattr(torch.cuda, "is_initialized", lambda: True)
        capturing.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        reason = r"captured in a CUDA graph.* call optimizer\.step\(\) after each replay"
        with helpers.untouched(model, optimizer), pytest.raises(RuntimeError, match=reason):
            optimizer.step()
    assert (pruner.step, pruner.sparsity) == (0, 0)
    optimizer.step()
    assert (pruner.step, pruner.sparsity) == (1, 0.8)
    helpers.assert_exactly_zero(pruner, optimizer)
