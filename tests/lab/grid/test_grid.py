import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fggp.lab import cli
from fggp.lab.base.errors import UsageError
from fggp.lab.grid import worker as worker_module
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.grid import grid
from fggp.lab.grid.session import GridResult, Session
from fggp.lab.grid.worker import Event, LocalJobs, Task, do_run
from fggp.lab.training.models import create
from fggp.lab.training.settings import TrainSettings
from grids import InlineJobs, digits, logged, without_times

RUNS = {f"{method}-0.9-seed{seed}" for method in ("gmp", "fggp") for seed in (0, 1)}


def records(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]


def by_run(out: Path) -> dict:
    return {record["run"]: without_times(record) for record in records(out)}


@pytest.fixture
def inline(monkeypatch) -> list[InlineJobs]:
    """Runs in this process; the list gets the workers of each command."""
    made = []

    def make(jobs: int) -> InlineJobs:
        made.append(InlineJobs(jobs))
        return made[-1]

    monkeypatch.setattr("fggp.lab.grid.grid.LocalJobs", make)
    return made


class Murderous(LocalJobs):
    """Kills the worker that is the first to finish an epoch."""

    victim = ""

    def events(self, seconds: float) -> list[Event]:
        events = super().events(seconds)
        for event in events:
            if event.kind == "epoch" and not Murderous.victim:
                Murderous.victim = event.run
                worker = next(worker for worker in self.workers if worker is not None and worker.run == event.run)
                os.kill(worker.process.pid, signal.SIGKILL)
        return events


@pytest.fixture(scope="module")
def two_jobs(tmp_path_factory) -> tuple[Path, str]:
    """A grid done by two worker processes, one of which was killed; and what the command printed."""
    folder = tmp_path_factory.mktemp("two_jobs")
    console, log = logged(folder)
    # Forked from a process that has imported everything, which takes longer than these runs.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fggp.lab.grid.worker", "sklearn.datasets"])
    with pytest.MonkeyPatch.context() as patch, console.file:
        patch.setattr(worker_module, "CONTEXT", context)
        patch.setattr("fggp.lab.grid.grid.LocalJobs", Murderous)
        result = grid(digits(folder / "grid", jobs=2), console)
    assert result.complete
    return folder / "grid", log.read_text()


def test_folder_of_a_finished_grid(two_jobs):
    out, _ = two_jobs
    assert {file.name for file in out.iterdir()} == {".lock", "grid.json", "records.jsonl", "runs"}
    for run in RUNS:
        files = {file.name for file in (out / "runs" / run).iterdir()}
        assert files == {".lock", "settings.json", "metrics.jsonl", "model.safetensors", "record.json"}


def test_each_run_has_one_record(two_jobs):
    out, _ = two_jobs
    assert sorted(record["run"] for record in records(out)) == sorted(RUNS)
    for record in records(out):
        assert record == json.loads((out / "runs" / record["run"] / "record.json").read_text())
        assert len(record["curve"]["val_accuracy"]) == record["settings"]["epochs"] == 2


def test_a_worker_that_dies_takes_only_its_run_with_it(two_jobs):
    _, text = two_jobs
    assert text.count("trying once more") == 1
    assert f"{Murderous.victim}  its worker process was ended by SIGKILL, perhaps for lack of memory" in text
    assert "4 of 4 runs finished" in text


def test_plain_lines_where_there_is_no_terminal(two_jobs):
    _, text = two_jobs
    assert "\x1b" not in text
    assert "\r" not in text
    assert sum("  test " in line for line in text.splitlines()) == 4


def test_no_worker_outlives_the_grid(two_jobs):
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("order", [1, -1])
def test_wrong_weights_are_refused_before_anything_is_trained(tmp_path, inline, order):
    paths = [tmp_path / "good.pt", tmp_path / "bad.pt"]
    for path, model in zip(paths, ("digits-cnn", "digits-cnn@0.5"), strict=True):
        torch.save(create(model, 10, 1).state_dict(), path)
    table = tmp_path / "grid.toml"
    table.write_text(f"weights = {[str(path) for path in paths[::order]]}")
    console, _ = logged(tmp_path)
    with console.file, pytest.raises(UsageError, match=r"^bad.pt is not of model 'digits-cnn'"):
        grid(replace(digits(tmp_path / "grid"), file=table), console)
    assert inline == []


