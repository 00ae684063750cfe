"""The second part: the time of a mask update, and images a second of one job and of several side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from check import pruned_network
from day import Day
from worker import Worker

JOBS = (1, 2, 5)
"""Runs at once. The first ten runs of the study are one round of ten, or rounds of two or five."""


def update_times(day: Day) -> dict[str, Any]:
    """Return the milliseconds of a step with a mask update, without, and of a dense network; and of torch.topk."""
    model, optimizer, pruner = pruned_network(day, day.device)
    weights = [parameter for name, parameter in model.named_parameters() if name in pruner.masks]
    joined = torch.cat([weight.detach().abs().flatten() for weight in weights])
    found: dict[str, Any] = {"weights": len(joined)}
    if day.device == "cuda":
        optimizer.step()  # allocates the momenta
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        optimizer.step()
        found["bytes a weight"] = round((torch.cuda.max_memory_allocated() - before) / len(joined), 2)
    found["step with an update"] = milliseconds(day, optimizer.step, 15)
    while pruner.step < 20:
        optimizer.step()
    found["step without one"] = milliseconds(day, optimizer.step, 15)
    found["update"] = round(found["step with an update"] - found["step without one"], 4)
    found["torch.topk of joined |w|"] = milliseconds(
        day, lambda: torch.topk(joined, len(joined) // 2, largest=False), 9
    )
    pruner.remove()
    return {**found, "step, dense": milliseconds(day, optimizer.step, 15)}


def milliseconds(day: Day, action: Callable[[], Any], rounds: int) -> float:
    """Return the median time until the device has done an action, after three to warm up."""
    synchronize = (lambda: None) if day.rehearse else torch.cuda.synchronize
    durations = []
    for _ in range(3 + rounds):
        synchronize()
        start = time.perf_counter()
        action()
        synchronize()
        durations.append(1000 * (time.perf_counter() - start))
    return round(statistics.median(durations[3:]), 4)


def ask(workers: list[Worker], do: str, **job: Any) -> list[dict[str, Any]]:
    """Give all workers a job and return their answers."""
    for worker in workers:
        worker.give(do, **job)
    answers = [worker.answer() for worker in workers]
    for answer in answers:
        if "error" in answer:
            raise RuntimeError(answer["error"])
    return answers


def train(day: Day, workers: list[Worker], step: str) -> dict[str, Any]:
    """Return the images a second of workers that train FGGP at the same time."""
    ask(workers, "warm_up", step=step)
    each = ask(workers, "train_for", seconds=0.1 if day.rehearse else 5)
    return {"jobs": len(workers), "images/s": sum(answer["images/s"] for answer in each), "each": each}


def main() -> None:
    day = Day.given()
    workers = [Worker(day) for _ in range(2 if day.rehearse else max(JOBS))]
    try:
        day.measure("speed", "start", lambda: ask(workers, "warm_up", step="captured"))
        day.measure("speed", "milliseconds", lambda: update_times(day))
        for jobs in JOBS:
            if jobs <= len(workers):
                day.measure("speed", "captured", lambda n=jobs: train(day, workers[:n], "captured"))
        day.measure("speed", "eager", lambda: train(day, workers[:1], "eager"))
    finally:
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    main()
