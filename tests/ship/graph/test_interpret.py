"""Running a graph with PyTorch: what is in memory meanwhile."""

import weakref

import torch
from torch import nn

from fggp.ship.graph.capture import capture
from fggp.ship.graph.interpret import run, steps
from fggp.ship.graph.simplify import simplify


def test_results_are_freed_when_nothing_is_left_that_reads_them():
    model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(6)))
    x = torch.ones(2, 3, 4, 4)
    graph = simplify(capture(model, (x,), {}))
    made = []
    with torch.no_grad():
        for _, y in steps(graph, [x]):
            made.append(weakref.ref(y))
            # The newest, the one that it was computed from, and the input, which is the caller's.
            assert sum(result() is not None for result in made) <= 3
    assert len(made) == 7
    assert torch.equal(y, run(graph, [x]))
