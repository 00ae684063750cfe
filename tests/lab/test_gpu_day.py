"""The use of a GPU that is lent for minutes: rehearsed on the CPU, and its pieces."""

import importlib
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fggp.lab.training.data import load_data
from fggp.lab.training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
GPU_DAY = ROOT / "experiments" / "gpu_day"
COMMIT = "0123456789" * 4
PRESENT = {
    *("torch", "torchvision", "timm", "safetensors", "numpy", "pillow", "scikit-learn", "scipy", "matplotlib"),
    *("rich", "markdown-it-py", "filelock", "tomli"),
}
"""What fggp needs and the GPU machine has."""


@pytest.fixture(scope="module")
def gpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(GPU_DAY))
        patch.chdir(ROOT)  # methods of a file are named from the root
        names = ("day", "images", "pack", "worker", "study", "run")
        yield SimpleNamespace(**{name: importlib.import_module(name) for name in names})


@pytest.fixture
def day(gpu, tmp_path):
    return gpu.day.Day(str(tmp_path), str(tmp_path), COMMIT, rehearse=True, until=math.inf)


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git: packing asks it for the commit")
def test_rehearsal(gpu, tmp_path):
    command = [sys.executable, str(GPU_DAY / "run.py"), "--rehearse"]
    done = subprocess.run(command, env={**os.environ, "OUT": str(tmp_path)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("not reached: none\n")
    found = lines(tmp_path / "measured.jsonl")
    assert not [line for line in found if "error" in line["value"]]
    assert {line["device"] is not None for line in found if line["name"] != "ended"} == {True}
    first = {line["name"]: line["value"] for line in found if line["part"] in ("check", "speed")}
    assert first["images"] == {"images": [40, 10], "same pixels": True}
    assert first["same masks as on a CPU"] == {"without ties": True, "with ties": True}
    assert first["same masks with a process group"] == {"backend": "gloo", "DDP": True, "FSDP2": True}
    assert first["two of four"] == {"at most 2 of 4": True}
    assert first["tests"]["exit code"] == 0
    assert re.match(r"\d+ skipped, \d+ deselected", first["tests"]["last line"])  # chosen are those for a GPU
    assert [line["value"]["jobs"] for line in found if line["name"] == "captured"] == [1, 2]
    assert [line["value"]["exit code"] for line in found if line["name"] == "ended"] == [0, 0, 0]
    records = lines(tmp_path / "gpu-study" / "records.jsonl")
    assert {r["run"] for r in records} == {*json.loads((tmp_path / "gpu-study" / "grid.json").read_text())["runs"]}
    assert len(records) == 28
    assert {r["commit"] for r in records} == {line["commit"] for line in found}
    assert {re.fullmatch(r"[0-9a-f]{40}(-dirty)?", r["commit"]) is not None for r in records} == {True}
    # What comes back of the GPU machine is at most eight files, two folders deep.
    files = [file.relative_to(tmp_path) for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) <= 8
    assert max(len(file.parts) for file in files) <= 3


def test_images_are_those_of_the_folder(gpu, image_folder, tmp_path, console):
    settings = TrainSettings(data=f"folder:{image_folder}", data_name="pets", device="cpu").resolve()
    gpu.images.pack(image_folder, tmp_path / "images.npz")
    assert gpu.images.unpack(tmp_path / "images.npz", tmp_path / "images.pt")["same pixels"]
    found, expected = gpu.images.load(tmp_path / "images.pt", settings), load_data(settings, console)
    assert (found.name, found.classes, found.augmentation) == (expected.name, expected.classes, expected.augmentation)
    for part in ("train", "val", "test"):
        for each in ("images", "labels"):
            assert torch.equal(getattr(getattr(found, part), each), getattr(getattr(expected, part), each))


def test_other_pixels_are_noticed(gpu, image_folder, tmp_path, monkeypatch):
    gpu.images.pack(image_folder, tmp_path / "images.npz")
    decoded = gpu.images.decoded
    monkeypatch.setattr(gpu.images, "decoded", lambda jpeg: decoded(jpeg) ^ 1)
    assert not gpu.images.unpack(tmp_path / "images.npz", tmp_path / "images.pt")["same pixels"]


def test_runs_are_in_the_order_of_the_plan(gpu, day):
    runs = gpu.day.planned(day, 40)
    assert {run.epochs for run in runs} == {40}
    order = [
        (run.method.rpartition(":")[2], run.sparsity, run.init_sparsity, run.seed) for run in runs if run.seed == 200
    ]
    three = ("fggp", "gmp", "RandomFirst")
    assert order == [
        *((method, 0.98, 0, 200) for method in three),
        ("dense", 0, 0, 200),
        *((method, 0.98, 0.5, 200) for method in three),
        *((method, 0.95, 0, 200) for method in three),
    ]
    first = runs[: gpu.study.FIRST]
    assert [run.seed for run in first] == [200] * 4 + [201] * 3 + [202] * 3
    assert {run.sparsity for run in first} == {0, 0.98}


@given(
    st.dictionaries(st.sampled_from([1, 2, 3, 5]), st.floats(1e3, 1e5), min_size=1),
    st.floats(1, 1e4),
    st.integers(100, 50_000),
)
def test_length_and_jobs_are_the_best_of_all(gpu, speeds, seconds, images):
    def needed(epochs: int, jobs: int) -> float:
        """The seconds for rounds of ``jobs`` runs at once, each as fast as its share of the GPU."""
        left, total = gpu.study.FIRST, 0.0
        while left > 0:
            total += epochs * images / (speeds[jobs] / jobs) * gpu.study.OVERHEAD
            left -= jobs
        return total

    epochs, jobs = gpu.study.choose(speeds, seconds, images, (160, 80, 40))
    assert jobs in speeds
    assert needed(epochs, jobs) <= min(needed(epochs, other) for other in speeds) * (1 + 1e-9)
    assert epochs == 40 or needed(epochs, jobs) <= seconds * (1 + 1e-9)
    if epochs < 160:
        assert all(needed(2 * epochs, other) > seconds * (1 - 1e-9) for other in speeds)


def test_what_there_is_no_time_for_is_named(gpu, tmp_path):
    day = gpu.day.Day(str(tmp_path), str(tmp_path), COMMIT, rehearse=True, until=0.0)
    day.note("check", "machine", {})
    gpu.study.study(day, 36, tmp_path / "none")
    assert lines(tmp_path / "measured.jsonl")[-1]["value"] == {"epochs": 1, "jobs": 2, "runs": 28, "finished": 0}
    assert len(gpu.run.not_reached(tmp_path)) == 28


class Answers:
    """In the place of `Worker`: it trains nothing."""

    def __init__(self, day):
        self.record = {"commit": day.commit, "test_accuracy": 50.0}

    def give(self, do, run, epochs, name):
        self.answered = {"record": {**self.record, "run": name, "settings": {"epochs": epochs}}}

    def answer(self):
        return self.answered

    def close(self):
        pass


def test_another_day_goes_on_with_the_same_length(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.study, "Worker", Answers)
    kept = tmp_path / "results"
    kept.mkdir()

    def use(name: str, lengths: tuple[int, ...]) -> list[dict]:
        monkeypatch.setattr(gpu.day.Day, "lengths", lengths)
        out = tmp_path / name
        out.mkdir()
        day = gpu.day.Day(str(out), "", COMMIT, rehearse=True, until=math.inf)
        day.note("speed", "captured", {"jobs": 2, "images/s": 1e5})
        gpu.study.study(day, 36, kept)
        return lines(out / "gpu-study" / "records.jsonl")

    first = use("first", (2, 1))
    assert {r["settings"]["epochs"] for r in first} == {2}
    (kept / "grid.json").write_bytes((tmp_path / "first" / "gpu-study" / "grid.json").read_bytes())
    (kept / "records.jsonl").write_text("".join(json.dumps({**r, "kept": True}) + "\n" for r in first[:5]))
    second = use("second", (4, 1))
    assert [r.get("kept", False) for r in second] == [True] * 5 + [False] * 23
    assert {r["settings"]["epochs"] for r in second} == {2}
    assert sorted(r["run"] for r in second) == sorted(r["run"] for r in first)


def test_after_an_error_the_next_job_has_a_new_process(gpu, day, monkeypatch):
    answers = "import os, sys\nfor line in sys.stdin: print('{\"pid\": %d}' % os.getpid(), flush=True)"
    dies = "import sys; sys.stdin.readline(); sys.exit(3)"
    commands = iter([dies, answers])
    monkeypatch.setattr(gpu.day.Day, "command", lambda self, file: [sys.executable, "-c", next(commands)])
    worker = gpu.worker.Worker(day)
    worker.give("train", run=0)
    assert worker.answer() == {"error": "the process ended with 3"}
    for _ in range(2):
        worker.give("train", run=1)
        assert worker.answer() == {"pid": worker.process.pid}
    worker.close()
    assert worker.process.poll() is not None


def test_a_part_that_hangs_is_ended_with_all_that_it_started(gpu, tmp_path, monkeypatch):
    started = tmp_path / "pid"
    script = f"sleep 600 & echo $! >{started}.new; mv {started}.new {started}; wait"
    monkeypatch.setattr(gpu.day.Day, "command", lambda self, file: ["sh", "-c", script])
    monkeypatch.setattr(gpu.run, "TO_END", 0.0)

    class AfterTheStart(gpu.run.subprocess.Popen):
        def wait(self, timeout=None):
            while timeout is not None and not started.exists():
                pass
            return super().wait(timeout)

    monkeypatch.setattr(gpu.run.subprocess, "Popen", AfterTheStart)
    assert gpu.run.run_part(gpu.day.Day(str(tmp_path), "", COMMIT, rehearse=True, until=0.0), "check") is None
    (line,) = lines(tmp_path / "measured.jsonl")
    assert (line["name"], line["value"]["stopped"]) == ("ended", "its time was over")
    stat = Path(f"/proc/{started.read_text().strip()}/stat")
    end = time.monotonic() + 60  # a process that was ended may be there for a moment
    while stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < end


def test_other_code_than_that_of_the_commit_is_refused(gpu, tmp_path, monkeypatch):
    code = {"commit": COMMIT, "digest": gpu.pack.code_digest()}
    (tmp_path / "code.json").write_text(json.dumps(code))
    assert gpu.pack.code_commit(tmp_path) == COMMIT
    monkeypatch.setattr(gpu.pack, "CODE", (*gpu.pack.CODE, "README.md"))
    assert gpu.pack.code_commit(tmp_path) == f"{COMMIT}-dirty"
    with pytest.raises(SystemExit, match=f"not that of the commit that was packed .{COMMIT}-dirty"):
        gpu.run.run(tmp_path, 1.0, rehearse=False)


def test_what_cannot_begin_ends_at_once(gpu, tmp_path, monkeypatch):
    (tmp_path / "code.json").write_text(json.dumps({"commit": COMMIT, "digest": gpu.pack.code_digest()}))
    monkeypatch.setenv("OUT", str(tmp_path))
    monkeypatch.setattr(gpu.day.Day, "command", lambda self, file: [sys.executable, "-c", "import no_such_package"])
    with pytest.raises(SystemExit, match="nothing was measured"):
        gpu.run.run(tmp_path, 1.0, rehearse=True)
    assert [line["part"] for line in lines(tmp_path / "measured.jsonl")] == ["check"]


def test_what_fggp_needs_is_packed_or_there(gpu):
    text = (ROOT / "pyproject.toml").read_text()
    lists = [re.search(rf"^{name} = \[(.*?)\]$", text, re.M | re.S)[1] for name in ("dependencies", "lab")]
    needed = {re.match(r"[\w-]+", entry)[0] for entry in re.findall(r'"(.*?)"', " ".join(lists))}
    assert {"torch", "tyro"} <= needed
    assert needed <= PRESENT | {*gpu.pack.WHEELS}
