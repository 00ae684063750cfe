import itertools
from collections.abc import Iterable

import hypothesis
import pytest
from hypothesis import strategies as st

from fggp.lab.base.errors import UsageError
from fggp.lab.report.findings import (
    baseline_of,
    contest,
    differences,
    entries,
    largest_block,
    on_shared_seeds,
    overall,
)
from fggp.lab.report.runs import parse
from fggp.lab.report.statistics import paired, summarise
from fggp.lab.report.tables import Setting, Table, settings_of, tabulate
from fggp.lab.report.wording import headline, signed
from made import record


def tables(records: Iterable[dict]) -> list[Table]:
    return tabulate([parse(each)[0] for each in records])


def grid(accuracies: dict[str, dict[float, list[float]]], **changes) -> list[dict]:
    """Records of methods by sparsity, an accuracy for each seed."""
    return [
        record(method, seed, sparsity, accuracy, **changes)
        for method, by_sparsity in accuracies.items()
        for sparsity, values in by_sparsity.items()
        for seed, accuracy in enumerate(values)
    ]


TWO = {
    "fggp": {0.9: [95.0, 96.0, 97.0], 0.95: [94.0, 94.5, 95.0]},
    "gmp": {0.9: [95.1, 95.9, 97.2], 0.95: [92.0, 92.6, 92.9]},
    "taylor": {0.9: [80.0, 80.5, 81.0], 0.95: [70.0, 71.0, 72.0]},
}


def test_entries():
    (table,) = tables(grid(TWO))
    found = entries(Setting(table, 0.9))
    assert {name: entry.rank for name, entry in found.items()} == {"FGGP": 2, "GMP": 1, "taylor": 3}
    assert {name: entry.best for name, entry in found.items()} == {"FGGP": False, "GMP": True, "taylor": False}
    assert {name: entry.close for name, entry in found.items()} == {"FGGP": True, "GMP": False, "taylor": False}


def test_equal_means_are_both_best():
    (table,) = tables(grid({"fggp": {0.9: [90.0, 91.0]}, "gmp": {0.9: [91.0, 90.0]}}))
    assert [entry.best for entry in entries(Setting(table, 0.9)).values()] == [True, True]


def test_average_ranks():
    ranking = contest(tables(grid(TWO)))
    assert ranking.average == {"FGGP": 1.5, "GMP": 1.5, "taylor": 3.0}
    assert ranking.ranks == {"FGGP": [2, 1], "GMP": [1, 2], "taylor": [3, 3]}
    assert list(ranking.average) == ["FGGP", "GMP", "taylor"]
    assert ranking.absent == []


def test_ranks_are_averaged_where_all_compared_methods_are_present():
    some = {**TWO, "random": {0.9: [50.0]}}
    ranking = contest(tables(grid(some)))
    assert ranking.absent == ["random"]
    assert [setting.sparsity for setting in ranking.settings] == [0.9, 0.95]
    both = contest(tables([*grid(TWO), *grid({"random": {0.9: [5.0] * 3, 0.95: [5.0] * 3}})]))
    assert list(both.average) == ["FGGP", "GMP", "taylor", "random"]


UNEQUAL = {
    "fggp": {0.9: [90.0, 91.0, 92.0, 99.0, 99.0]},
    "gmp": {0.9: [90.5, 91.4, 92.6]},
}
"""FGGP has the higher mean of all seeds, GMP of the seeds that both have."""


def test_ranks_and_bold_go_by_the_seeds_that_all_share():
    (table,) = tables(grid(UNEQUAL))
    found = entries(Setting(table, 0.9))
    assert {name: (entry.rank, entry.best) for name, entry in found.items()} == {"FGGP": (2, False), "GMP": (1, True)}
    assert found["FGGP"].accuracy == summarise([90.0, 91.0, 92.0])
    expected = paired({0: 90.0, 1: 91.0, 2: 92.0}, {0: 90.5, 1: 91.4, 2: 92.6})
    assert (found["FGGP"].to_best, found["GMP"].to_best) == (expected, None)
    ranking = contest([table])
    assert (list(ranking.average), ranking.seeds) == (["GMP", "FGGP"], [0, 1, 2])
    assert told(UNEQUAL).startswith("GMP ranks first of 2 methods at 90 % sparsity; it is 0.50 points above FGGP")


