"""Scores: what weights are ranked by.

A score maps a block of weights to one value each. The weights with the lowest values are pruned first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

from torch import Tensor

from fggp.weights.layers import Block


@dataclass(frozen=True)
class Score:
    """An importance score: how much a weight matters, from the weight, its gradient and its position alone.

    Args:
        name: its name in tables and messages.
        of: maps a `Block` of k weights to a tensor [k] of reals or ints, computed elementwise: a block may be any
            part of a layer. NaN ranks above everything and is never selected.
        needs_gradient: whether ``of`` reads `Block.grad`.
        ties: the score that ranks weights whose scores are equal. Weights that are equal in all tie-breakers are
            ranked by position (parameter order, then flat index).
        positional: whether ``of`` reads nothing but positions and the layer's name, as random numbers do. A group of
            weights (`fggp.Blocks`, `fggp.Rows`) then has the score of its own position. Otherwise it has the mean of
            its weights' scores.
    """

    name: str
    of: Callable[[Block], Tensor]
    needs_gradient: bool = False
    ties: Score | None = None
    positional: bool = False

    @property
    def formula(self) -> Formula | None:
        """What ``of`` computes, if the C++ kernels can compute it too; otherwise None."""
        return self.of if type(self.of) is Formula else None


class Quantity(Enum):
    """The quantity whose absolute value is a score."""

    WEIGHT = "θ"
    GRADIENT = "g"
    PRODUCT = "θ·g"


@dataclass(frozen=True)
class Formula:
    """A score's ``of`` that the C++ kernels can compute too, with the same floats as a call.

    It is the function itself and not a separate field, so a score with another ``of`` cannot keep it by mistake.

    Args:
        quantity: its absolute value is the score.
        negated: whether the score is the negative of that.
    """

    quantity: Quantity
    negated: bool = False

    def __call__(self, block: Block) -> Tensor:
        """The scores of a block, [k]."""
        if self.quantity is Quantity.WEIGHT:
            value = block.weight.abs()
        elif self.quantity is Quantity.GRADIENT:
            value = block.grad.abs()
        else:
            value = (block.weight * block.grad).abs()
        return -value if self.negated else value


magnitude = Score("magnitude", Formula(Quantity.WEIGHT))
"""|θ|"""

# Exactly-zero gradients are common (dead units), so the tie-breaker decides about many weights.
gradient = Score("gradient", Formula(Quantity.GRADIENT), needs_gradient=True, ties=magnitude)
"""|g|, equal gradients by |θ|"""

saliency = Score("saliency", Formula(Quantity.PRODUCT), needs_gradient=True)
"""|θ·g|, the score of `fggp.methods.Taylor`

It is the first-order change of the loss when the weight is removed (Molchanov et al. 2017, arXiv 1611.06440).
"""


position = Score("position", lambda block: block.position, positional=True)
"""The flat index in the full weight: it ranks weights of a layer whose scores and tie-breakers are all equal."""


def largest(score: Score) -> Score:
    """The negated score, to select the weights with the largest values first.

    Its tie-breakers are negated too. Position still ranks in ascending order.
    """
    ties = None if score.ties is None else largest(score.ties)
    formula = score.formula
    of: Callable[[Block], Tensor] = (
        (lambda block: -score.of(block)) if formula is None else replace(formula, negated=not formula.negated)
    )
    return Score(f"largest {score.name}", of, score.needs_gradient, ties, score.positional)


def random(seed: int, step: int) -> Score:
    """A uniformly random score, a function of (seed, step, weight name, flat index) alone.

    It is the same on every device, process and sharding, and independent of the global generators.
    """
    return Score(
        "random", lambda block: splitmix64(block.position, _salt(seed, step, block.layer.name)), positional=True
    )


def _salt(seed: int, step: int, name: str) -> int:
    digest = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def splitmix64(index: Tensor, salt: int) -> Tensor:
    """A random int64 ≥ 0 for each index: SplitMix64's output function (Steele et al. 2014) of salt + index·γ."""
    x = index * _as_int64(0x9E3779B97F4A7C15) + salt
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        # torch shifts int64 arithmetically; the & turns that into a logical shift.
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _as_int64(factor)
    return x & 0x7FFF_FFFF_FFFF_FFFF


def _as_int64(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
