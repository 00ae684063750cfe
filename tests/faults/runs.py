"""Training runs in processes of their own, alone or as two ranks, that end as `kill -9` ends them, or on a full disk.

All are forked from one process, ranks too: importing PyTorch is what takes the time. The ranks are those of torchrun's
own agent, but forked: `torchrun` starts Python anew for each rank.
"""

import json
import mmap
import os
import resource
import select
import signal
import struct
import sys
import threading
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sklearn.datasets  # noqa: F401 (here, as all that a run imports: forked processes need not import it again)
import torch
import torch.distributed.fsdp
import tyro  # noqa: F401
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

import fggp.lab.training.train  # noqa: F401
import places
from fggp.lab import cli

MODES = {"alone": (), "ddp": (), "fsdp": ("--fsdp",)}
"""Kinds of runs, and the options each takes."""
RANKS = 2
HANG_SECONDS = 120.0
_FULL_BYTES = 20_000


@dataclass(frozen=True)
class Moment:
    """When something happens to a run.

    Args:
        place: as `places.install` reports it; "timer" for a time.
        nth: how often the place is come to, or how many bytes into it; seconds for the timer.
        rank: in which process.
        action: "kill" the process, "kill all" of the run, or fill the disk ("full").
    """

    place: str
    nth: float
    rank: int = 0
    action: str = "kill"

    def __str__(self) -> str:
        where = f" of rank {self.rank}" if self.rank else ""
        return f"{self.action} at {self.place} {self.nth:.4g}{where}"


@dataclass(frozen=True)
class End:
    """How a run ended.

    Args:
        code: exit code; negative for a signal.
        struck: whether its moment came.
        steps: optimizer steps that the first rank made.
        text: all that it printed.
        counts: how often each rank came to each place; of runs that ended by themselves.
    """

    code: int
    struck: bool
    steps: int
    text: str
    counts: list[dict[str, int]]


class HangError(AssertionError):
    """A run did not end."""


class _Board:
    """Memory that outlives the processes that write in it: what a run has to say that cannot say it any more."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, mmap.PAGESIZE)

    def add_step(self) -> None:
        self.memory[:8] = struct.pack("q", self.steps + 1)

    @property
    def steps(self) -> int:
        return int(struct.unpack("q", self.memory[:8])[0])

    def strike(self) -> None:
        self.memory[8] = 1

    @property
    def struck(self) -> bool:
        return self.memory[8] == 1


def run(mode: str, arguments: Sequence[str], folder: Path, moment: Moment | None = None) -> End:
    """Give `fggp train` these arguments and wait for its end.

    Args:
        mode: one of `MODES`.
        arguments: without those that the mode adds.
        folder: for what is noted and printed.
        moment: what happens to it, if anything.

    Raises:
        HangError: processes are left after `HANG_SECONDS`; they are ended.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    board, command = _Board(), ["train", *arguments, *MODES[mode]]
    # A pipe that no process holds any more shows that all processes have ended, zombies included.
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become(_work if mode == "alone" else _launch, folder / "log", (command, folder, board, moment))
    os.close(writer)
    gone = _wait_for_end(reader)
    os.close(reader)
    if not gone:
        os.killpg(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = (folder / "log").read_text(errors="replace")
    if not gone:
        raise HangError(f"{mode}, {moment}: not ended after {HANG_SECONDS} s\n{text}")
    counts = [json.loads(file.read_text()) for file in sorted(folder.glob("rank*.json"))]
    return End(code, board.struck, board.steps, text, counts)


def _wait_for_end(reader: int) -> bool:
    """Wait until nobody holds the other end; return whether that happened in time."""
    return bool(select.select([reader], [], [], HANG_SECONDS)[0])


def _become(what: Callable[..., int], log: Path, arguments: tuple[Any, ...]) -> None:
    """In a child that was just forked: call a function in a new process group, without the parent's files."""
    code = 1
    try:
        os.setsid()
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(file, 1)
        os.dup2(file, 2)
        # The parent's own may hold what it has not written yet.
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        code = what(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _launch(command: list[str], folder: Path, board: _Board, moment: Moment | None) -> int:
    """Be torchrun's agent."""
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=RANKS,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        start_method="fork",
        logs_specs=DefaultLogsSpecs(),
    )
    elastic_launch(config, _rank)(command, folder, board, moment)
    return 0


def _rank(*arguments: Any) -> None:
    """Be one of the processes that train."""
    code = _work(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    if code != 0:
        os._exit(code)


def _work(command: list[str], folder: Path, board: _Board, moment: Moment | None) -> int:
    """Be the process that trains, or one of them."""
    torch.set_num_threads(1)
    rank = int(os.environ.get("RANK", "0"))
    counts: Counter[str] = Counter()
    armed = moment is not None and moment.rank == rank
    disk = Path(command[command.index("--out") + 1]).parent

    def reached(place: str, amount: int = 1, before: Any = lambda: None) -> None:
        counts[place] += amount
        if armed and place == moment.place and counts[place] - amount < moment.nth <= counts[place]:
            if moment.action != "full":
                before()
            _strike(board, moment, disk)

    places.install(reached, board.add_step if rank == 0 else lambda: None)
    if armed and moment.place == "timer":
        timer = threading.Timer(moment.nth, _strike, (board, moment, disk))
        timer.daemon = True
        timer.start()
    code = cli.main(command)
    if not board.struck:
        (folder / f"rank{rank}.json").write_text(json.dumps(counts))
    return code


def _strike(board: _Board, moment: Moment, disk: Path) -> None:
    board.strike()
    if moment.action == "full":
        fill(disk)
    elif moment.action == "kill all":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def fill(folder: Path) -> None:
    """Leave no room: on the folder's own small disk, or, where it has none, for files of more than a few kilobytes."""
    if not os.path.ismount(folder):
        resource.setrlimit(resource.RLIMIT_FSIZE, (_FULL_BYTES, _FULL_BYTES))
        return
    chunk = bytes(1 << 16)
    with (folder / "balloon").open("ab", buffering=0) as file:
        while chunk:
            try:
                file.write(chunk)
            except OSError:
                chunk = chunk[: len(chunk) // 2]