def test_seeds_count_only_where_every_setting_has_them():
    by_setting = {
        "fggp": {0.9: [90.0, 90.0, 90.0, 99.0], 0.95: [80.0, 80.0, 80.0]},
        "gmp": {0.9: [91.0, 91.0, 91.0, 50.0], 0.95: [81.0, 81.0, 81.5]},
    }
    ranking = contest(tables(grid(by_setting)))
    assert (ranking.average, ranking.seeds) == ({"GMP": 1, "FGGP": 2}, [0, 1, 2])
    assert ranking.accuracy["FGGP"] == 85


def test_a_method_without_the_shared_seeds_has_no_rank():
    (table,) = tables([*grid(TWO), record("random", 7, 0.9, 99.0)])
    assert set(entries(Setting(table, 0.9))) == {"FGGP", "GMP", "taylor"}
    reduced = on_shared_seeds(table)
    assert {row.label: sorted(row.cells[0.9]) for row in reduced.rows}["random"] == [7]
    (apart,) = tables([record("fggp", 0, 0.9), record("gmp", 1, 0.9)])
    assert entries(Setting(apart, 0.9)) == {}
    assert contest([apart]) is None


def test_a_table_on_shared_seeds():
    (table,) = tables(grid(UNEQUAL))
    assert [sorted(row.cells[0.9]) for row in on_shared_seeds(table).rows] == [[0, 1, 2]] * 2
    (alone,) = tables(grid({"fggp": {0.9: [90.0, 91.0]}}))
    assert on_shared_seeds(alone) == alone


runs = st.sets(st.tuples(st.sampled_from(["fggp", "gmp", "taylor"]), st.sampled_from([0.9, 0.95]), st.integers(0, 3)))


@hypothesis.given(runs)
def test_the_block_is_the_largest_that_a_search_of_all_finds(present):
    (table,) = tables([record(m, seed, s, 50.0) for m, s, seed in present] or [record()])
    settings = settings_of([table])
    label = {row.method: row.label for row in table.rows}

    def subsets(values):
        return itertools.chain.from_iterable(itertools.combinations(values, n) for n in range(1, len(values) + 1))

    sizes = [
        (len(methods) * len(sparsities) * len(seeds), len(methods))
        for methods in subsets(["fggp", "gmp", "taylor"])
        for sparsities in subsets([0.9, 0.95])
        for seeds in subsets(range(4))
        if len(methods) > 1 and {*itertools.product(methods, sparsities, seeds)} <= present
    ]
    block = largest_block(settings)
    assert (block is None) == (not sizes)
    if block is not None:
        assert (len(block.methods) * len(block.settings) * len(block.seeds), len(block.methods)) == max(sizes)
        back = {name: method for method, name in label.items()}
        methods = [back[name] for name in block.methods]
        sparsities = [setting.sparsity for setting in block.settings]
        assert {*itertools.product(methods, sparsities, block.seeds)} <= present


def test_settings_without_all_methods_do_not_count():
    ranking = contest(tables([*grid(TWO), record("fggp", 0, 0.98), record("gmp", 0, 0.98)]))
    assert list(ranking.average) == ["FGGP", "GMP", "taylor"]
    assert [setting.sparsity for setting in ranking.settings] == [0.9, 0.95]


def test_methods_that_never_meet_are_not_ranked():
    apart = tables([record("fggp", sparsity=0.9), record("gmp", sparsity=0.95)])
    assert contest(apart) is None
    assert headline(apart, None) == "No two methods were run in the same setting, so none can be ranked."


def test_overall_is_the_mean_over_settings_seed_by_seed():
    settings = settings_of(tables(grid(TWO)))
    by_seed = {seed: (TWO["fggp"][0.9][seed] + TWO["fggp"][0.95][seed]) / 2 for seed in range(3)}
    other = {seed: (TWO["gmp"][0.9][seed] + TWO["gmp"][0.95][seed]) / 2 for seed in range(3)}
    found, expected = overall(settings, "FGGP", "GMP"), paired(by_seed, other)
    assert found.pairs == 3
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))


