"""Prune a PyTorch network while it trains: fixed-rate gradient-first gradual pruning and its comparators."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from fggp.ship.onnx.imported import Imported, from_onnx
    from fggp.ship.quantize.aware import QuantizationAware, quantization_aware
    from fggp.ship.quantize.network import Quantized, quantize
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
    "Imported",
    "MagnitudeFirst",
    "MagnitudeFirstAnnealed",
    "Method",
    "OneShot",
    "Pruner",
    "QuantizationAware",
    "Quantized",
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
    "from_onnx",
    "linear",
    "load",
    "methods",
    "quantization_aware",
    "quantize",
    "save",
    "schedule",
    "scores",
]

# The module that defines each name. It is imported when the name is first used: training does not wait for what
# compiles networks, nor `fggp --help` for PyTorch.
_NAMES_OF = {
    "fggp.methods": "FGGP GMP GraNet GraSP GradientFirstAnnealed GradientOnly MagnitudeFirst MagnitudeFirstAnnealed "
    "Method OneShot Random RigL SET SNIP StaticERK SynFlow Taylor Update",
    "fggp.pruner": "Pruner",
    "fggp.schedule": "Schedule cubic linear",
    "fggp.scores": "Score",
    "fggp.selection.chains": "Exchange TopK",
    "fggp.ship.file.load": "load",
    "fggp.ship.file.save": "save",
    "fggp.ship.onnx.imported": "Imported from_onnx",
    "fggp.ship.quantize.aware": "QuantizationAware quantization_aware",
    "fggp.ship.quantize.network": "Quantized quantize",
    "fggp.ship.runtime.compiled": "Compiled compile",
    "fggp.weights.averages": "Average",
    "fggp.weights.granularity": "Blocks NM Rows",
}
_MODULE_OF = {name: module for module, names in _NAMES_OF.items() for name in names.split()}

if not TYPE_CHECKING:  # to type checkers it would look as if fggp had every name

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            value = getattr(import_module(_MODULE_OF[name]), name)
        elif name in __all__:
            value = import_module(f"fggp.{name}")
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
