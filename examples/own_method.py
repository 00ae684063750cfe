"""Write a pruning method in a few lines and compare it with FGGP.

A method is a chain of Top-K steps. Each step picks the weights with the lowest scores among those that the step before
it picked. The weights that the last step picks are pruned. docs/methods.md has more: regrowth, running averages, use
from the command line.

    python examples/own_method.py
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from torch import nn

import fggp
from fggp.methods import candidates
from fggp.scores import Score, gradient

# A score gives each weight θ with gradient g one number. The weights with the lowest scores are pruned.
weight_times_root_gradient = Score(
    "|θ|·√|g|", lambda block: block.weight.abs() * block.grad.abs().sqrt(), needs_gradient=True
)


@dataclass(frozen=True)
class GradientThenProduct(fggp.Method):
    """FGGP whose second step ranks by |θ|·√|g| instead of |θ|."""

    name = "gradient-then-product"
    rate: float = 0.5

    def chain(self, now: fggp.Update) -> Sequence[fggp.TopK]:
        """Pick the half of the active weights with the smallest gradients, then prune among those.

        ``now.excess`` is the number of weights that the schedule prunes now. ``candidates`` is the rate's share of the
        active weights, but at least this number.
        """
        return [fggp.TopK(gradient, candidates(self.rate, now)), fggp.TopK(weight_times_root_gradient, now.excess)]


digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32).flatten(1) / 16
classes = torch.tensor(digits.target)


def train(method: fggp.Method, seed: int) -> tuple[float, float]:
    """Train a network on 1,400 digits, pruned to 97 %; return its test accuracy and its sparsity."""
    torch.manual_seed(seed)
    order = torch.randperm(len(images))
    training, test = order[:1400], order[1400:]
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pruner = fggp.Pruner(model, optimizer, sparsity=0.97, begin=20, end=200, every=10, method=method)
    for _ in range(300):
        batch = training[torch.randint(len(training), (64,))]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[batch]), classes[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (model(images[test]).argmax(1) == classes[test]).float().mean().item()
    return accuracy, pruner.sparsity


print("test accuracy for seeds 0, 1 and 2 (too few images and seeds to say which method is better)")
for method in (fggp.FGGP(), GradientThenProduct()):
    results = [train(method, seed) for seed in range(3)]
    accuracies = ", ".join(f"{accuracy:.1%}" for accuracy, _ in results)
    print(f"{method.name}: {accuracies}; {results[0][1]:.2%} of the weights are zero")
