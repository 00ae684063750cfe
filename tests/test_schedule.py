"""The schedule: the number of active weights at step t, the update steps, and how layers share a total."""

import math

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import fggp
import reference
from fggp import Schedule
from fggp.schedule import active_count, apportion

fractions = st.floats(0, 1, exclude_max=True)


@st.composite
def schedules(draw):
    initial, final = sorted(draw(st.tuples(fractions, fractions)))
    begin = draw(st.integers(0, 100))
    end = begin + draw(st.integers(1, 150))
    return Schedule(final, begin, end, draw(st.integers(1, 200)), initial)


@given(schedules(), st.integers(1, 10**9))
@example(Schedule(0.9, 0, 31, 1), 23_500_000)
@example(Schedule(0.95, 7, 100, 31, 0.5), 20_000_001)
def test_sparsity_and_counts_are_those_of_the_formula_in_doubles(schedule, total):
    for t in range(schedule.end + 20):
        s = reference.sparsity(t, schedule.sparsity, schedule.begin, schedule.end, schedule.init_sparsity)
        assert schedule.sparsity_at(t) == s
        assert schedule.active_at(t, total) == round((1 - s) * total)


@given(schedules())
@example(Schedule(0.5, 3, 10, 3))  # every does not divide the phase
@example(Schedule(0.5, 3, 9, 3))  # it does
@example(Schedule(0.5, 3, 9, 50))  # every is longer than the phase
def test_masks_change_at_regular_steps_and_at_the_end(schedule):
    steps = [t for t in range(schedule.end + 3 * schedule.every) if schedule.is_update(t)]
    assert steps == reference.update_steps(schedule.begin, schedule.end, schedule.every)


def test_update_steps_by_hand():
    def steps(**given):
        schedule = Schedule(0.9, **given)
        return [t for t in range(100) if schedule.is_update(t)]

    assert steps(begin=0, end=10, every=5) == [5, 10]
    assert steps(begin=0, end=11, every=5) == [5, 10, 11]
    assert steps(begin=2, end=11, every=4) == [6, 10, 11]
    assert steps(begin=2, end=3, every=4) == [3]
    assert steps(begin=0, end=3, every=1) == [1, 2, 3]


@given(schedules(), st.integers(1, 10**6))
def test_counts_never_rise_and_end_exact(schedule, total):
    counts = [schedule.active_at(t, total) for t in range(schedule.end + 5)]
    assert set(counts[: schedule.begin + 1]) == {active_count(schedule.init_sparsity, total)}
    assert counts[schedule.begin + 1 :] == sorted(counts[schedule.begin + 1 :], reverse=True)
    assert schedule.sparsity_at(schedule.end) == schedule.sparsity
    assert set(counts[schedule.end :]) == {round((1 - schedule.sparsity) * total)}


def test_halves_are_rounded_to_even():
    assert [active_count(0.5, n) for n in (1, 3, 5, 7)] == [0, 2, 2, 4]
    # In doubles (1 − 0.9)·5 is just below a half.
    assert active_count(0.9, 5) == 0


def test_the_cubic_by_hand():
    schedule = Schedule(0.9, begin=10, end=20, every=1, init_sparsity=0.1)
    assert [schedule.sparsity_at(t) for t in (0, 10, 20, 99)] == [0.1, 0.1, 0.9, 0.9]
    assert math.isclose(schedule.sparsity_at(15), 0.9 - 0.8 / 8)


@given(schedules(), st.integers(0, 300))
def test_the_linear_schedule(schedule, t):
    linear = Schedule(
        schedule.sparsity, schedule.begin, schedule.end, schedule.every, schedule.init_sparsity, fggp.linear
    )
    way = min(1, max(0, (t - schedule.begin) / (schedule.end - schedule.begin)))
    expected = schedule.init_sparsity + (schedule.sparsity - schedule.init_sparsity) * way
    assert math.isclose(linear.sparsity_at(t), expected, abs_tol=1e-12)


# Sharing a total over layers


@st.composite
def shared_totals(draw):
    n = draw(st.integers(1, 8))
    shares = draw(st.lists(st.integers(1, 20), min_size=n, max_size=n))
    caps = draw(st.lists(st.integers(0, 40), min_size=n, max_size=n))
    assume(sum(caps))
    return draw(st.integers(0, sum(caps))), shares, caps


@given(shared_totals())
@example((5, [1, 1, 1], [9, 9, 9]))  # remainders tie: earlier layers first
@example((12, [100, 1, 1], [6, 9, 9]))  # one layer gets its cap, the others the rest
@example((7, [5, 5, 1], [0, 3, 9]))
@example((4, [11, 5], [2, 9]))  # 2.75 of at most 2
def test_apportioned_parts_are_exact_capped_and_proportional(given_):
    total, shares, caps = given_
    parts = apportion(total, shares, caps)
    assert parts == reference.share_out(total, shares, caps)
    assert sum(parts) == total
    assert all(0 <= part <= cap for part, cap in zip(parts, caps, strict=True))
    unfilled = [(p, s) for p, s, c in zip(parts, shares, caps, strict=True) if p < c]
    assert all(abs(p / s - q / r) < 1 / s + 1 / r for p, s in unfilled for q, r in unfilled)


def test_apportion_by_hand():
    assert apportion(5, [1, 1, 1], [9, 9, 9]) == [2, 2, 1]
    assert apportion(12, [100, 1, 1], [6, 9, 9]) == [6, 3, 3]
    assert apportion(0, [1, 2], [3, 3]) == [0, 0]


@pytest.mark.parametrize("total", [-1, 7])
def test_a_total_that_does_not_fit_is_refused(total):
    with pytest.raises(ValueError, match=rf"total={total} must lie in \[0, 6\]"):
        apportion(total, [1, 1], [3, 3])
