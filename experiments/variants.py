"""Is there something better than FGGP? Variants of it, each for one weakness of its scores.

FGGP spares weights by the size of one mini-batch's gradient. That is noise for most weights, and gradients of
different layers differ in scale. To run one: fggp train --method experiments/variants.py:RunningGradient …
"""

from dataclasses import dataclass

from fggp import FGGP, Average, GradientFirstAnnealed, GraNet, Method
from fggp.methods import candidates
from fggp.scores import Score, gradient, magnitude, random
from fggp.selection.chains import TopK

# Masks are updated every 13 steps in the studies' short runs; a decay of 0.9 averages over about 10 steps.
SIZE = Average("|g|", lambda g: g.abs(), decay=0.9)
MEAN = Average("g", lambda g: g, decay=0.9)
SQUARE = Average("g²", lambda g: g.square(), decay=0.99)

running_size = Score("running |g|", lambda block: block.average("|g|"), ties=magnitude)
running_mean = Score("|running g|", lambda block: block.average("g").abs(), ties=magnitude)
# Where Adam would go: far where gradients agree from step to step, however small they are.
adam_step = Score(
    "Adam's step", lambda block: block.average("g").abs() / (block.average("g²").sqrt() + 1e-12), ties=magnitude
)
# How fast the magnitude grows by gradient descent, which moves θ along −g (Sanh et al. 2020, arXiv 2005.07683).
growth = Score("growth", lambda block: -block.weight * block.average("g"), ties=magnitude)
# What the loss would change by, to second order, without the weight: a diagonal Fisher matrix is the curvature (Theis
# et al. 2018, arXiv 1801.05787). A layer's scale, that batch norm makes arbitrary, cancels.
fisher = Score("Fisher", lambda block: block.weight.abs() * block.average("g²").sqrt(), ties=magnitude)


def _of_its_layer(block):
    """|g| over its root mean square in the layer: a layer's scale, that batch norm makes arbitrary, cancels."""
    scale = block.layer.grad.float().square().mean().sqrt()
    return block.grad.abs() / (scale + 1e-30)


relative_size = Score("|g| over its layer's", _of_its_layer, needs_gradient=True, ties=magnitude)


@dataclass(frozen=True)
class RunningGradient(FGGP):
    """FGGP by |g| averaged over the latest steps."""

    name = "running-gradient"

    def averages(self):
        return [SIZE]

    def chain(self, now):
        return [TopK(running_size, candidates(self.rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class MeanGradient(FGGP):
    """FGGP by the size of g averaged over the latest steps: gradients that change sign cancel."""

    name = "mean-gradient"

    def averages(self):
        return [MEAN]

    def chain(self, now):
        return [TopK(running_mean, candidates(self.rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class AdamStep(FGGP):
    """FGGP by the step that Adam would make: the mean gradient in units of its own noise."""

    name = "adam-step"

    def averages(self):
        return [MEAN, SQUARE]

    def chain(self, now):
        return [TopK(adam_step, candidates(self.rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class AnnealedUp(GradientFirstAnnealed):
    """FGGP whose rate rises around its 0.5: gradients decide early, when they are large, and magnitudes late."""

    name = "annealed-up"
    start: float = 0.25
    end: float = 0.75


@dataclass(frozen=True)
class LayerScaled(FGGP):
    """FGGP by |g| relative to its layer's root mean square."""

    name = "layer-scaled"

    def chain(self, now):
        return [TopK(relative_size, candidates(self.rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class GrowthFirst(FGGP):
    """The first step spares weights that grow: what is small may be on its way."""

    name = "growth-first"

    def averages(self):
        return [MEAN]

    def chain(self, now):
        return [TopK(growth, candidates(self.rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class FisherSecond(FGGP):
    """FGGP whose second step ranks by the estimated change of the loss, not by the magnitude."""

    name = "fisher-second"

    def averages(self):
        return [SQUARE]

    def chain(self, now):
        return [TopK(gradient, candidates(self.rate, now)), TopK(fisher, now.excess)]


@dataclass(frozen=True)
class FisherOnly(Method):
    """One step, by what the loss would lose: both of FGGP's scores in one."""

    name = "fisher-only"

    def averages(self):
        return [SQUARE]

    def chain(self, now):
        return [TopK(fisher, now.excess)]


@dataclass(frozen=True)
class RandomFirst(FGGP):
    """The control: the first step spares weights at random. What FGGP has beyond this is owed to gradients."""

    name = "random-first"

    def chain(self, now):
        return [TopK(random(now.seed, now.step), candidates(self.rate, now)), TopK(magnitude, now.excess)]


@dataclass(frozen=True)
class FGGPRegrown(GraNet):
    """FGGP's chain, then GraNet's exchange of weights until the end of training."""

    name = "fggp-regrown"

    def chain(self, now):
        return FGGP().chain(now)
