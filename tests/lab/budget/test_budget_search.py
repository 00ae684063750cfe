"""What decides in `fggp budget`: bisection, intervals and limits, beside slow and obvious forms."""

import math
from itertools import pairwise
from statistics import variance

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fggp.lab.base.errors import UsageError
from fggp.lab.budget.estimate import estimate, noise_of_one_run
from fggp.lab.budget.search import LEVELS, highest, lowest
from fggp.lab.budget.settings import BudgetSettings
from fggp.lab.budget.wishes import Cost, Wishes, bytes_text, ms_text


@given(st.integers(0, 20), st.integers(0, 20), st.integers(-1, 41))
def test_bisection_finds_what_trying_all_finds(bottom, more, limit):
    top = bottom + more
    everything = range(bottom, top + 1)
    tried: list[int] = []

    def meets(index):
        tried.append(index)
        return index <= limit

    assert highest(bottom, top, meets) == max((i for i in everything if i <= limit), default=None)
    assert len(tried) == len(set(tried)) <= (more + 1).bit_length()
    assert all(bottom <= index <= top for index in tried)
    assert lowest(bottom, top, lambda index: index > limit) == min((i for i in everything if i > limit), default=None)


def test_levels_leave_a_fifth_less_at_most():
    kept = [1 - level for level in LEVELS]
    assert all(0.69 < after / before < 0.91 for before, after in pairwise(kept))


def test_an_estimate_compares_means():
    found = estimate([90, 92], [89, 88, 90], 1000)
    assert (found.drop, found.accuracy, found.runs) == (2, 89, 3)
    assert found.meets(2)
    assert not found.meets(1.99)
    assert found.close_to(2.5)
    assert not found.close_to(9)


def test_better_weights_to_start_from_are_the_reference():
    assert estimate([90, 92], [89], 100, start=95).drop == 6
    assert estimate([90, 92], [89], 100, start=85).drop == 2


def test_noise_falls_with_images_and_grows_with_spread():
    few, many = (estimate([90], [90], images).noise for images in (100, 10_000))
    assert 5 * many < few < 20 * many
    # The textbook's interval of a difference of two shares, 1.96·√(2·0.9·0.1/10,000), is 0.83 points.
    assert many == pytest.approx(0.83, abs=0.01)
    assert estimate([88, 92], [90], 10_000).noise > 2
    assert estimate([100], [100], 100).noise > 1  # right on all of 100 images is not right always
    assert noise_of_one_run([90, 90], [90, 90], (100, 400)) < noise_of_one_run([90, 90], [88, 92], (100, 400))
    assert noise_of_one_run([90], [90], (100, 400)) > few


def test_few_runs_are_not_trusted_as_many():
    """The textbook's interval of two samples of equal size and variance, where images do not count."""
    images = 10**9
    for runs, quantile in ((2, 4.303), (3, 2.776), (10, 2.101)):  # Student's t with 2, 4 and 18 degrees of freedom
        dense = [90 + (-1) ** i for i in range(runs)]
        expected = quantile * math.sqrt(2 * variance(dense) / runs)
        assert estimate(dense, dense, images).noise == pytest.approx(expected, rel=1e-3)
    # One pruned run is spread like the two dense ones, so that there is one degree of freedom.
    assert estimate([89, 91], [90], images).noise == pytest.approx(12.706 * math.sqrt(2 * 1.5), rel=1e-3)
    assert estimate([90], [89, 91], images).noise == pytest.approx(12.706 * math.sqrt(2 * 1.5), rel=1e-3)
    assert noise_of_one_run([89, 91], [90], (images, images)) == pytest.approx(12.706 * math.sqrt(2 * 2.5), rel=1e-3)
    # A spread that hardly counts beside the number of images leaves the normal distribution.
    assert estimate([90, 90.001], [90], 10_000).noise == pytest.approx(estimate([90], [90], 10_000).noise, rel=1e-3)


def test_intervals_cover_what_they_say():
    random = np.random.default_rng(0)
    for runs, images, spread in ((3, 300, 0.2), (3, 10**6, 1.0), (2, 3000, 0.5)):
        dense, pruned = (
            95 + random.normal(0, math.sqrt(95 * 5 / images), (4000, 1)) + random.normal(0, spread, (4000, runs))
            for _ in range(2)
        )
        found = [estimate(d.tolist(), p.tolist(), images) for d, p in zip(dense, pruned, strict=True)]
        assert 0.93 < np.mean([abs(each.drop) < each.noise for each in found]) < 0.99


@pytest.mark.parametrize(
    ("options", "wishes"),
    [
        ({"drop": 1.0}, Wishes(1.0, None, None)),
        ({"latency": "2ms"}, Wishes(None, 2.0, None)),
        ({"latency": "400 us", "size": "500kB"}, Wishes(None, 0.4, 500_000)),
        ({"drop": 0.0, "latency": ".5s", "size": "1.5MB"}, Wishes(0.0, 500.0, 1_500_000)),
        ({"size": "64KiB"}, Wishes(None, None, 65_536)),
        ({"size": "900B"}, Wishes(None, None, 900)),
    ],
)
def test_limits_are_read_with_their_units(options, wishes):
    assert BudgetSettings(**options).wishes() == wishes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "name a limit: --drop"),
        ({"latency": "2"}, "latency is '2'; it must be a number above 0 and a unit, such as 2ms"),
        ({"latency": "0ms"}, "latency is '0ms'; it must be"),
        ({"latency": "2kB"}, "latency is '2kB'; it must be"),
        ({"size": "big"}, "size is 'big'; it must be a number above 0 and a unit, such as 500kB"),
        ({"drop": -1.0}, "drop is -1.0; it must be in"),
        ({"drop": float("nan")}, "drop is nan; it must be in"),
        ({"drop": 1.0, "method": "dense"}, "method is 'dense'; it must be a method that prunes"),
        ({"drop": 1.0, "holdout": 0.0}, "holdout is 0.0; it must be in .*chosen by these images"),
        ({"drop": 1.0, "batch": 0}, "batch is 0; it must be"),
        ({"drop": 1.0, "seeds": 0}, "seeds is 0; it must be"),
    ],
)
def test_wrong_limits_are_named(options, message):
    with pytest.raises(UsageError, match=message):
        BudgetSettings(**options).wishes()


def test_what_misses_a_limit_is_said_in_the_units_of_people():
    wishes = Wishes(1.0, 2.0, 500_000)
    assert wishes.met_by(Cost(500_000, 2.0))
    assert wishes.missed(Cost(1_234_567, 0.0123)) == ["size is 500 kB, but its file has 1.235 MB"]
    assert wishes.missed(Cost(99, 2.5)) == ["latency is 2 ms, but it takes 2.5 ms"]
    assert str(wishes) == "at most 1 point below dense, at most 2 ms, at most 500 kB"
    assert (bytes_text(999), ms_text(0.01234), ms_text(1500)) == ("999 B", "0.0123 ms", "1.5 s")
