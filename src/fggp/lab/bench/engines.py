"""The engines that can run a network, each in a process of its own, and their times, taken in turns.

Processes keep engines apart: an engine's threads spin for a while after a run and would take the processor from the
next engine. Turns keep times comparable: if the machine has other work, all engines share its effect.
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

from fggp import native
from fggp.lab.base import Json
from fggp.lab.base.errors import UsageError
from fggp.lab.base.options import require
from fggp.native import KernelsMissingError

ON_REQUEST = ("torch.compile", "openvino-int8", "fggp-runtime", "fggp-int8")
"""Engines that are not measured by default.

torch.compile needs a C++ compiler and a minute or more for a network; int8 changes the network's outputs; fggp-runtime
runs as fggp.compile does, and differs in what it takes to load.
"""
DISTURBED = 1.3
"""A round is disturbed by other work if a turn in it took this many times its engine's shortest one."""
ROUNDS_MOST = 3
"""Disturbed rounds are repeated, until there are this many times the rounds that were asked for."""
INEXACT = ("openvino-int8", "fggp-int8")
"""Engines whose outputs differ from PyTorch's by more than rounding, by design."""


@dataclass(frozen=True)
class Engine:
    """Something that runs networks.

    Attributes:
        name: in records.
        label: in tables.
        file: the kind of file that it reads: "torch", a pickled module, "onnx", or "network", a network file.
        command: starts its worker; the worker's last four arguments are added (`fggp.lab.bench.worker`).
        missing: why it cannot be used on this machine, and what would help; empty where it can.
    """

    name: str
    label: str
    file: str
    command: tuple[str, ...]
    missing: str = ""


def engines() -> dict[str, Engine]:
    """Return the engines by name, including those that are not installed."""
    known = (
        ("pytorch", "PyTorch", "torch", ()),
        ("torch.compile", "torch.compile", "torch", ()),
        ("onnxruntime", "ONNX Runtime", "onnx", ("onnx", "onnxscript", "onnxruntime")),
        ("openvino", "OpenVINO", "onnx", ("onnx", "onnxscript", "openvino")),
        ("openvino-int8", "OpenVINO int8", "onnx", ("onnx", "onnxscript", "openvino", "nncf")),
        ("fggp", "fggp.compile", "torch", ()),
        ("fggp-runtime", "fggp-runtime", "network", ("fggp_runtime",)),
        ("fggp-int8", "fggp int8", "torch", ()),
    )
    worker = str(Path(__file__).with_name("worker.py"))
    return {
        name: Engine(name, label, file, (sys.executable, worker, name), _missing(name, packages))
        for name, label, file, packages in known
    }


def choose(names: Sequence[str] | None) -> list[Engine]:
    """Return the engines of these names; by default all that can be used, without those of `ON_REQUEST`.

    Raises:
        UsageError: one that was asked for is unknown or not installed.
    """
    known = engines()
    if names is None:
        return [engine for name, engine in known.items() if not engine.missing and name not in ON_REQUEST]
    for name in names:
        require("engines", name, name in known, f"of {', '.join(known)}")
        if known[name].missing:
            raise UsageError(f"engines has {name!r}, which cannot be used: {known[name].missing}")
    return [known[name] for name in dict.fromkeys(names)]


def _missing(name: str, packages: Sequence[str]) -> str:
    absent = [package for package in packages if importlib.util.find_spec(package) is None]
    if absent == ["fggp_runtime"]:
        return "fggp-runtime not installed: pip install ./runtime in a clone of fggp"
    if absent:
        return f"{', '.join(absent)} not installed: pip install {' '.join(absent)}"
    if name.startswith("fggp"):
        try:
            native.load()
        except KernelsMissingError as error:
            return str(error)
    return ""


@dataclass(frozen=True)
class Job:
    """A network on an engine, for one batch size.

    Attributes:
        engine: runs it.
        model: the network's file, of the kind that the engine reads.
        inputs: .npz file of its arguments in order, by their names in the ONNX file; their dimension 0 is the batch.
    """

    engine: Engine
    model: Path
    inputs: Path


