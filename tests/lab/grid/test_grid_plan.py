from pathlib import Path

import pytest

import fggp
from fggp.lab.base.errors import UsageError
from fggp.lab.grid.plan import plan_runs, read_tables, run_names
from fggp.lab.grid.settings import GridSettings


def plan(**flags):
    return plan_runs(read_tables(None, {"device": ["cpu"], **flags}))


def plan_file(tmp_path, text, **flags):
    file = tmp_path / "some.toml"
    file.write_text(text)
    return plan_runs(read_tables(file, {"device": ["cpu"], **flags}))


def names(runs):
    return run_names([run.as_json() for run in runs], {})


def test_product():
    runs = plan(method=["gmp", "random"], sparsity=[0.9, 0.95], seed=[0, 1, 2], epochs=[4])
    assert len(runs) == 12
    assert {run.epochs for run in runs} == {4}


def test_first_seed_comes_first():
    runs = plan(method=["dense", "gmp"], seed=[3, 1])
    assert [(run.method, run.seed) for run in runs] == [("dense", 3), ("gmp", 3), ("dense", 1), ("gmp", 1)]


def test_what_a_method_has_no_use_for_does_not_multiply_it():
    runs = plan(method=["dense", "gmp", "fggp"], sparsity=[0.9, 0.95], init_sparsity=[0.0, 0.5], rate=[0.3, 0.5, 0.7])
    assert [run.method for run in runs].count("dense") == 1
    assert [run.method for run in runs].count("gmp") == 4
    assert [run.method for run in runs].count("fggp") == 12


def test_methods_that_start_sparse_take_no_init_sparsity():
    runs = plan(method=["granet", "rigl", "snip"], sparsity=[0.9, 0.95], init_sparsity=[0.0, 0.5])
    assert [run.init_sparsity for run in runs if run.method == "granet"] == [0.0, 0.5, 0.0, 0.5]
    assert [run.init_sparsity for run in runs if run.method == "rigl"] == [0.9, 0.95]
    assert [run.init_sparsity for run in runs if run.method == "snip"] == [0.9, 0.95]
    assert names(runs)[-4:] == ["rigl-0.9-seed0", "rigl-0.95-seed0", "snip-0.9-seed0", "snip-0.95-seed0"]


def test_momentum_is_for_sgd_and_image_size_for_folders(image_folder):
    runs = plan(optimizer=["sgd", "adamw"], momentum=[0.8], data=["digits", f"folder:{image_folder}"], image_size=[8])
    assert {(run.optimizer, run.momentum) for run in runs} == {("sgd", 0.8), ("adamw", None)}
    assert {(run.data[:6], run.image_size) for run in runs} == {("digits", None), ("folder", 8)}


def test_file(tmp_path):
    text = """
        sparsity = [0.9, 0.95]
        seed = [0, 1]
        epochs = 3
        lr = 1
        [[grid]]
        method = ["dense", "gmp"]
        [[grid]]
        method = "fggp"
        sparsity = 0.98
        rate = [0.3, 0.5]
    """
    runs = plan_file(tmp_path, text)
    assert [(run.method, run.sparsity, run.rate) for run in runs if run.seed == 0] == [
        ("dense", 0.0, None),
        ("gmp", 0.9, None),
        ("gmp", 0.95, None),
        ("fggp", 0.98, 0.3),
        ("fggp", 0.98, 0.5),
    ]
    assert all(run.lr == 1.0 and run.epochs == 3 for run in runs)


def test_a_file_without_tables_is_one_product(tmp_path):
    assert len(plan_file(tmp_path, 'method = ["gmp", "fggp"]\nseed = [0, 1]')) == 4


def test_overlapping_tables_give_each_run_once(tmp_path):
    text = '[[grid]]\nmethod = ["gmp", "fggp"]\n[[grid]]\nmethod = "fggp"\nrate = [0.3, 0.5]'
    assert [run.rate for run in plan_file(tmp_path, text)] == [None, 0.5, 0.3]


