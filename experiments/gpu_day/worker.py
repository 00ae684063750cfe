"""A process that trains: it is given jobs and answers them, a line of JSON each. `Worker` is the other end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from day import ROOT, Day, planned


class Worker:
    """A process of its own, and after an error a new one: nothing works in a process that had a CUDA error."""

    def __init__(self, day: Day) -> None:
        self.day = day
        self._start()

    def _start(self) -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(self.day.command("worker.py"), cwd=ROOT, text=True, **pipes)

    def give(self, do: str, **job: Any) -> None:
        """Give it a job: a method of `Trainee` and its arguments."""
        with suppress(BrokenPipeError):  # `answer` reports it
            print(json.dumps({"do": do, **job}), file=self.process.stdin, flush=True)

    def answer(self) -> dict[str, Any]:
        """Wait for the answer to the job; an error is the answer {"error": text}."""
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process ended with {self.process.wait()}"}
        if "error" in answer:
            self.close()
            self._start()
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


class Trainee:
    """What the process does."""

    def __init__(self, day: Day) -> None:
        import images

        self.day = day
        self.data = images.load(Path(day.packed) / "images.pt", planned(day, 1)[0])

    def warm_up(self, step: str) -> dict[str, Any]:
        """Train FGGP for an epoch, with eager or captured steps."""
        from fggp.lab.training.step import EagerStep
        from fggp.lab.training.trainer import Trainer

        self.trainer = Trainer(planned(self.day, 160)[0], self.data)
        if step == "eager":
            self.trainer.compute = EagerStep(self.trainer.model, self.trainer.loss_and_hits)
        self.trainer.train_epoch(0, lambda tally: None)
        return {}

    def train_for(self, seconds: float) -> dict[str, Any]:
        """Train on for some seconds and return the images a second."""
        start, epochs = time.perf_counter(), 0
        while (passed := time.perf_counter() - start) < seconds:
            epochs += 1
            self.trainer.train_epoch(epochs, lambda tally: None)
        return {"images/s": round(epochs * len(self.data.train) / passed), "step": self.trainer.compute.name}

    def train(self, run: int, epochs: int, name: str) -> dict[str, Any]:
        """Train a run of the study; return its record, or how far it came in time."""
        from fggp.lab.training.record import epoch_line, make_record
        from fggp.lab.training.trainer import Trainer

        start, longest, lines = time.time(), 0.0, []
        trainer = Trainer(planned(self.day, epochs)[run], self.data)
        for epoch in range(epochs):
            begun = time.time()
            if begun + longest > self.day.until:
                return {"epochs": epoch}
            lines.append(epoch_line(trainer, epoch, trainer.train_epoch(epoch, lambda tally: None)))
            longest = max(longest, time.time() - begun)
        return {"record": {**make_record(name, trainer, lines, time.time() - start), "commit": self.day.commit}}


def main() -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    trainee = None
    for line in sys.stdin:
        job = json.loads(line)
        try:
            trainee = trainee or Trainee(Day.given())
            answer = getattr(trainee, job.pop("do"))(**job)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)
        if "error" in answer:
            return


if __name__ == "__main__":
    main()
