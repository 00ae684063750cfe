"""What tests of the selection share: scores by name, the reference's result for a chain, a strategy for quotas."""

import torch
from hypothesis import strategies as st

import reference
from fggp.scores import gradient, magnitude, saliency

KEYS = {"magnitude": reference.by_magnitude, "gradient": reference.by_gradient}
SCORES = {"magnitude": magnitude, "gradient": gradient, "saliency": saliency}


def expected_marks(thetas, grads, masks, chain):
    """The weights that a chain, [(score name, quota)], keeps according to the reference; bool, in logical order."""
    weights = reference.weights_of(thetas, grads, masks)
    double = any(t.dtype == torch.float64 for t in thetas)
    for name, quota in chain:
        key = reference.by_saliency(double) if name == "saliency" else KEYS[name]
        weights = reference.smallest(weights, quota, key)
    marks = [torch.zeros(m.shape, dtype=torch.bool) for m in masks]
    for w in weights:
        marks[w.layer].view(-1)[w.position] = True
    return marks


def quotas(data, count, steps):
    """Quotas that never increase; 0 and the whole count are as likely as all numbers between."""
    found = []
    for _ in range(steps):
        count = data.draw(st.one_of(st.just(0), st.just(count), st.integers(0, count)))
        found.append(count)
    return found
