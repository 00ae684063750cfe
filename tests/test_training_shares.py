"""Shares of training as optimizer steps."""

from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fggp import Schedule
from fggp.training_shares import check_shares, steps_of_shares

SHARES = st.floats(0, 1, allow_subnormal=False)


@pytest.mark.parametrize(
    ("total", "begin", "end", "every", "expected"),
    [
        (62_500, 0.0, 0.5, None, (0, 31_250, 1_008)),  # the protocol of the literature
        (62_500, 0.0, 0.5, 1_000, (0, 31_250, 1_000)),
        (100, 0.1, 0.75, None, (10, 75, 2)),
        (100, 0, 1, None, (0, 100, 3)),
        (100, 0.29, 0.58, None, (29, 58, 1)),  # 0.29 · 100 is below 29 in doubles
        (3, 0.0, 0.5, None, (0, 2, 1)),
        (1, 0.0, 0.5, None, (0, 1, 1)),
        (1, 0.9, 1.0, None, (0, 1, 1)),
        (10, 0.99, 1.0, None, (9, 10, 1)),
        (10, 0.5, 0.51, None, (5, 6, 1)),
    ],
)
def test_shares_become_steps(total, begin, end, every, expected):
    assert steps_of_shares(total, begin, end, every) == expected


@given(st.integers(1, 10**7), SHARES, SHARES, st.none() | st.integers(1, 10**6))
@example(1, 0.0, 5e-324, None)
def test_steps_are_what_the_pruner_takes_and_near_the_shares(total, a, b, every):
    begin, end = sorted((a, b))
    if begin == end:
        return
    steps = steps_of_shares(total, begin, end, every)
    Schedule(0.9, **steps._asdict())
    assert 0 <= steps.begin < steps.end <= total
    # Within a step, of which half is rounding and half makes room for one step of pruning.
    assert abs(steps.begin - Fraction(begin) * total) <= 1
    assert abs(steps.end - Fraction(end) * total) <= Fraction(3, 2)
    if every is None:
        assert steps.every == max(1, (steps.end - steps.begin) // 31)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((0.5, 0.5, None), ValueError, r"end=0\.5 must be greater than begin=0\.5"),
        ((0.0, 31_250, None), ValueError, r"end=31250 must lie in \[0, 1\]: it is a share of training, not a step"),
        ((-0.1, 0.5, None), ValueError, r"begin=-0\.1 must lie in \[0, 1\]"),
        ((float("nan"), 0.5, None), ValueError, r"begin=nan must lie in \[0, 1\]"),
        ((0.0, "half", None), TypeError, r"end='half' must be a number in \[0, 1\]"),
        ((False, 0.5, None), TypeError, r"begin=False must be a number"),
        ((0.0, 0.5, 0), ValueError, r"every=0 must be at least 1"),
        ((0.0, 0.5, 1.5), TypeError, r"every=1\.5 must be an int"),
        ((0.0, 0.5, True), TypeError, r"every=True must be an int"),
    ],
)
def test_wrong_shares_are_refused(arguments, error, words):
    with pytest.raises(error, match=words):
        check_shares(*arguments)
    with pytest.raises(error, match=words):
        steps_of_shares(100, *arguments)


@pytest.mark.parametrize(("total", "error"), [(0, ValueError), (-1, ValueError), (10.0, TypeError), (True, TypeError)])
def test_a_wrong_length_of_training_is_refused(total, error):
    with pytest.raises(error, match=f"total={total!r} must be"):
        steps_of_shares(total, 0.0, 0.5, None)
