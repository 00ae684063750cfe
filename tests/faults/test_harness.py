"""Some of the faults that `make faults` makes, in each kind of run."""

import json
import subprocess
import sys
from pathlib import Path

import harness

# In the step, in the checkpoint's write, between write and rename: a run of each kind. Then a newest checkpoint with a
# flipped bit, and a disk that is full when a checkpoint is written.
FAULTS = ["kill-3", "kill-10", "kill-13", "damage-1", "full-2"]


def test_nothing_is_lost(tmp_path):
    records = tmp_path / "records.ndjson"
    script = Path(__file__).with_name("harness.py")
    command = [sys.executable, str(script), "--only", *FAULTS, "--records", str(records)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    faults = [json.loads(line) for line in records.read_text().splitlines()]
    assert [fault["name"] for fault in faults if "again" not in fault["name"]] == FAULTS
    assert [fault["outcome"] for fault in faults] == ["identical"] * len(faults)
    assert {fault["mode"] for fault in faults} == {"alone", "ddp", "fsdp"}
    # At most an epoch, of three steps, is made again; one more where the newest checkpoint was damaged.
    assert max(fault["steps_lost"] for fault in faults if fault["group"] != "damaged") <= 3


def test_the_table_counts_kills_and_what_came_of_them():
    fault = {"name": "kill-0", "group": "killed", "kind": "in the step", "outcome": "identical"}
    faults = [
        harness.Fault(mode="alone", steps_lost=1, **fault),
        harness.Fault(mode="alone", steps_lost=3, **fault),
        harness.Fault(mode="ddp", steps_lost=2, **fault),
        harness.Fault("damage-0", "damaged", "both checkpoints: cut", "fsdp", outcome="refused"),
    ]
    assert harness.table(faults).splitlines()[2:] == [
        "| killed | in the step | 2 | 1 | – | 3 of 3 | – | 2, at most 3 |",
        "| damaged | both checkpoints | – | – | 1 | 0 of 1 | 1 | – |",
    ]


def test_all_kinds_of_kills_meet_all_kinds_of_runs():
    pairs = {(fault.kind, fault.mode) for fault in harness.kills(50)}
    assert pairs == {(kind, mode) for kind in harness.KINDS for mode in harness.MODES}