@dataclass
class Measurement:
    """The result of a job.

    Attributes:
        job: the job.
        seconds: of one run on the batch; the median of each turn.
        runs: number of timed runs, in all turns.
        left_out: number of turns that were repeated because other work had disturbed their round.
        version: of the engine.
        load_seconds: from opening the file to the first output.
        base_bytes: resident memory after the engine is imported, before it loads; None where the system does not tell.
        peak_bytes: highest resident memory of the process.
        note: the engine's remark on how the network runs.
        output: the network's first output; None after an error.
        error: why there are no times; empty where there are.
    """

    job: Job
    seconds: list[float] = field(default_factory=list)
    runs: int = 0
    left_out: int = 0
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
    """Load every job in a process of its own, then time the jobs in turns.

    All processes are in memory at once and sleep between their turns. If a job fails, the others continue. Rounds that
    other work on the machine disturbs are repeated, up to a limit; the least disturbed ones count, for all jobs alike.

    Args:
        jobs: to time.
        threads: of each.
        rounds: number of turns of each that count.
        seconds: of one turn; a network that takes longer runs once.
        on_turn: called before each load ("loading"), each turn ("timing"), and each further one ("timing again").

    Returns:
        A measurement for each job, in their order.
    """
    measurements = [Measurement(job) for job in jobs]
    with contextlib.ExitStack() as stack:
        workers: list[tuple[Measurement, _Worker]] = []
        for m in measurements:
            on_turn("loading", m.job)
            # One after the other, because fggp.compile chooses kernels by timing them.
            with _errors_kept(m):
                worker = stack.enter_context(_started(m.job, threads))
                ready = worker.answer()
                m.version, m.note = ready["version"], ready["note"]
                m.load_seconds, m.base_bytes = ready["load_seconds"], ready["base_bytes"]
                m.output = np.load(worker.output)
                workers.append((m, worker))
        for number in range(ROUNDS_MOST * rounds):
            turns = [m.seconds for m in measurements if not m.error]
            if number >= rounds and sum(x < DISTURBED for x in disturbances(turns)) >= rounds:
                break
            for m, worker in workers:
                on_turn("timing" if number < rounds else "timing again", m.job)
                if not m.error:
                    with _errors_kept(m):
                        turn = worker.ask(seconds)
                        m.seconds.append(turn["seconds"])
                        m.runs += turn["runs"]
                        m.peak_bytes = turn["peak_bytes"]
    _keep_calmest(measurements, rounds)
    return measurements


def disturbances(turns: Sequence[Sequence[float]]) -> list[float]:
    """Say how much other work disturbed each round.

    Args:
        turns: seconds of each engine, round by round.

    Returns:
        For each round, the largest ratio of an engine's turn to that engine's shortest one.
    """
    ratios = [[turn / min(of_engine) for turn in of_engine] for of_engine in turns]
    return [max(of_round) for of_round in zip(*ratios, strict=True)]


def _keep_calmest(measurements: Sequence[Measurement], rounds: int) -> None:
    found = disturbances([m.seconds for m in measurements if not m.error])
    calmest = sorted(sorted(range(len(found)), key=found.__getitem__)[:rounds])
    for m in measurements:
        if not m.error:
            m.left_out = len(m.seconds) - len(calmest)
            m.seconds = [m.seconds[number] for number in calmest]


class _WorkerError(Exception):
    """A worker ended although more turns were to come."""


@contextlib.contextmanager
def _errors_kept(measurement: Measurement) -> Iterator[None]:
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
        """Give the worker a turn and return its answer."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the worker has ended; `answer` finds out why
            self.process.stdin.write(f"{seconds}\n")
        return self.answer()

    def answer(self) -> Json:
        """Return the worker's next answer.

        Raises:
            _WorkerError: the worker has ended; the message is its last line on standard error.
        """
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        code = self.process.wait()
        self.errors.seek(0)
        last = [line.strip() for line in self.errors if line.strip()][-1:]
        raise _WorkerError(last[0] if last else f"ended with exit code {code}")