ORPHAN = """
import os, signal, sys
from pathlib import Path
from fggp.lab.grid.worker import LocalJobs, Task
from fggp.lab.training.settings import TrainSettings

if __name__ == "__main__":
    jobs = LocalJobs(1)
    jobs.start(Task("run", TrainSettings(epochs=100_000, device="cpu", out=Path(sys.argv[1])).resolve(), None))
    assert jobs.events(3600)[0].kind == "epoch"
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_worker_dies_with_a_command_that_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(ORPHAN)
    # The worker has the pipe open too: reading it to its end waits until the worker is gone, or fails after 5 minutes.
    command = [sys.executable, str(script), str(tmp_path / "run")]
    assert subprocess.run(command, stdout=subprocess.PIPE, timeout=300).returncode == -signal.SIGKILL


def test_one_job_and_two_give_the_same_records(two_jobs, tmp_path, inline, console):
    grid(digits(tmp_path / "grid"), console)
    assert by_run(tmp_path / "grid") == by_run(two_jobs[0])


def test_finished_runs_are_never_run_twice_and_new_ones_are(tmp_path, inline, console):
    out = tmp_path / "grid"
    few = {"epochs": (1,)}
    assert grid(digits(out, method=("gmp",), seed=(0,), **few), console).complete
    first = (out / "records.jsonl").read_text()
    assert grid(digits(out, method=("gmp",), seed=(0,), **few), console).complete
    assert len(inline) == 1
    result = grid(digits(out, method=("dense", "gmp"), seed=(0, 1), **few), console)
    assert (result.total, result.finished) == (4, 4)
    assert inline[1].started == ["dense-seed0", "dense-seed1", "gmp-0.9-seed1"]
    assert (out / "records.jsonl").read_text().startswith(first)
    assert len(records(out)) == 4


def test_killed_again_and_again_leaves_the_records_of_an_unbroken_grid(tmp_path):
    script = Path(__file__).with_name("killed_grid.py")
    subprocess.run([sys.executable, str(script), str(tmp_path), "4", "1"], check=True)
    killed, unbroken = tmp_path / "killed", tmp_path / "unbroken"
    assert len(records(killed)) == len(records(unbroken)) == 6
    assert by_run(killed) == by_run(unbroken)
    for run in by_run(unbroken):
        models = [(out / "runs" / run / "model.safetensors").read_bytes() for out in (killed, unbroken)]
        assert models[0] == models[1]


class Clock:
    """Every look at it takes as long as an epoch."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 10
        return self.now


def test_a_run_stops_in_time_and_goes_on_later(tmp_path, inline, console, two_jobs):
    run = "fggp-0.9-seed0"
    settings = TrainSettings(sparsity=0.9, epochs=2, device="cpu", out=tmp_path / run).resolve()
    seen = []
    # Two looks, one at the start and one after the first epoch: it is 20, and another epoch ends at 30.
    assert do_run(Task(run, settings, deadline=29), seen.append, Clock()) is None
    assert [line["epoch"] for line in seen] == [1]
    record = do_run(Task(run, settings, deadline=29), seen.append, Clock())
    assert [line["epoch"] for line in seen] == [1, 2]
    assert without_times(record) == by_run(two_jobs[0])[run]
    assert do_run(Task(run, settings, deadline=None), seen.append) == record
    assert len(seen) == 2


def test_an_epoch_that_still_fits_is_done(tmp_path):
    settings = TrainSettings(epochs=2, device="cpu", out=tmp_path / "run").resolve()
    assert do_run(Task("run", settings, deadline=30), lambda line: None, Clock()) is not None


class Pipe:
    """A parent that gives one task after the other."""

    def __init__(self, *tasks: Task) -> None:
        self.tasks = list(tasks)
        self.sent: list[Event] = []

    def recv(self) -> Task:
        if not self.tasks:
            raise EOFError
        return self.tasks.pop(0)

    def send(self, event: Event) -> None:
        self.sent.append(event)


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr("signal.signal", lambda *args: None)
    monkeypatch.setattr(worker_module, "die_with_parent", lambda: None)
    return lambda *tasks: (pipe := Pipe(*tasks), worker_module.serve(pipe, 0, 1))[0]


def test_a_worker_goes_on_after_a_run_that_fails(tmp_path, serve):
    good = TrainSettings(method="dense", epochs=1, device="cpu", out=tmp_path / "good").resolve()
    bad = replace(good, lr=1e30, out=tmp_path / "bad")
    pipe = serve(Task("bad", bad, None), Task("good", good, None))
    assert [(event.run, event.kind) for event in pipe.sent] == [
        ("bad", "failed"),
        ("good", "epoch"),
        ("good", "finished"),
    ]
    assert "try a lower --lr" in pipe.sent[0].reason


