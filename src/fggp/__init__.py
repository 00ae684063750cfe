"""Prune a PyTorch network while it trains: fixed-rate gradient-first gradual pruning and its comparators."""

from fggp import methods, schedule, scores
from fggp.methods import (
    FGGP,
    GMP,
    GradientFirstAnnealed,
    GradientOnly,
    MagnitudeFirst,
    MagnitudeFirstAnnealed,
    Method,
    Random,
    Taylor,
    Update,
)
from fggp.pruner import Pruner
from fggp.schedule import Schedule, cubic, linear
from fggp.scores import Score
from fggp.select import TopK

__version__ = "0.1.0"

__all__ = [
    "FGGP",
    "GMP",
    "GradientFirstAnnealed",
    "GradientOnly",
    "MagnitudeFirst",
    "MagnitudeFirstAnnealed",
    "Method",
    "Pruner",
    "Random",
    "Schedule",
    "Score",
    "Taylor",
    "TopK",
    "Update",
    "cubic",
    "linear",
    "methods",
    "schedule",
    "scores",
]
