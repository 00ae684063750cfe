import json

import pytest

from fggp.lab.base.errors import UsageError
from fggp.lab.report.records import load
from fggp.lab.report.runs import parse, shared_settings
from made import minimal, record, write


def test_files_and_folders(tmp_path):
    file = write(tmp_path / "a.jsonl", [record(seed=0)])
    write(tmp_path / "deep" / "er" / "b.jsonl", [record(seed=1)])
    write(tmp_path / "deep" / "run" / "record.json", [record(seed=2)])
    write(tmp_path / "deep" / "run" / "metrics.jsonl", [{"kind": "epoch", "epoch": 1, "test_accuracy": 90.0}])
    loaded = load([file, tmp_path, file])
    assert sorted(run.seed for run in loaded.runs) == [0, 1, 2]
    assert loaded.notes == []


def test_a_damaged_line_is_told_by_file_and_line_and_the_rest_is_used(tmp_path):
    good = json.dumps(record(seed=0)).encode()
    other = json.dumps(record(seed=1)).encode()
    file = tmp_path / "runs.jsonl"
    file.write_bytes(b"\n".join([good, b'{"run": "cut sho', b"\xff\xfe", b"", b"[1, 2]", b'{"run": "x"}', other]))
    loaded = load([file])
    assert [run.seed for run in loaded.runs] == [0, 1]
    assert [note.partition(": ")[0] for note in loaded.notes] == [f"{file}:{line}" for line in (2, 3, 5, 6)]
    assert "not JSON" in loaded.notes[0]
    assert "not UTF-8" in loaded.notes[1]
    assert "a JSON list instead of an object" in loaded.notes[2]
    assert "no method, model, data" in loaded.notes[3]


def test_a_record_json_over_several_lines(tmp_path):
    file = tmp_path / "record.json"
    file.write_text(json.dumps(record(), indent=2))
    assert len(load([tmp_path]).runs) == 1
    file.write_text(file.read_text().replace('"seed": 0', '"seed" 0', 1))
    line = next(number for number, text in enumerate(file.read_text().splitlines(), 1) if '"seed" 0' in text)
    with pytest.raises(UsageError, match=f"record.json:{line}: skipped, not JSON"):
        load([tmp_path])


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("test_accuracy", float("nan"), "test_accuracy is nan; it must be a number from 0 to 100"),
        ("test_accuracy", 101, "test_accuracy is 101; it must be a number from 0 to 100"),
        ("test_accuracy", None, "test_accuracy is None"),
        ("val_accuracy", "90", "val_accuracy is '90'"),
        ("sparsity", True, "sparsity is True; it must be a number from 0 to 1"),
        ("init_sparsity", -0.1, "init_sparsity is -0.1"),
        ("seed", 1.5, "seed is 1.5; it must be a whole number"),
        ("method", "", "method is ''; it must be text"),
        ("run", 7, "run is 7; it must be text"),
        ("settings", [1], r"settings is \[1\]; it must be an object"),
    ],
)
def test_an_impossible_value_is_named(key, value, message):
    with pytest.raises(ValueError, match=message):
        parse({**record(), key: value})


def test_the_target_is_what_counts_and_is_rounded_from_the_measured_where_unknown():
    assert parse(record(sparsity=0.95))[0].sparsity == 0.95
    assert parse(minimal(sparsity=0.95))[0].sparsity == 0.95
    assert parse(record(method="dense"))[0].sparsity == 0


def test_a_missed_target_is_told():
    run, notes = parse({**record(sparsity=0.95), "sparsity": 0.8}, "file:3")
    assert run.sparsity == 0.95
    assert notes == ["file:3: its sparsity is 0.8000, its target was 0.95; shown under the target"]


def test_minimal_records_are_enough(tmp_path):
    loaded = load([write(tmp_path / "runs.jsonl", [minimal(seed=seed) for seed in range(3)])])
    assert len(loaded.runs) == 3
    assert loaded.notes == []
    assert not loaded.runs[0].curve
    assert not loaded.runs[0].settings


