"""Prune a PyTorch network while it trains: fixed-rate gradient-first gradual pruning and its comparators."""

from fggp import methods, schedule, scores
from fggp.methods import (
    FGGP,
    GMP,
    SET,
    SNIP,
    GradientFirstAnnealed,
    GradientOnly,
    GraNet,
    GraSP,
    MagnitudeFirst,
    MagnitudeFirstAnnealed,
    Method,
    OneShot,
    Random,
    RigL,
    StaticERK,
    SynFlow,
    Taylor,
    Update,
)
from fggp.pruner import Pruner
from fggp.schedule import Schedule, cubic, linear
from fggp.scores import Score
from fggp.selection.chains import Exchange, TopK
from fggp.ship.file.load import load
from fggp.ship.file.save import save
from fggp.ship.runtime.compiled import Compiled, compile
from fggp.weights.averages import Average
from fggp.weights.granularity import NM, Blocks, Rows

__version__ = "0.1.0"

__all__ = [
    "FGGP",
    "GMP",
    "NM",
    "SET",
    "SNIP",
    "Average",
    "Blocks",
    "Compiled",
    "Exchange",
    "GraNet",
    "GraSP",
    "GradientFirstAnnealed",
    "GradientOnly",
    "MagnitudeFirst",
    "MagnitudeFirstAnnealed",
    "Method",
    "OneShot",
    "Pruner",
    "Random",
    "RigL",
    "Rows",
    "Schedule",
    "Score",
    "StaticERK",
    "SynFlow",
    "Taylor",
    "TopK",
    "Update",
    "compile",
    "cubic",
    "linear",
    "load",
    "methods",
    "save",
    "schedule",
    "scores",
]