def test_a_worker_that_may_be_harmed_is_not_used_again(tmp_path, serve, monkeypatch):
    settings = TrainSettings(epochs=1, device="cpu", out=tmp_path / "run").resolve()

    def broken(*args: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(worker_module, "do_run", broken)
    pipe = serve(Task("one", settings, None), Task("two", settings, None))
    assert [(event.run, event.kind) for event in pipe.sent] == [("one", "failed")]
    assert "illegal memory access" in pipe.sent[0].reason


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": ("gmp", "foo")}, "method is 'foo'; it must be one of"),
        ({"model": ("resnet-20",)}, "model is 'resnet-20', which does not exist"),
        ({"model": ("digits-cnn", "vgg19")}, "model 'vgg19' cannot take images of 1×8×8"),
        ({"data": ("digit",)}, "data is 'digit'; it must be digits"),
        ({"data": ("folder:/nowhere",)}, "must hold train/ and test/"),
        ({"sparsity": (1.5,)}, r"sparsity is 1\.5"),
        ({"time_limit": "soon"}, "time_limit is 'soon'"),
        ({"method": None, "sparsity": None, "seed": None, "epochs": None, "device": None}, "name a grid file, or say"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_runs(tmp_path, inline, console, settings, message):
    with pytest.raises(UsageError, match=message):
        grid(digits(tmp_path / "grid", **settings), console)
    assert inline == []
    assert list(tmp_path.iterdir()) == []


def test_a_list_of_the_runs(tmp_path, inline, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["grid", "--method", "dense", "gmp", "--sparsity", "0.9", "--epochs", "1", "--device", "cpu"]
    assert cli.main([*command, "--seed", "0"]) == 0
    assert (tmp_path / "fggp-grids" / "grid" / "records.jsonl").exists()
    capsys.readouterr()
    assert cli.main([*command, "--seed", "0", "1", "--dry-run"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "finished  dense-seed0",
        "finished  gmp-0.9-seed0",
        "missing   dense-seed1",
        "missing   gmp-0.9-seed1",
        "2 of 4 runs finished in fggp-grids/grid",
    ]


def test_a_grid_goes_on_from_its_records_alone(tmp_path, inline, capsys, monkeypatch):
    """As from a repository, which keeps grid.json and records.jsonl but no run folders."""
    monkeypatch.chdir(tmp_path)
    command = ["grid", "--method", "dense", "gmp", "--sparsity", "0.9", "--epochs", "1", "--device", "cpu"]
    assert cli.main([*command, "--seed", "0"]) == 0
    kept, there = tmp_path / "fggp-grids" / "kept", tmp_path / "fggp-grids" / "grid"
    kept.mkdir()
    (kept / "grid.json").write_bytes((there / "grid.json").read_bytes())
    torn = (there / "records.jsonl").read_bytes() + b'{"run": "gm'
    (kept / "records.jsonl").write_bytes(torn)
    more = [*command, "--seed", "0", "1", "--out", str(kept)]
    capsys.readouterr()
    assert cli.main([*more, "--dry-run"]) == 1
    assert "2 of 4 runs finished" in capsys.readouterr().out
    assert (kept / "records.jsonl").read_bytes() == torn  # looking changes nothing
    assert cli.main(more) == 0
    assert [record["run"] for record in records(kept)] == [
        "dense-seed0",
        "gmp-0.9-seed0",
        "dense-seed1",
        "gmp-0.9-seed1",
    ]
    assert {folder.name for folder in (kept / "runs").iterdir()} == {"dense-seed1", "gmp-0.9-seed1"}


def test_the_folder_is_named_after_the_file(tmp_path, inline, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("tiny.toml").write_text('method = "dense"\nepochs = 1\ndevice = "cpu"')
    assert cli.main(["grid", "tiny.toml"]) == 0
    assert [record["run"] for record in records(tmp_path / "fggp-grids" / "tiny")] == ["dense-seed0"]
    assert "1 of 1 runs finished" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path, monkeypatch, capsys, number):
    class Interrupted(InlineJobs):
        closed = False

        def events(self, seconds: float) -> list[Event]:
            os.kill(os.getpid(), number)
            return super().events(seconds)

        def close(self) -> None:
            Interrupted.closed = True

    before = signal.getsignal(signal.SIGTERM)
    if number == signal.SIGINT:  # ignored where the tests run in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr("fggp.lab.grid.grid.LocalJobs", Interrupted)
    command = ["grid", "--method", "dense", "--epochs", "1", "--device", "cpu", "--out", str(tmp_path / "grid")]
    assert cli.main(command) == 130
    assert capsys.readouterr().err == "fggp: interrupted; the same command continues\n"
    assert Interrupted.closed
    assert signal.getsignal(signal.SIGTERM) == before
    # The run had just been finished, but the command had not heard of it.
    assert not (tmp_path / "grid" / "records.jsonl").exists()
    assert cli.main(command) == 0
    assert [record["run"] for record in records(tmp_path / "grid")] == ["dense-seed0"]


def test_a_live_table_in_a_terminal(tmp_path):
    from rich.console import Console

    run = TrainSettings(epochs=10, device="cpu", out=tmp_path / "run").resolve()

    class Started(InlineJobs):
        """Reports an epoch of the first run, then fails both."""

        def start(self, task: Task) -> None:
            self.started.append(task.run)

        def free_slots(self) -> int:
            return 2 - len(self.started)

        def events(self, seconds: float) -> list[Event]:
            session.bars.refresh()
            if self.done:
                return [Event(run, "failed", {}, "no more of this") for run in self.started]
            self.done = [Event("gmp", "epoch", {"epoch": 1, "val_accuracy": 91.234, "test_accuracy": 90.0})]
            return self.done

    with (tmp_path / "log").open("w") as log:
        console = Console(file=log, force_terminal=True, width=80)
        jobs, result = Started(2), GridResult(total=3, finished=1)
        session = Session(GridFolder(tmp_path / "grid"), {"gmp": run, "fggp": run}, result, jobs, console)
        session.run()
    text = (tmp_path / "log").read_text()
    for shown in ("1/3 runs", "gmp", "epoch 1/10  val 91.2 %", "fggp", "epoch 1/10", "left", "no more of this"):
        assert shown in text
    assert result.failed == {"gmp": "no more of this", "fggp": "no more of this"}
