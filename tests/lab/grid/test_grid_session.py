"""The loop, with workers and a clock that only pretend."""

import pytest

from fggp.lab.grid.folder import GridFolder
from fggp.lab.grid.plan import plan_runs, read_tables
from fggp.lab.grid.session import GridResult, RunQueue, Session
from fggp.lab.grid.worker import Event
from grids import logged


class Pretend:
    """Workers and the clock they go by: every run takes `seconds`, and stops at an epoch's end for the deadline."""

    def __init__(self, jobs=1, seconds=100.0, dies=None, fails=()):
        self.now = 0.0
        self.jobs, self.seconds, self.dies, self.fails = jobs, seconds, dict(dies or {}), fails
        self.running, self.started, self.most = {}, [], 0

    def clock(self):
        return self.now

    def free_slots(self):
        return self.jobs - len(self.running)

    def start(self, task):
        self.started.append(task.run)
        self.running[task.run] = (task, self.now + self.seconds)
        self.most = max(self.most, len(self.running))

    def events(self, seconds):
        name, (task, end) = min(self.running.items(), key=lambda item: item[1][1])
        if task.deadline is not None and end > task.deadline:
            self.now = task.deadline - 1
            del self.running[name]
            return [Event(name, "stopped", {})]
        self.now = end
        del self.running[name]
        if self.dies.get(name, 0):
            self.dies[name] -= 1
            return [Event(name, "died", {}, "its worker process was ended by SIGKILL")]
        if name in self.fails:
            return [Event(name, "failed", {}, "the loss is nan")]
        return [Event(name, "finished", record(task.settings, name, self.seconds))]

    def close(self):
        pass


def record(settings, name="", seconds=100.0):
    return {"run": name, "settings": settings.as_json(), "wall_seconds": seconds, "test_accuracy": 90.0}


def plan(**flags):
    return plan_runs(read_tables(None, {"device": ["cpu"], "epochs": [2], **flags}))


def session(tmp_path, jobs, deadline=None, **flags):
    folder = GridFolder(tmp_path / "grid")
    console, log = logged(tmp_path)
    with folder.locked(), console.file:
        named = folder.name_runs(plan(**flags))
        folder.adopt(named)
        result = GridResult(len(named))
        Session(folder, named, result, jobs, console, jobs.clock, deadline).run()
    return result, [*folder.records], log.read_text()


def test_every_run_once(tmp_path):
    jobs = Pretend(jobs=3)
    result, records, text = session(tmp_path, jobs, seed=[*range(7)])
    assert result.complete
    assert sorted(records) == sorted(jobs.started) == [f"fggp-0.95-seed{seed}" for seed in range(7)]
    assert jobs.most == 3
    assert "7/7  fggp-0.95-seed6  test 90.00 %" in text


def test_a_dead_worker_s_run_is_tried_once_more(tmp_path):
    jobs = Pretend(dies={"fggp-0.95-seed0": 1})
    result, records, text = session(tmp_path, jobs, seed=[0, 1])
    assert result.complete
    assert jobs.started == ["fggp-0.95-seed0", "fggp-0.95-seed0", "fggp-0.95-seed1"]
    assert len(records) == 2
    assert "fggp-0.95-seed0  its worker process was ended by SIGKILL; trying once more" in text


def test_a_run_whose_workers_die_is_given_up_and_the_others_go_on(tmp_path):
    jobs = Pretend(dies={"fggp-0.95-seed0": 9})
    result, records, text = session(tmp_path, jobs, seed=[0, 1])
    assert not result.complete
    assert result.failed == {"fggp-0.95-seed0": "its worker process was ended by SIGKILL"}
    assert jobs.started.count("fggp-0.95-seed0") == 2
    assert records == ["fggp-0.95-seed1"]
    assert "fggp-0.95-seed0  failed: its worker" in text


def test_a_failed_run_is_not_tried_again(tmp_path):
    jobs = Pretend(fails=["fggp-0.95-seed0"])
    result, records, _ = session(tmp_path, jobs, seed=[0, 1])
    assert result.failed == {"fggp-0.95-seed0": "the loss is nan"}
    assert jobs.started == ["fggp-0.95-seed0", "fggp-0.95-seed1"]
    assert records == ["fggp-0.95-seed1"]


def test_no_run_is_begun_that_cannot_end_in_time(tmp_path):
    jobs = Pretend(seconds=100)
    result, records, _ = session(tmp_path, jobs, deadline=350, seed=[*range(9)])
    assert jobs.started == records == [f"fggp-0.95-seed{seed}" for seed in range(3)]
    assert jobs.now == 300
    assert not result.complete
    assert result.failed == {}


def test_what_runs_at_the_deadline_is_stopped_and_nothing_is_begun_after(tmp_path):
    jobs = Pretend(seconds=1000)
    result, records, text = session(tmp_path, jobs, deadline=350, seed=[*range(9)])
    assert jobs.started == ["fggp-0.95-seed0"]
    assert records == []
    assert str(result) == "0 of 9 runs finished"
    assert "fggp-0.95-seed0  stopped after epoch 0 of 2" in text


def test_no_time_at_all(tmp_path):
    jobs = Pretend()
    session(tmp_path, jobs, deadline=0)
    assert jobs.started == []


def test_shorter_runs_fill_the_time_that_longer_ones_cannot():
    long, short = plan(epochs=[100])[0], plan(epochs=[2])[0]
    schedule = RunQueue({"long": long, "short": short}, set(), [record(short, seconds=20)], limit=5000)
    assert schedule.next(500) == "short"
    assert schedule.next(500) is None
    assert schedule.next(1000) == "long"


def test_runs_under_way_come_first_and_need_not_end_in_time():
    run = plan()[0]
    schedule = RunQueue({"new": run, "begun": run}, {"begun"}, [record(run, seconds=100)], limit=1000)
    assert schedule.next(5) == "begun"
    assert schedule.next(5) is None


def test_a_run_longer_than_the_whole_limit_is_begun_all_the_same():
    run = plan()[0]
    schedule = RunQueue({"run": run}, set(), [record(run, seconds=5000)], limit=1000)
    assert schedule.next(900) == "run"


def test_a_run_takes_as_long_as_those_of_its_method_or_else_similar_ones():
    gmp, fggp = plan(method=["gmp", "fggp"])
    schedule = RunQueue({}, set(), [record(gmp, seconds=10)], limit=None)
    assert schedule.estimate(gmp) == schedule.estimate(fggp) == 10
    schedule.add_record(record(fggp, seconds=30))
    assert (schedule.estimate(gmp), schedule.estimate(fggp)) == (10, 30)
    assert schedule.estimate(plan(epochs=[10])[0]) == pytest.approx(150)
    assert schedule.estimate(plan(model=["resnet20"])[0]) is None