def test_overall_takes_seeds_that_all_settings_have():
    few = {"fggp": {0.9: [90.0, 91.0, 92.0], 0.95: [80.0, 82.0]}, "gmp": {0.9: [89.0] * 3, 0.95: [79.0] * 2}}
    assert overall(settings_of(tables(grid(few))), "FGGP", "GMP").pairs == 2


def test_differences_to_the_baseline():
    (table,) = tables(grid(TWO))
    found = differences(table, "FGGP")
    assert list(found) == ["GMP", "taylor"]
    assert found["GMP"][0.95].mean == pytest.approx(-2.0)
    assert found["GMP"][0.95].verdict == "lower"
    assert found["GMP"][0.9].verdict == "not distinguishable"


def test_baselines():
    sweep = tables([*grid(TWO), *(record(rate=0.3, seed=seed) for seed in range(5))])
    assert baseline_of(sweep, None) == {0: "FGGP (r = 0.5)"}
    assert baseline_of(sweep, "FGGP (r = 0.3)") == {0: "FGGP (r = 0.3)"}
    assert baseline_of(sweep, "GMP") == {0: "GMP"}
    assert baseline_of(tables([record("gmp"), record("taylor")]), None) == {0: "GMP"}
    assert baseline_of(tables([record("fggp"), record("dense")]), None) == {}
    with pytest.raises(UsageError, match="baseline is 'snip'; it must be a method of the records: fggp, gmp, taylor"):
        baseline_of(tables(grid(TWO)), "snip")


def told(accuracies: dict[str, dict[float, list[float]]]) -> str:
    found = tables(grid(accuracies))
    return headline(found, contest(found))


def test_the_headline_says_whether_the_lead_is_more_than_noise():
    assert told({"fggp": {0.9: [95.0, 96.0, 97.0]}, "gmp": {0.9: [93.9, 95.1, 96.0]}}) == (
        "FGGP ranks first of 2 methods at 90 % sparsity; it is 1.00 points above GMP, beyond the noise of the seeds "
        "(95 % confidence interval +0.75 to +1.25, 3 seeds)."
    )
    assert "1.00 points above GMP, within the noise of the seeds (95 % confidence interval −11" in told(
        {"fggp": {0.9: [95.0, 97.0]}, "gmp": {0.9: [93.0, 97.0]}}
    )


def test_the_headline_of_one_seed_claims_nothing_about_noise():
    assert told({"fggp": {0.9: [95.0]}, "gmp": {0.9: [94.0]}}).endswith(
        "it is 1.00 points above GMP, and with fewer than two seeds in common nothing tells how much of that is noise."
    )


def test_the_headline_of_equal_differences_claims_nothing_about_noise():
    assert "the same for all 2 seeds: too few to tell" in told(
        {"fggp": {0.9: [95.0, 96.0]}, "gmp": {0.9: [94.0, 95.0]}}
    )


def test_the_headline_of_a_tie():
    assert told(TWO).startswith("FGGP and GMP share the first rank of 3 methods over 2 settings; FGGP is ")


def test_first_by_rank_may_be_below_by_accuracy():
    first = {
        "fggp": {0.9: [90.0, 90.2], 0.95: [90.0, 90.1], 0.98: [50.0, 50.4]},
        "gmp": {0.9: [89.0, 89.3], 0.95: [89.0, 89.4], 0.98: [60.0, 60.1]},
    }
    assert "FGGP ranks first of 2 methods over 3 settings (average rank 1.33); it is" in told(first)
    assert "points below GMP on average" in told(first)


def test_the_headline_of_a_method_alone():
    assert told({"fggp": {0.9: [95.0, 96.0]}, "dense": {0.0: [97.0]}}) == (
        "FGGP reaches 95.50 ± 0.71 % on digits with digits-cnn at 90 % sparsity (2 seeds); dense reaches 97.00 ± – %."
    )
    assert told({"dense": {0.0: [97.0]}}) == (
        "dense reaches 97.00 ± – % on digits with digits-cnn (1 seed); there is nothing to compare it with."
    )


@pytest.mark.parametrize(("value", "text"), [(0.004, "0.00"), (-0.004, "0.00"), (-0.1, "−0.10"), (1.234, "+1.23")])
def test_signs(value, text):
    assert signed(value) == text