def test_the_same_run_counts_once(tmp_path):
    first = write(tmp_path / "a.jsonl", [record(accuracy=90.0)])
    second = write(tmp_path / "b.jsonl", [record(accuracy=90.0, device="cuda"), record(accuracy=91.0, run="other")])
    loaded = load([tmp_path])
    assert [run.test_accuracy for run in loaded.runs] == [90.0]
    told = "not used, the same settings and seed as"
    assert loaded.notes == [
        f"{second}:1: {told} {first}:1",
        f"{second}:2: {told} {first}:1; its test accuracy, 91.00 %, is not the same",
    ]


def test_copies_of_records_are_one_note(tmp_path):
    """A grid's folder holds every record twice."""
    records = [record(seed=seed) for seed in range(3)]
    write(tmp_path / "records.jsonl", records)
    for each in records:
        write(tmp_path / each["run"] / "record.json", [each])
    loaded = load([tmp_path])
    assert len(loaded.runs) == 3
    assert loaded.notes == ["3 records are copies of others: every run is used once"]


def test_other_settings_make_another_run(tmp_path):
    records = [record(), record(lr=0.2), record(rate=0.3), record(seed=1), record(init_sparsity=0.5), record(epochs=5)]
    assert len(load([write(tmp_path / "runs.jsonl", records)]).runs) == len(records)


def test_how_it_would_have_been_pruned_does_not_matter_to_a_dense_run(tmp_path):
    records = [record("dense"), record("dense", prune_end=3.0, scope="layer", exclude="classifier.*")]
    assert len(load([write(tmp_path / "runs.jsonl", records)]).runs) == 1


def test_unknown_lengths_join_the_only_known_one(tmp_path):
    file = write(tmp_path / "runs.jsonl", [record(), minimal("gmp")])
    assert [run.epochs for run in load([file]).runs] == [4, 4]
    write(file, [record(), record(epochs=8), minimal("gmp")])
    assert [run.epochs for run in load([file]).runs] == [4, 8, None]


def test_parts_that_cannot_be_used_are_told_and_the_rest_is():
    broken = {**record(), "curve": {"epoch": [1, 2], "test_accuracy": [50.0]}, "densities": {"layer": "half"}}
    run, notes = parse(broken, "file:1")
    assert not run.curve
    assert not run.densities
    assert len(notes) == 2
    assert all(note.startswith("file:1: ") for note in notes)
    assert parse(record())[0].curve.keys() == {"epoch", "test_accuracy"}  # val_accuracy was not measured
    followed = {"epoch": [1, 2], "test_accuracy": [None, 50.0], "val_accuracy": [49.0, 50.0]}
    run, notes = parse({**record(), "curve": followed})
    assert run.curve.keys() == {"epoch", "val_accuracy"}
    assert notes == []


def test_lines_about_something_else_are_one_note(tmp_path):
    write(tmp_path / "bench.jsonl", [{"benchmark": "update"}, {"benchmark": "step"}])
    write(tmp_path / "runs.jsonl", [record()])
    (note,) = load([tmp_path]).notes
    assert note == f"{tmp_path / 'bench.jsonl'}: 2 lines are not about runs (neither run nor method in it), skipped"


def test_nothing_usable_is_an_error(tmp_path):
    with pytest.raises(UsageError, match="nowhere does not exist"):
        load([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match=r"no usable record in .*: no \*.jsonl and no record.json there"):
        load([tmp_path])
    (tmp_path / "runs.jsonl").write_text("{")
    with pytest.raises(UsageError, match=r"no usable record in .*runs.jsonl:1: skipped, not JSON"):
        load([tmp_path])


def test_shared_settings_are_equal_in_value_and_kind():
    runs = [parse(each)[0] for each in (record(lr=1), record(lr=True, seed=1))]
    shared = shared_settings(runs)
    assert shared["optimizer"] == "sgd"
    assert not {"lr", "seed"} & shared.keys()
