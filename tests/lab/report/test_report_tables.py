from collections.abc import Iterable

import pytest

from fggp.lab.report.runs import parse
from fggp.lab.report.style import looks
from fggp.lab.report.tables import Table, differing_settings, rows_of, settings_of, tabulate
from made import minimal, record


def tables(records: Iterable[dict]) -> list[Table]:
    return tabulate([parse(each)[0] for each in records])


def labels(table: Table) -> list[str]:
    return [row.label for row in table.rows]


def test_a_table_for_each_network_data_length_and_start():
    found = tables(
        [
            record(),
            record(data="cifar10"),
            record(model="vgg19"),
            record(epochs=1),
            record(init_sparsity=0.5),
            record("dense"),
        ]
    )
    assert [table.title for table in found] == [
        "cifar10 · digits-cnn · 4 epochs · dense start",
        "digits · digits-cnn · 1 epoch · dense start",
        "digits · digits-cnn · 4 epochs · dense start",
        "digits · digits-cnn · 4 epochs · 50 % sparse start",
        "digits · vgg19 · 4 epochs · dense start",
    ]
    assert [len(table.dense) for table in found] == [0, 0, 1, 1, 0]


def test_methods_down_sparsities_across_seeds_in_a_cell():
    (table,) = tables(
        record(method, seed, sparsity) for sparsity in (0.98, 0.9) for seed in (1, 0) for method in ("gmp", "fggp")
    )
    assert labels(table) == ["FGGP", "GMP"]  # in the order of the registry
    assert table.sparsities == [0.9, 0.98]
    assert [(run.sparsity, run.seed) for run in table.rows[0].runs] == [(0.9, 0), (0.9, 1), (0.98, 0), (0.98, 1)]
    assert [setting.title for setting in settings_of([table])] == [f"{table.title} · 90 %", f"{table.title} · 98 %"]


def test_measured_and_targeted_sparsities_meet():
    (table,) = tables([record(sparsity=0.95), {**minimal("gmp", sparsity=0.95), "epochs": 4}])
    assert table.sparsities == [0.95]


def test_methods_that_are_sparse_throughout_stand_in_every_table():
    dense_start, sparse_start = tables([record(), record(init_sparsity=0.5), record("rigl", init_sparsity=0.95)])
    assert labels(dense_start) == labels(sparse_start) == ["FGGP", "RigL †"]
    (alone,) = tables([record("rigl", init_sparsity=0.95)])
    assert alone.start_name == "sparse throughout"
    assert [row.label for row in rows_of([dense_start, alone])] == ["FGGP", "RigL †"]


def test_a_table_of_dense_runs_alone():
    (table,) = tables([record("dense")])
    assert table.rows == []
    assert table.sparsities == []
    assert table.start_name == "not pruned"


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([record(rate=0.5)], ["FGGP"]),
        ([record(rate=0.3)], ["FGGP (r = 0.3)"]),
        ([record(rate=0.5), record(rate=0.3)], ["FGGP (r = 0.3)", "FGGP (r = 0.5)"]),
        ([record(), record(lr=0.2)], ["FGGP (lr 0.1)", "FGGP (lr 0.2)"]),
        # How long pruning went on follows from nothing else here, so it tells them apart; lr says no more.
        (
            [record(), record(prune_end=1.0, lr=0.2)],
            ["FGGP (prune_end 2.0)", "FGGP (prune_end 1.0)"],
        ),
        ([record(rate=0.3), record(lr=0.2)], ["FGGP (r = 0.3)", "FGGP (r = 0.5)"]),
        ([record(), {**minimal(), "epochs": 4}], ["FGGP", "FGGP (settings unknown)"]),
        (
            [{**minimal(), "epochs": 4, "rate": 0.3}, {**minimal(), "epochs": 4}],
            ["FGGP (settings unknown)", "FGGP (r = 0.3)"],
        ),
    ],
)
def test_rows_are_named_by_what_tells_them_apart(records, expected):
    (table,) = tables(records)
    assert sorted(labels(table)) == sorted(expected)


def test_labels_never_collide():
    records = [record(rate=rate, lr=lr, scope=scope) for rate in (0.3, 0.5) for lr in (1, 2) for scope in "ab"]
    (table,) = tables([*records, {**minimal(), "epochs": 4}])
    assert len(set(labels(table))) == len(table.rows) == 9


def test_what_compared_runs_do_not_share_is_told():
    (table,) = tables([record(), record("gmp", lr=0.2), record("dense", lr=0.2)])
    assert differing_settings(table) == {"lr": {"0.2": ["dense", "GMP"], "0.1": ["FGGP"]}}
    (table,) = tables([record(), record("gmp"), record("dense")])
    assert differing_settings(table) == {}  # a dense run has no scope: that is no difference to speak of


def test_every_row_has_a_look_of_its_own_and_one_method_one_hue():
    found = tables([*(record(f"method {number}") for number in range(11)), record(rate=0.3), record(rate=0.7)])
    by_label = looks(rows_of(found))
    assert len({(look.colour, look.marker) for look in by_label.values()}) == 13
    low, high = (by_label[f"FGGP (r = {rate})"].colour for rate in (0.3, 0.7))
    assert low < "#0072b2" < high  # the same blue, darker and lighter


@pytest.mark.parametrize(
    ("rates", "others", "baseline", "left"),
    [
        ((0.3, 0.5, 0.7), ["gmp"], "", ["FGGP (r = 0.5)", "GMP"]),
        ((0.3, 0.5, 0.7), ["gmp"], "FGGP (r = 0.3)", ["FGGP (r = 0.3)", "FGGP (r = 0.5)", "GMP"]),
        ((0.3, 0.5), ["gmp"], "", ["FGGP (r = 0.3)", "FGGP (r = 0.5)", "GMP"]),  # two are no sweep
        ((0.3, 0.4, 0.7), ["gmp"], "", ["FGGP (r = 0.3)", "FGGP (r = 0.4)", "FGGP (r = 0.7)", "GMP"]),  # none is usual
        ((0.3, 0.5, 0.7), [], "", ["FGGP (r = 0.3)", "FGGP (r = 0.5)", "FGGP (r = 0.7)"]),  # nothing else
    ],
)
def test_a_sweep_is_one_row_among_other_methods(rates, others, baseline, left):
    runs = [parse(record(rate=rate))[0] for rate in rates] + [parse(record(method))[0] for method in others]
    (table,) = tabulate(runs)
    assert [row.label for row in table.without_sweeps(baseline).rows] == left
