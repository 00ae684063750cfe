"""Which trial `fggp budget` chooses, beside trying all of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fggp.lab.base.errors import UsageError
from fggp.lab.budget import budget as command
from fggp.lab.budget.estimate import Estimate
from fggp.lab.budget.search import LEVELS
from fggp.lab.budget.trials import Trial
from fggp.lab.budget.wishes import Cost, Wishes

QUIET = Console(quiet=True)


def trial(sparsity: float) -> Trial:
    """As many bytes as weights are left of 10,000, and as many points below dense as per cent are pruned."""
    return Trial(sparsity, [], Estimate(100 * sparsity, 1.0, 1, 50.0), Cost(round(10_000 * (1 - sparsity)), 1.0))


class Trials:
    def __init__(self) -> None:
        self.tried: list[float] = []

    def at(self, sparsity: float) -> Trial:
        if sparsity not in self.tried:
            self.tried.append(sparsity)
        return trial(sparsity)


@given(st.integers(0, len(LEVELS) - 1), st.integers(0, 5000))
def test_a_limit_of_size_is_met_by_the_lowest_from_the_predicted_one_on(bottom, size):
    trials, wishes = Trials(), Wishes(None, None, size)
    meeting = [level for level in LEVELS[bottom:] if trial(level).meets(wishes)]
    if meeting:
        assert command._choose(trials, wishes, bottom, QUIET, predicted=True).sparsity == meeting[0]
    else:
        with pytest.raises(UsageError, match=r"^size is .* B, but .* at 99.5 %, the highest sparsity that is tried$"):
            command._choose(trials, wishes, bottom, QUIET, predicted=True)
    assert len(trials.tried) <= (1 if meeting[:1] == [LEVELS[bottom]] else 6)


@given(st.integers(0, len(LEVELS) - 1), st.floats(0, 99.9))
def test_a_limit_of_accuracy_is_met_by_the_highest(bottom, drop):
    trials, wishes = Trials(), Wishes(drop, None, None)
    meeting = [level for level in LEVELS[bottom:] if trial(level).meets(wishes)]
    if meeting:
        assert command._choose(trials, wishes, bottom, QUIET, predicted=False).sparsity == meeting[-1]
    assert len(trials.tried) <= 5


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (
            True,
            "^at most 2 points below dense, at most 1 kB is predicted to need a sparsity of 90 %, where .* 90.00 ",
        ),
        (False, "^drop is 2 points, but 90 % is the lowest sparsity that is tried, where .* is 90.00 points below"),
    ],
)
def test_what_stands_against_the_limits_is_said(predicted, message):
    with pytest.raises(UsageError, match=message):
        command._choose(Trials(), Wishes(2.0, None, 1000), LEVELS.index(0.9), QUIET, predicted=predicted)
