"""State in every format: where it is pruned it is zero, and elsewhere it keeps its bits."""

from collections import deque

import pytest
import torch
from torch import nn

import helpers
from fggp.masks import optimizer_state
from fggp.masks.optimizer_state import check_state_format, zero_weights_and_state
from optimizer_states import bitsandbytes_numbers, package, torchao_numbers

SGD, Adam = torch.optim.SGD, torch.optim.Adam


def big(dtype=torch.float32):
    """A net with weights that quantising optimizers quantise: they leave less than 4096 elements alone."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96), nn.Tanh(), nn.Linear(96, 48)).to(dtype)


def stepped(make, model, steps=3):
    """An optimizer whose state comes from a few steps with random gradients."""
    optimizer = make(model.parameters())
    for _ in range(steps):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer


def weights_of(model):
    return [p for p in model.parameters() if p.ndim > 1]


def random_masks(weights):
    generator = torch.Generator().manual_seed(1)
    return [torch.rand(w.shape, generator=generator) < 0.4 for w in weights]


def zero_and_compare(optimizer, weights, read):
    """Zero; then compare what ``read(state)`` reads, a dict of new tensors [..., *weight], with what it should be."""
    masks = random_masks(weights)
    before = [read(optimizer.state[w]) for w in weights]
    others = [read(state) for p, state in optimizer.state.items() if p.ndim == 1]
    expected = [torch.where(m, w.detach(), 0.0) for m, w in zip(masks, weights, strict=True)]
    check_state_format(optimizer, weights)
    zero_weights_and_state([optimizer], weights, masks)
    assert helpers.identical([w.detach() for w in weights], expected)
    assert helpers.identical(others, [read(state) for p, state in optimizer.state.items() if p.ndim == 1])
    for w, mask, values in zip(weights, masks, before, strict=True):
        after = read(optimizer.state[w])
        assert after.keys() == values.keys() != set()
        for key, value in after.items():
            assert values[key][..., mask].any(), key  # or the comparison could not fail
            assert values[key][..., ~mask].any(), key
            assert helpers.identical(value, torch.where(mask, values[key], 0.0)), key


def plain_copies(state):
    """The state's floats of the weight's shape, copied."""
    return {k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor) and v.ndim and v.is_floating_point()}


def test_plain_state():
    model = big()
    optimizer = stepped(lambda p: Adam(p, amsgrad=True), model)
    zero_and_compare(optimizer, weights_of(model), plain_copies)


def test_state_of_several_optimizers():
    model = big()
    first, second = (stepped(lambda p: SGD(p, lr=0.1, momentum=0.9), model) for _ in range(2))
    weights = weights_of(model)
    masks = random_masks(weights)
    zero_weights_and_state([first, second], weights, masks)
    for w, mask in zip(weights, masks, strict=True):
        for tensor in (w.detach(), first.state[w]["momentum_buffer"], second.state[w]["momentum_buffer"]):
            assert not helpers.bits(tensor)[~mask].any()
            assert tensor[mask].all()


# torchao


@pytest.fixture
def eager():
    """Torchao compiles its step; the compiler is not what is tested."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["Adam8bit", "AdamW8bit", "AdamFp8", "AdamWFp8"])
def test_torchao(kind, dtype):
    model = big(dtype)
    optimizer = stepped(getattr(package("torchao.optim"), kind), model)
    zero_and_compare(
        optimizer, weights_of(model), lambda s: {k: torchao_numbers(v) for k, v in s.items() if k != "step"}
    )
    assert type(optimizer.state[model[0].weight]["exp_avg"]).__name__.startswith("OptimState")


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("kind", ["Adam4bit", "AdamW4bit"])
def test_torchao_in_4_bits_whose_second_moment_has_no_zero(kind):
    model = big()
    optimizer = stepped(getattr(package("torchao.optim"), kind), model)
    weights = weights_of(model)
    squares = [optimizer.state[w]["exp_avg_sq"] for w in weights]
    before = [torchao_numbers(square) for square in squares]
    zero_and_compare(optimizer, weights, lambda state: {"exp_avg": torchao_numbers(state["exp_avg"])})
    for square, numbers, mask in zip(squares, before, random_masks(weights), strict=True):
        smallest = (square.scale[:, None] * square.qmap.min()).expand(-1, square.block_size).reshape(square.shape)
        assert smallest.all()
        assert helpers.identical(torchao_numbers(square), torch.where(mask, numbers, smallest))
        of_zeros = type(square).zeros(square.shape, signed=False)
        of_zeros.copy_(torch.zeros(square.shape))  # the optimizer itself stores the same code for zeros
        assert not (square.codes & ~mask.view(-1, 2).any(1) * 0xFF).any()
        assert not of_zeros.codes.any()