def test_flags_take_the_place_of_the_file(tmp_path):
    text = 'epochs = 20\n[[grid]]\nmethod = "gmp"\nepochs = 30\n[[grid]]\nmethod = "fggp"'
    assert {run.epochs for run in plan_file(tmp_path, text, epochs=[2])} == {2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sparsty = 0.9", r"some\.toml: sparsty is no setting of a run; did you mean sparsity\?"),
        ("out = 'x'", r"some\.toml: out is no setting of a run"),
        ("sparsity = 'high'", r"some\.toml: sparsity is 'high'; it must be a number, or a list of them"),
        ("epochs = 2.5", r"epochs is 2\.5; it must be a whole number"),
        ("seed = true", "seed is True; it must be a whole number"),
        ("scope = 'all'", "scope is 'all'; it must be one of global, layer"),
        ("seed = []", r"seed is \[\]; it must hold at least one value"),
        ("sparsity = [0.9, 1.0]", r"some\.toml: sparsity is 1\.0; it must be in \[0, 1\)"),
        ("init_sparsity = 0.5\nsparsity = [0.9, 0.4]", r"init_sparsity is 0\.5; it must be in \[0, sparsity\]"),
        (
            "[[grid]]\nseed = 0\n[[grid]]\nmethod = 'foo'",
            r"some\.toml, \[\[grid\]\] 2: method is 'foo'; it must be one of",
        ),
        ("[grid]\nseed = 0", r"grid must be tables, each under a line \[\[grid\]\]"),
        ("seed = ]", r"some\.toml is not a TOML file: .*line 1"),
        ("method = ['dense', 'gmp']\nrate = [0.3, 0.5]", r"rate is 0\.3, 0\.5, but no run .* \(method dense, gmp\)"),
        ("method = 'dense'\nsparsity = 0.9", r"sparsity is 0\.9, but no run of this grid uses it"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        plan_file(tmp_path, text)


def test_no_such_file(tmp_path):
    with pytest.raises(UsageError, match=r"none\.toml cannot be read: No such file"):
        read_tables(tmp_path / "none.toml", {})


def test_folders_that_records_could_not_tell_apart_are_refused(tmp_path):
    data = [f"folder:{tmp_path / one / 'pets'}" for one in ("a", "b")]
    with pytest.raises(UsageError, match="which are equal in records; give each a data_name"):
        plan(data=data)


def test_names_hold_what_tells_runs_apart():
    assert names(plan(method=["dense", "gmp"], sparsity=[0.9, 0.95])) == [
        "dense-seed0",
        "gmp-0.9-seed0",
        "gmp-0.95-seed0",
    ]
    assert names(plan(rate=[0.3, 0.5], seed=[7])) == ["fggp-0.95-rate0.3-seed7", "fggp-0.95-rate0.5-seed7"]
    assert names(plan(init_sparsity=[0.0, 0.5])) == ["fggp-0.95-init0-seed0", "fggp-0.95-init0.5-seed0"]
    assert names(plan(data=["digits", "cifar10"])) == ["digits-fggp-0.95-seed0", "cifar10-fggp-0.95-seed0"]
    assert names(plan(model=["vgg19", "timm:vit_tiny"])) == ["vgg19-fggp-0.95-seed0", "timm-vit_tiny-fggp-0.95-seed0"]
    assert names(plan(batch_size=[64, 128])) == ["fggp-0.95-batch-size64-seed0", "fggp-0.95-batch-size128-seed0"]
    assert names(plan(sparsity=[0.95, 0.95000001])) == ["fggp-0.95-seed0", "fggp-0.95000001-seed0"]


def test_names_are_unique_and_fit_for_folders():
    runs = plan(data_name=["a b", "a/b", "../a"], data=["digits"])
    assert len(set(names(runs))) == 3
    assert all("/" not in name and " " not in name for name in names(runs))


def test_new_names_keep_clear_of_old_ones():
    old = {
        "fggp-0.95-seed0": plan(rate=[0.3])[0].as_json(),
        "fggp-0.95-rate0.5-seed0": {**plan()[0].as_json(), "lr": 1},
    }
    assert run_names([plan(rate=[0.5])[0].as_json()], old) == ["fggp-0.95-rate0.5-lr0.1-seed0"]


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h30m", 9000), ("90m", 5400), ("45s", 45), ("1h", 3600), ("1h 1m 1s", 3661), (None, None)]
)
def test_time_limit(text, seconds):
    assert GridSettings(time_limit=text).seconds == seconds


@pytest.mark.parametrize("text", ["90", "", "0m", "soon", "30m2h", "-5m"])
def test_a_time_limit_that_cannot_be_read(text):
    with pytest.raises(UsageError, match=f"time_limit is {text!r}; it must be such as 2h30m"):
        _ = GridSettings(time_limit=text).seconds


def test_the_number_of_jobs_is_positive():
    with pytest.raises(UsageError, match="jobs is 0; it must be at least 1"):
        GridSettings(jobs=0)


def test_the_digits_matrix():
    runs = plan_runs(read_tables(Path(__file__).parents[3] / "experiments" / "digits.toml", {}))
    assert len(runs) == 3 * (1 + 14 * 3)
    assert {run.method for run in runs} == {"dense", *fggp.methods.REGISTRY} - {"taylor"}
    assert {run.seed for run in runs[:43]} == {0}
