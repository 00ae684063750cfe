"""Operations that only move channels become one operation, with the same result."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from captured import Lambda, assert_faithful, count_operations, images, only_operation
from fggp.ship.graph.operations import Channels


def shuffled(x, groups):
    """As ShuffleNet writes it."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


@pytest.mark.parametrize(
    ("function", "index"),
    [
        (lambda m, x: x.chunk(2, 1)[1], [3, 4, 5]),
        (lambda m, x: x.chunk(4, -3)[1], [2, 3]),
        (lambda m, x: x.split(4, 1)[1], [4, 5]),
        (lambda m, x: x.split([1, 3, 2], 1)[1], [1, 2, 3]),
        (lambda m, x: x[:, 1:-1], [1, 2, 3, 4]),
        (lambda m, x: x[:, ::2], [0, 2, 4]),
        (lambda m, x: x[:, -2:][:, :1], [4]),
        (lambda m, x: shuffled(x, 2), [0, 3, 1, 4, 2, 5]),
        (lambda m, x: shuffled(shuffled(x, 3), 2), [0, 1, 2, 3, 4, 5]),
        (lambda m, x: F.channel_shuffle(x, 3), [0, 2, 4, 1, 3, 5]),
        (lambda m, x: torch.cat([x, x[:, :1]], 1)[:, 5:], [5, 0]),
        (lambda m, x: torch.cat(x.chunk(2, 1)[::-1], 1), [3, 4, 5, 0, 1, 2]),
    ],
)
def test_parts_and_orders_of_channels(function, index):
    graph = assert_faithful(Lambda(function), images(2, channels=6), images(3, channels=6))
    assert count_operations(graph) == {"Channels": 1}
    assert list(only_operation(graph, Channels).index) == index


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x.chunk(2, 2)[0],
        lambda m, x: x[:1],
        lambda m, x: x[:, :, ::2],
        lambda m, x: torch.cat([x, x], 2),
        lambda m, x: x.view(len(x), 2, 3, 8, 8).transpose(1, 3).reshape(x.shape),
        lambda m, x: x.view(len(x), 2, 3, 8, 8).transpose(1, 2).reshape(len(x), 6, 4, 16),
        lambda m, x: x.view(len(x), 2, 3, 4, 16).transpose(1, 2).reshape(x.shape),
        lambda m, x: x.view(len(x), 6, 2, 4, 8).transpose(1, 2).reshape(x.shape),
        lambda m, x: x.double().chunk(2, 1)[0],
    ],
)
def test_what_moves_more_than_channels_is_left(function):
    assert "Channels" not in count_operations(assert_faithful(Lambda(function), images(2, channels=6)))


def test_a_block_of_shufflenet_copies_each_channel_once():
    def function(m, x):
        for conv in (m.a, m.b):
            kept, changed = x.chunk(2, 1)
            x = shuffled(torch.cat([kept, conv(changed)], 1), 2)
        return x

    model = Lambda(function, a=torch.nn.Conv2d(3, 3, 1), b=torch.nn.Conv2d(3, 3, 1))
    graph = assert_faithful(model, images(2, channels=6))
    # For each block what the convolution reads, and its output beside what is kept.
    assert count_operations(graph) == {"Conv2d": 2, "Channels": 4}


def test_what_is_read_elsewhere_too_is_not_composed():
    def function(m, x):
        both = torch.cat([x, x.exp()], 1)
        return both, both[:, :4]

    graph = assert_faithful(Lambda(function), images(2, channels=3))
    assert [len(op.inputs) for op in graph.ops if isinstance(op, Channels)] == [2, 1]


MOVES = {
    "half": lambda a, b: a.chunk(2, 1)[0] if a.shape[1] > 1 else a,
    "last": lambda a, b: a.split(max(1, a.shape[1] - 1), 1)[-1],
    "odd": lambda a, b: a[:, a.shape[1] // 2 :: 2],
    "cat": lambda a, b: torch.cat([a, b, a], 1),
    "shuffle": lambda a, b: shuffled(a, 2) if a.shape[1] % 2 == 0 else shuffled(a, a.shape[1]),
    "sin": lambda a, b: a.sin(),  # which does not amplify what rounding does
}


@settings(max_examples=settings.default.max_examples // 2)
@given(st.lists(st.tuples(st.sampled_from(list(MOVES)), st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=7))
def test_any_moves_of_channels(moves):
    def function(m, x):
        values = [x]
        for kind, i, j in moves:
            made = MOVES[kind](values[-1 - i % len(values)], values[-1 - j % len(values)])
            values.append(made[:, :9])
        return values[-1], values[-1 - len(values) // 2] + 0

    graph = assert_faithful(Lambda(function), images(2, channels=4, side=3))
    kinds = set(count_operations(graph)) - {"Channels", "aten.sin.default", "Affine"}
    assert not kinds