@pytest.mark.usefixtures("eager")
@pytest.mark.filterwarnings("default")
def test_torchao_of_weights_in_another_memory_layout():
    make = package("torchao.optim").AdamW8bit
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 32, 3)).to(memory_format=torch.channels_last)
    optimizer = stepped(make, model, 1)
    [weight] = weights_of(model)
    mask = torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(random_masks([weight])[0])
    state = optimizer.state[weight]["exp_avg"]
    before = torchao_numbers(state)
    zero_weights_and_state([optimizer], [weight], [mask])
    assert helpers.identical(torchao_numbers(state), torch.where(mask, before, 0.0))


# bitsandbytes


BITSANDBYTES = ["Adam", "AdamW", "PagedAdamW", "AdEMAMix", "Lion", "SGD", "RMSprop", "Adagrad", "LAMB", "LARS"]


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("bits", ["", "8bit"])
@pytest.mark.parametrize("kind", BITSANDBYTES)
def test_bitsandbytes(kind, bits):
    make = getattr(package("bitsandbytes").optim, kind + bits)
    options = {"lr": 0.01, "momentum": 0.9} if kind in ("SGD", "LARS") else {}
    model = big()
    optimizer = stepped(lambda p: make(p, **options), model)
    zero_and_compare(optimizer, weights_of(model), bitsandbytes_numbers)
    assert optimizer.state[model[0].weight]["state1"].dtype == (torch.uint8 if bits else torch.float32)


# pytorch_optimizer


def test_codes_and_low_bits_of_flash_adamw():
    make = package("pytorch_optimizer").FlashAdamW
    model = big(torch.bfloat16)
    optimizer = stepped(lambda p: make(p, master_weight_bits=32), model)

    def read(state):
        return {k: v.double() for k, v in state.items() if not k.endswith("::scales")}

    zero_and_compare(optimizer, weights_of(model), read)
    assert set(read(optimizer.state[model[0].weight])) == {"exp_avg::quantized", "exp_avg_sq::quantized", "error_bits"}


def test_state_in_dicts_and_queues():
    model = big()
    optimizer = SGD(model.parameters(), lr=0.1)
    weights = weights_of(model)
    nested = {}
    for w in weights:
        nested[w] = [torch.randn_like(w) for _ in range(4)]
        optimizer.state[w] = {"by rate": {0.9: nested[w][0]}, "queue": deque(nested[w][1:3]), "list": [nested[w][3]]}
    zero_and_compare(optimizer, weights, lambda s: {str(i): t.clone() for i, t in enumerate(nested_in(s))})


def nested_in(state):
    return [*state["by rate"].values(), *state["queue"], *state["list"]] if state else []


# State that is not of the weight's elements


def square_and_not():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 5, bias=False), nn.Linear(5, 3))


@pytest.mark.parametrize("nest", [lambda t: t, lambda t: [t], lambda t: {"left": t}], ids=["plain", "list", "dict"])
def test_square_factors_of_square_weights_are_left_alone(nest):
    """Shampoo's factors have the shape of a square weight; that of another weight shows what they are."""
    model = square_and_not()
    optimizer = stepped(Adam, model)
    weights = weights_of(model)
    for w in weights:
        optimizer.state[w]["factor"] = nest(torch.ones(len(w), len(w)))
    zero_and_compare(optimizer, weights, lambda s: {k: s[k].clone() for k in ("exp_avg", "exp_avg_sq")})
    for w in weights:
        assert helpers.identical(optimizer.state[w]["factor"], nest(torch.ones(len(w), len(w))))


