import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import pytest
from grids import digits

from fggp.lab.base.errors import UsageError
from fggp.lab.grid import ray_jobs
from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.grid import grid
from fggp.lab.grid.ray_jobs import RayJobs
from fggp.lab.grid.work import Task
from fggp.lab.training.settings import TrainSettings

MARK = "FGGP_TEST_CLUSTER"


def test_ray_is_an_extra(tmp_path, console, monkeypatch):
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"Ray is not installed: pip install 'fggp\[ray\]'"):
        grid(digits(tmp_path / "grid", ray="auto"), console)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_no_cluster(monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match="ray is 'auto', where no Ray cluster can be reached"):
        RayJobs("auto", 1, 1, None)


def task(out: Path) -> Task:
    return Task("run", TrainSettings(method="dense", epochs=1, device="cpu", out=out).resolve(), None)


def test_without_a_shared_disk_the_run_folder_is_sent(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path / "scratch"))
    out = tmp_path / "grid" / "runs" / "run"
    event, files = ray_jobs._work_on_node(task(out), "the driver's grid", 1)
    assert event.kind == "finished"
    assert not (tmp_path / "grid").exists()
    assert not list((tmp_path / "scratch").rglob("*.json"))
    ray_jobs._write(GridFolder(tmp_path / "grid").run_folder("run"), files)
    assert {file.name for file in out.iterdir()} == {
        "settings.json",
        "metrics.jsonl",
        "model.safetensors",
        "record.json",
    }
    assert GridFolder(tmp_path / "grid").run_folder("run").record() == event.content


def test_on_a_shared_disk_the_run_folder_is_used(tmp_path):
    folder = GridFolder(tmp_path)
    folder.adopt({})
    event, files = ray_jobs._work_on_node(task(tmp_path / "runs" / "run"), folder.read_id(), 1)
    assert files == {}
    assert folder.run_folder("run").record() == event.content


def processes(mark: str) -> list[int]:
    """Processes that were started, by whomever, with the mark in their environment; but this one."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:  # ended meanwhile, or someone else's
            continue
    return [pid for pid in found if pid != os.getpid()]


def wait_for(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never came")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc to find leftover processes")
def test_a_node_killed_in_mid_grid(tmp_path, monkeypatch):
    """Runs are done on the one node that has CPUs, which is lost in the middle of one; another node joins later."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    mark = uuid.uuid4().hex
    monkeypatch.setenv(MARK, mark)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 is what Ray gives them, and on a busy machine nothing is left
    memory = {"object_store_memory": 80 * 2**20}
    out = tmp_path / "grid"
    flags = f"--method gmp fggp --sparsity 0.9 --epochs 30 --device cpu --out {out}"
    main = "import sys; from fggp.lab.cli import main; sys.exit(main())"

    def under_way() -> list[Path]:
        return [file for file in out.glob("runs/*/checkpoint.pt") if not (file.parent / "record.json").exists()]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **memory})
    try:
        node = cluster.add_node(num_cpus=1, **memory)
        command = [sys.executable, "-c", main, "grid", *flags.split(), "--ray", cluster.address]
        with (tmp_path / "log").open("w") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log)
        wait_for(lambda: under_way() or driver.poll() is not None)
        cluster.remove_node(node, allow_graceful=False)
        lost = under_way()
        cluster.add_node(num_cpus=1, **memory)
        assert driver.wait(600) == 0, (tmp_path / "log").read_text()
    finally:
        cluster.shutdown()
    assert len(lost) == 1, "the node was lost between two runs"
    assert "2 of 2 runs finished" in (tmp_path / "log").read_text()
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert sorted(record["run"] for record in records) == ["fggp-0.9-seed0", "gmp-0.9-seed0"]
    for record in records:
        assert record["curve"]["epoch"] == [*range(1, 31)]
    wait_for(lambda: not processes(mark))
