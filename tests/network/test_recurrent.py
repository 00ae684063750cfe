"""LSTM and GRU, against PyTorch in float64."""

import copy
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from networks import Refused, run_one

OPERATORS = {"lstm": nn.LSTM, "gru": nn.GRU}


def weights_of(module: nn.RNNBase) -> list[Tensor | None]:
    """For each layer and direction the four tensors, None for a bias that it does not have."""
    found: list[Tensor | None] = []
    for layer in range(module.num_layers):
        for suffix in ("", "_reverse") if module.bidirectional else ("",):
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                parameter = getattr(module, f"{name}_l{layer}{suffix}", None)
                found.append(None if parameter is None else parameter.detach())
    return found


def compare(
    op: str, module: nn.RNNBase, x: Tensor, states: list[Tensor], threads: int = 2, constant: bool = True
) -> None:
    """Run the operation, and the module in float64."""
    given_states: list[Tensor | None] = [*states, *[None] * ((2 if op == "lstm" else 1) - len(states))]
    inputs = [x, *given_states, *weights_of(module)]
    places = [i for i, tensor in enumerate(inputs) if i > len(given_states) and tensor is not None]
    found = run_one(
        op,
        inputs,
        places if constant else [],
        threads=threads,
        outputs=3 if op == "lstm" else 2,
        layers=module.num_layers,
        bidirectional=module.bidirectional,
        batch_first=module.batch_first,
    )
    doubles = [state.double() for state in states]
    with torch.no_grad():
        exact, last = copy.deepcopy(module).double()(
            x.double(), *([] if not states else [tuple(doubles)] if op == "lstm" else doubles)
        )
    for one, expected in zip(found, [exact, *(last if op == "lstm" else [last])], strict=True):
        assert one.shape == expected.shape
        torch.testing.assert_close(one.double(), expected, rtol=1e-6, atol=1e-6)


@given(
    st.sampled_from(list(OPERATORS)),
    st.fixed_dictionaries(
        {
            "input_size": st.sampled_from([1, 3, 16, 33]),
            "hidden_size": st.sampled_from([1, 5, 16, 40]),
            "num_layers": st.integers(1, 3),
            "bidirectional": st.booleans(),
            "batch_first": st.booleans(),
            "bias": st.booleans(),
        }
    ),
    st.integers(1, 6),
    st.one_of(st.none(), st.sampled_from([1, 2, 9, 20])),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 2]),
)
def test_recurrent(op, sizes, steps, batch, stated, constant, threads):
    module = OPERATORS[op](**sizes)
    shape = [steps, sizes["input_size"]]
    state = [sizes["num_layers"] * (1 + sizes["bidirectional"]), sizes["hidden_size"]]
    if batch is not None:
        shape.insert(0 if sizes["batch_first"] else 1, batch)
        state.insert(1, batch)
    states = [torch.randn(state) for _ in range(2 if op == "lstm" else 1)] if stated else []
    compare(op, module, torch.randn(shape), states, threads, constant)


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("batch", [1, 33])
def test_larger_networks(op, batch):
    compare(op, OPERATORS[op](200, 256, 2, bidirectional=True), torch.randn(12, batch, 200), [])


@pytest.mark.parametrize("op", OPERATORS)
def test_tensors_without_elements(op):
    count = 3 if op == "lstm" else 2
    weights = weights_of(OPERATORS[op](4, 5))
    first = torch.randn(1, 2, 5)
    states = [first] * (count - 1)
    out, *last = run_one(op, [torch.zeros(0, 2, 4), *states, *weights], outputs=count, layers=1)
    assert out.shape == (0, 2, 5)
    assert all(torch.equal(one, first) for one in last)
    out, *last = run_one(op, [torch.zeros(3, 0, 4), *[None] * (count - 1), *weights], outputs=count, layers=1)
    assert out.shape == (3, 0, 5)
    assert all(one.shape == (1, 0, 5) for one in last)


X, W, V = torch.zeros(3, 2, 4), torch.zeros(15, 4), torch.zeros(15, 5)
WRONG: list[tuple[list[Tensor | None], dict[str, Any], str]] = [
    ([X, None, W, V], {}, 'it has no "layers"'),
    ([X, None, W, V], {"layers": 0}, '"layers" is 0'),
    ([X, None, W, V], {"layers": 2**60}, '"layers" is 1152921504606846976'),
    ([X, None, W, V], {"layers": 2}, "the weights of its layer 1 are missing"),
    ([X, None, W, V], {"layers": 1, "bidirectional": True}, "the weights of its layer 0 are missing"),
    ([X, None, W], {"layers": 1}, "no weight of the states"),
    ([X, None, W, W], {"layers": 1}, "its weight of an input is F32 [15, 4], and must be F32 [12, 4]"),
    ([X, None, W, V, torch.zeros(5)], {"layers": 1}, "its bias of an input is F32 [5], and must be F32 [15]"),
    ([X, torch.zeros(1, 3, 5), W, V], {"layers": 1}, "its first state is F32 [1, 3, 5], and must be F32 [1, 2, 5]"),
    ([X, None, W, V, None, None, None], {"layers": 1}, "it reads 1 or more tensors"),
    ([X[0, 0], None, W, V], {"layers": 1}, "its input is F32 [4], and must have 2 or 3 dimensions"),
    ([X[:, :, :0], None, W[:, :0], V], {"layers": 1}, "have no numbers"),
    ([X.long(), None, W, V], {"layers": 1}, "its input is I64 [3, 2, 4], and must be F32"),
]


@pytest.mark.parametrize(("inputs", "attributes", "message"), WRONG)
def test_what_is_wrong_is_named(inputs, attributes, message):
    with pytest.raises(Refused) as refused:
        run_one("gru", inputs, outputs=2, **attributes)
    assert message in str(refused.value)
