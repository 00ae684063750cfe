import json

import pytest
from rich.console import Console

from fggp.lab.base.errors import UsageError
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.plan import plan_runs, read_tables


def plan(**flags):
    return plan_runs(read_tables(None, {"device": ["cpu"], "seed": [0, 1], "epochs": [4], **flags}))


@pytest.fixture
def folder(tmp_path):
    """A grid of two runs, fggp with seeds 0 and 1."""
    folder = GridFolder(tmp_path / "grid")
    with folder.locked():
        folder.adopt(folder.name_runs(plan()))
    return folder


def finish(folder, name):
    folder.run_folder(name).path.mkdir(parents=True)
    folder.run_folder(name).finish({"run": name, "test_accuracy": 90.0})


def again(folder):
    """What the next command finds."""
    folder = GridFolder(folder.path)
    folder.read_records(Console(quiet=True))
    return folder


def lines(folder):
    return folder.records_file.read_text().splitlines()


def test_grid_file_says_what_the_grid_is(folder):
    grid = json.loads(folder.grid_file.read_text())
    assert grid["runs"] == {f"fggp-0.95-seed{seed}": run.as_json() for seed, run in enumerate(plan())}
    assert grid["id"]


def test_runs_are_placed(folder):
    named = folder.name_runs(plan())
    assert named["fggp-0.95-seed1"].out == folder.path / "runs" / "fggp-0.95-seed1"


def test_a_grown_grid_keeps_the_names_it_has(folder):
    before = json.loads(folder.grid_file.read_text())["id"]
    runs = plan(method=["fggp", "gmp"], model=["digits-cnn", "resnet20"], rate=[0.3, 0.5], seed=[0, 1, 2])
    named = folder.name_runs(runs)
    assert len(named) == len(runs) == 18
    assert named["fggp-0.95-seed0"].rate == 0.5
    assert named["fggp-0.95-seed0"].model == "digits-cnn"
    assert named["resnet20-fggp-0.95-rate0.5-seed0"].model == "resnet20"
    folder.adopt(named)
    assert json.loads(folder.grid_file.read_text())["id"] == before
    assert folder.name_runs(runs) == named


def test_what_is_excluded_may_be_added_to_a_grid_made_before_that_could_be_said(folder):
    assert "exclude" not in folder.grid_file.read_text()
    named = folder.name_runs([*plan(), *plan(method=["fggp", "dense"], exclude=["classifier.weight"])])
    assert {name: run.exclude for name, run in named.items() if name.endswith("0")} == {
        "fggp-0.95-seed0": None,
        "fggp-0.95-excludeclassifier.weight-seed0": "classifier.weight",
        "dense-seed0": None,
    }


def test_so_may_a_granularity(folder):
    assert "granularity" not in folder.grid_file.read_text()
    named = folder.name_runs([*plan(), *plan(method=["fggp", "dense"], granularity=["blocks:4"])])
    assert {name: run.granularity for name, run in named.items() if name.endswith("0")} == {
        "fggp-0.95-seed0": None,
        "fggp-0.95-granularityblocks-4-seed0": "blocks:4",
        "dense-seed0": None,
    }


def test_a_part_of_the_grid_may_be_run(folder):
    assert list(folder.name_runs(plan(seed=[1]))) == ["fggp-0.95-seed1"]


def test_parts_may_be_run_one_after_the_other(folder):
    # Their pruning phases differ, but what is trained and how does not.
    assert list(folder.name_runs(plan(method=["set"], seed=[0]))) == ["set-0.95-seed0"]
    assert list(folder.name_runs(plan(method=["snip", "dense"], seed=[0]))) == ["snip-0.95-seed0", "dense-seed0"]


