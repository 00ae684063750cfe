import math
from statistics import mean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fggp.lab.report.statistics import paired, ranks, summarise

accuracy = st.floats(0, 100, allow_nan=False)


def test_mean_and_deviation_by_hand():
    summary = summarise([90.0, 92.0, 97.0])
    assert summary.mean == pytest.approx(93.0)
    assert summary.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert summary.count == 3


def test_one_value_has_no_deviation():
    assert summarise([90.0]).std is None


@given(st.lists(accuracy, min_size=2, max_size=20))
def test_deviation_is_that_of_numpy(values):
    assert summarise(values).std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_paired_difference_by_hand():
    # Differences 1, 2, 3: mean 2, deviation 1, t(2, 97.5 %) = 4.302653.
    difference = paired({0: 91.0, 1: 92.0, 2: 93.0}, {0: 90.0, 1: 90.0, 2: 90.0})
    assert difference.pairs == 3
    assert difference.mean == pytest.approx(2.0)
    assert difference.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6)
    assert difference.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6)
    assert difference.verdict == "not distinguishable"


@given(st.lists(st.tuples(accuracy, accuracy), min_size=2, max_size=12))
def test_interval_is_that_of_scipy(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found = paired(dict(enumerate(ours)), dict(enumerate(theirs)))
    if found.low is None:
        assert np.ptp(np.subtract(ours, theirs)) < 1e-8
        return
    expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)
    zero_inside = found.low <= 0 <= found.high
    assert (found.verdict == "not distinguishable") == zero_inside
    assert zero_inside or found.verdict == ("higher" if found.mean > 0 else "lower")


def test_only_seeds_that_both_have_are_paired():
    assert paired({0: 1.0, 1: 2.0, 7: 50.0}, {1: 1.0, 0: 0.0, 8: 99.0}).pairs == 2


def test_nothing_is_claimed_of_too_little():
    assert paired({0: 1.0}, {1: 1.0}) is None
    alone = paired({0: 2.0}, {0: 1.0})
    assert (alone.mean, alone.low, alone.high, alone.verdict) == (1.0, None, None, "unknown")
    # A deviation of zero among three runs is luck: no certainty follows from it.
    same = paired({0: 2.0, 1: 3.0, 2: 4.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert (same.low, same.verdict) == (None, "unknown")
    assert paired({0: 2.0, 1: 3.0}, {0: 2.0, 1: 3.0}).verdict == "not distinguishable"


def test_ranks_by_hand():
    scores = {"a": 90.0, "b": 95.0, "c": 90.0, "d": 80.0}
    assert ranks(scores) == {"a": 2.5, "b": 1.0, "c": 2.5, "d": 4.0}


def naive_ranks(scores: dict[str, float]) -> dict[str, float]:
    """Sort, number, and give each of those that tie the mean of their numbers."""
    order = sorted(scores.values(), reverse=True)
    return {name: mean(place for place, other in enumerate(order, 1) if other == own) for name, own in scores.items()}


@given(st.dictionaries(st.text(max_size=3), st.sampled_from([1.0, 2.0, 2.5, 97.31, 97.32]), min_size=1, max_size=9))
def test_ranks_are_those_of_a_naive_ranking(scores):
    assert ranks(scores) == pytest.approx(naive_ranks(scores))
    assert sum(ranks(scores).values()) == pytest.approx(len(scores) * (len(scores) + 1) / 2)


def test_the_last_bits_of_a_mean_do_not_rank():
    assert ranks({"a": 0.1 + 0.2, "b": 0.3}) == {"a": 1.5, "b": 1.5}
