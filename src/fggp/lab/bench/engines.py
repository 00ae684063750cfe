"""What can run a network, each in a process of its own, and their times, taken in turns.

Processes keep engines apart: the threads of one spin for a while after a run, and would take the processor from the
next. Turns keep them comparable: on a machine with other work, all engines meet the same of it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, quantiles
from typing import IO, Any

import numpy as np

from fggp.ship.runtime import kernels
from fggp.ship.runtime.kernels import KernelsMissingError

Json = dict[str, Any]


@dataclass(frozen=True)
class Engine:
    """Something that runs networks.

    Attributes:
        name: what records call it.
        label: what tables call it.
        file: what it reads: "torch", a pickled module, or "onnx".
        command: starts its worker, but for the worker's last four arguments (`fggp.lab.bench.worker`).
        missing: why it cannot be used on this machine, and what would help; empty where it can.
    """

    name: str
    label: str
    file: str
    command: tuple[str, ...]
    missing: str = ""


def engines() -> dict[str, Engine]:
    """Return the engines by name, those that are not installed too."""
    own = (
        ("pytorch", "PyTorch", "torch", ()),
        ("torch.compile", "torch.compile", "torch", ()),
        ("onnxruntime", "ONNX Runtime", "onnx", ("onnx", "onnxscript", "onnxruntime")),
        ("openvino", "OpenVINO", "onnx", ("onnx", "onnxscript", "openvino")),
        ("fggp", "fggp.compile", "torch", ()),
    )
    return {name: Engine(name, label, file, _own(name), _missing(name, needs)) for name, label, file, needs in own}


def _own(name: str) -> tuple[str, ...]:
    return sys.executable, str(Path(__file__).with_name("worker.py")), name


def _missing(name: str, packages: Sequence[str]) -> str:
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent:
        return f"{', '.join(absent)} not installed: pip install {' '.join(absent)}"
    if name == "fggp":
        try:
            kernels.load()
        except KernelsMissingError as error:
            return str(error)
    return ""


@dataclass(frozen=True)
class Job:
    """A network on an engine, for one batch size.

    Attributes:
        engine: what runs it.
        model: its file, of the kind that the engine reads.
        inputs: .npz file of its arguments in order, by the names in the ONNX file; their dimension 0 is the batch.
    """

    engine: Engine
    model: Path
    inputs: Path


@dataclass
class Measurement:
    """What came of a job.

    Attributes:
        job: which.
        seconds: of one run on the batch; the median of each turn.
        runs: how many were timed.
        version: the engine's.
        load_seconds: from opening the file to the first output.
        base_bytes: resident memory with the engine imported, before that; None where the system does not tell.
        peak_bytes: the most resident memory that the process had.
        note: what the engine says of how the network runs.
        output: the network's first output; None where there is none.
        error: why there are no times; empty where there are.
    """

    job: Job
    seconds: list[float] = field(default_factory=list)
    runs: int = 0
    version: str = ""
    load_seconds: float | None = None
    base_bytes: int | None = None
    peak_bytes: int | None = None
    note: str = ""
    output: np.ndarray[Any, Any] | None = None
    error: str = ""

    @property
    def median(self) -> float:
        """Seconds of one run: the median of the turns."""
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and upper quartile of the turns, seconds."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return low, high


def measure(
    jobs: Sequence[Job],
    threads: int,
    rounds: int,
    seconds: float,
    on_turn: Callable[[str, Job], None] = lambda doing, job: None,
) -> list[Measurement]:
    """Load every job in a process of its own, then time them in turns.

    All are in memory at once; whoever has no turn sleeps. A job that fails is left out, the others go on.

    Args:
        jobs: what to time.
        threads: of each.
        rounds: how many turns each gets.
        seconds: of one turn; a network that takes longer runs once in it.
        on_turn: called before each load ("loading") and each turn ("timing").

    Returns:
        A measurement for each job, in their order.
    """
    measurements = [Measurement(job) for job in jobs]
    with contextlib.ExitStack() as stack:
        workers: list[tuple[Measurement, _Worker]] = []
        for m in measurements:
            on_turn("loading", m.job)
            # One after the other: fggp.compile decides by measurement what runs where.
            with _caught(m):
                worker = stack.enter_context(_started(m.job, threads))
                ready = worker.answer()
                m.version, m.note = ready["version"], ready["note"]
                m.load_seconds, m.base_bytes = ready["load_seconds"], ready["base_bytes"]
                m.output = np.load(worker.output)
                workers.append((m, worker))
        for _ in range(rounds):
            for m, worker in workers:
                on_turn("timing", m.job)
                if not m.error:
                    with _caught(m):
                        turn = worker.ask(seconds)
                        m.seconds.append(turn["seconds"])
                        m.runs += turn["runs"]
                        m.peak_bytes = turn["peak_bytes"]
    return measurements


class _WorkerError(Exception):
    """A worker ended before its time."""


@contextlib.contextmanager
def _caught(measurement: Measurement) -> Iterator[None]:
    try:
        yield
    except _WorkerError as error:
        measurement.error = str(error)


@contextlib.contextmanager
def _started(job: Job, threads: int) -> Iterator[_Worker]:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile("w+") as errors:
        output = Path(folder) / "output.npy"
        process = subprocess.Popen(
            [*job.engine.command, str(job.model), str(job.inputs), str(output), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            bufsize=1,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )
        with process:
            try:
                yield _Worker(process, errors, output)
            finally:
                process.kill()
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()


class _Worker:
    """A running worker; `fggp.lab.bench.worker` has the protocol."""

    def __init__(self, process: subprocess.Popen[str], errors: IO[str], output: Path) -> None:
        self.process, self.errors, self.output = process, errors, output

    def ask(self, seconds: float) -> Json:
        """Give it a turn."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; `answer` finds out why
            self.process.stdin.write(f"{seconds}\n")
        return self.answer()

    def answer(self) -> Json:
        """Return its next answer.

        Raises:
            _WorkerError: there is none, because it has ended; the message is its last line on standard error.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        code = self.process.wait()
        self.errors.seek(0)
        last = [line.strip() for line in self.errors if line.strip()][-1:]
        raise _WorkerError(last[0] if last else f"ended with exit code {code}")