def test_counters_and_marks_are_left_alone():
    model = big()
    optimizer = stepped(Adam, model, 1)
    weights = weights_of(model)
    for w in weights:
        optimizer.state[w].update(
            counter=torch.ones(w.shape, dtype=torch.int64), mark=torch.ones(w.shape, dtype=torch.bool), name="first"
        )
    zero_weights_and_state([optimizer], weights, random_masks(weights))
    for w in weights:
        assert optimizer.state[w]["counter"].all()
        assert optimizer.state[w]["mark"].all()
        assert optimizer.state[w]["name"] == "first"


class Wrapped(torch.Tensor):
    """A tensor that supports no operation."""

    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, dtype=held.dtype)

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError(func)


class Plain(torch.Tensor):
    """A subclass that keeps its elements as a tensor does."""


def test_a_subclass_without_a_dispatch_of_its_own_is_a_plain_tensor():
    model = big()
    optimizer = stepped(Adam, model, 1)
    for w in weights_of(model):
        optimizer.state[w]["plain"] = torch.randn(w.shape).as_subclass(Plain)
    zero_and_compare(
        optimizer,
        weights_of(model),
        lambda s: {k: v.clone().as_subclass(torch.Tensor) for k, v in s.items() if k in ("exp_avg", "plain")},
    )


@pytest.mark.parametrize(
    ("state", "what"),
    [
        (lambda w: torch.ones(w.shape, dtype=torch.uint8), r"Tensor of torch\.uint8"),
        (lambda w: torch.ones(w.shape, dtype=torch.int16), r"Tensor of torch\.int16"),
        (lambda w: torch.ones(w.shape).to_sparse(), r"Tensor of torch\.float32, torch\.sparse_coo"),
        (lambda w: Wrapped(torch.ones(w.shape)), r"Wrapped of torch\.float32"),
    ],
    ids=["codes", "short codes", "sparse", "subclass"],
)
def test_state_in_an_unknown_format_is_refused_before_anything_is_changed(state, what):
    model = big()
    optimizer = stepped(Adam, model, 1)
    weights = weights_of(model)
    optimizer.state[weights[1]]["history"] = state(weights[1])
    before = [w.detach().clone() for w in weights], optimizer.state[weights[0]]["exp_avg"].clone()
    with pytest.raises(TypeError, match=rf"optimizer=Adam keeps its state 'history' of a pruned weight as {what}"):
        zero_weights_and_state([optimizer], weights, random_masks(weights))
    with pytest.raises(TypeError, match="optimizer=Adam keeps its state 'history'"):
        check_state_format(optimizer, weights)
    assert helpers.identical(before, ([w.detach() for w in weights], optimizer.state[weights[0]]["exp_avg"]))
    check_state_format(optimizer, weights[:1])
    zero_weights_and_state([optimizer], weights[:1], random_masks(weights[:1]))  # the other weight is not pruned


def test_optimizers_that_train_copies_of_the_weights_are_refused():
    model = big()
    optimizer = Adam(model.parameters())
    check_state_format(optimizer, weights_of(model))
    optimizer.param_d2h_map = {}  # what torchao's CPUOffloadOptimizer has, which needs a GPU
    with pytest.raises(ValueError, match="optimizer=Adam trains copies of the weights on the CPU"):
        check_state_format(optimizer, weights_of(model))


def test_state_that_a_wrapper_shares_is_zeroed_once(monkeypatch):
    model = big()
    optimizer = stepped(lambda p: SGD(p, lr=0.1, momentum=0.9), model)
    wrapper = SGD(model.parameters(), lr=0.1)
    wrapper.state = optimizer.state
    zeroed = []
    monkeypatch.setattr(optimizer_state, "zero_pruned", lambda tensors, masks: zeroed.extend(tensors))
    weights = weights_of(model)
    zero_weights_and_state([wrapper, optimizer], weights, random_masks(weights))
    assert len(zeroed) == 4