def test_more_values_of_any_setting_may_come(folder):
    assert len(folder.name_runs(plan(lr=[0.1, 0.05]))) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lr": [0.2]}, r"lr is 0\.2, that grid's is 0\.1"),
        ({"batch_size": [64]}, "batch_size is 64, that grid's is 128"),
        ({"epochs": [5]}, r"epochs is 5, that grid's is 4; prune_end is 2\.5, that grid's is 2\.0"),
        ({"lr": [0.2], "seed": [5]}, r"lr is 0\.2"),
        ({"lr": [0.2], "method": ["gmp", "dense"]}, r"lr is 0\.2"),
        ({"prune_begin": [1.0], "method": ["fggp", "dense"]}, r"prune_begin is 1\.0, that grid's is 0\.0"),
    ],
)
def test_other_settings_are_another_grid(folder, changed, message):
    before = folder.grid_file.read_bytes()
    with pytest.raises(UsageError, match=f"which holds another grid: {message}.*choose another --out"):
        folder.name_runs(plan(**changed))
    assert folder.grid_file.read_bytes() == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "photo.png").touch()
    folder = GridFolder(tmp_path)
    with folder.locked(), pytest.raises(UsageError, match=r"holds 'photo\.png' but no grid"):
        folder.name_runs(plan())


def test_a_folder_of_a_grid_that_was_killed_as_it_began_is_taken(tmp_path):
    (tmp_path / "grid.json.0a1b2c3d.partial").touch()
    folder = GridFolder(tmp_path)
    with folder.locked():
        assert folder.name_runs(plan())


def test_a_run_folder_of_other_settings_is_refused(folder):
    folder.run_folder("fggp-0.95-seed0").begin({**plan()[0].as_json(), "lr": 3.0})
    with pytest.raises(UsageError, match=r"lr is 0\.1, the run's is 3\.0"):
        folder.adopt(folder.name_runs(plan()))


def test_a_refused_grid_leaves_no_folder(tmp_path):
    folder = GridFolder(tmp_path / "new")
    with pytest.raises(UsageError), folder.locked():
        raise UsageError("model is 'x'")
    assert not folder.path.exists()


def test_two_commands_do_not_share_a_folder(folder):
    with folder.locked():
        with pytest.raises(UsageError, match="another fggp grid is at work in"), GridFolder(folder.path).locked():
            pass
        assert folder.grid_file.exists()
    with GridFolder(folder.path).locked():
        pass


def test_a_finished_run_gets_its_line_once(folder):
    finish(folder, "fggp-0.95-seed0")
    assert folder.finished("fggp-0.95-seed0")
    assert not folder.finished("fggp-0.95-seed1")
    folder.append({"run": "fggp-0.95-seed0"})
    assert again(folder).finished("fggp-0.95-seed0")
    assert [json.loads(line) for line in lines(folder)] == [folder.run_folder("fggp-0.95-seed0").record()]


@pytest.mark.parametrize("cut", [1, 10, -2, -1])
def test_a_torn_last_line_is_repaired(folder, cut):
    for seed in (0, 1):
        finish(folder, f"fggp-0.95-seed{seed}")
        folder.finished(f"fggp-0.95-seed{seed}")
    whole = folder.records_file.read_bytes()
    first = whole.index(b"\n") + 1
    folder.records_file.write_bytes(whole[:first] + whole[first:][:cut])
    repaired = again(folder)
    assert all(repaired.finished(f"fggp-0.95-seed{seed}") for seed in (0, 1))
    assert folder.records_file.read_bytes() == whole


def test_a_damaged_line_is_reported_and_its_record_written_again(folder, capsys):
    for seed in (0, 1):
        finish(folder, f"fggp-0.95-seed{seed}")
        folder.finished(f"fggp-0.95-seed{seed}")
    first, second = lines(folder)
    folder.records_file.write_text(f"{first[:9]}\n{second}\n")
    repaired = GridFolder(folder.path)
    repaired.read_records(Console(soft_wrap=True))
    assert "records.jsonl, line 1 is damaged and left out" in capsys.readouterr().out
    assert repaired.finished("fggp-0.95-seed0")
    assert lines(folder) == [first[:9], second, first]
