"""Pruning methods: each is a chain of Top-K steps that chooses the weights to prune at an update.

FGGP's paper (Zhu, Bezek & Goksel 2024, arXiv 2411.05500) describes gradual pruning methods as chains of Top-K steps.
Each step takes the quota of weights with the lowest scores among those that the step before it took. The weights that
the last step takes are pruned. A new method is one `chain`, a few lines::

    @dataclass(frozen=True)
    class SaliencyFirst(fggp.Method):
        name = "saliency-first"

        def chain(self, now):
            return [TopK(saliency, candidates(0.5, now)), TopK(magnitude, now.excess)]

Methods that also regrow weights add an `exchange`. Methods that act once, before training, are `OneShot`.
"""

import inspect

from fggp.methods.base import Method, Update, candidates, checked_chain, cosine
from fggp.methods.dynamic import SET, GraNet, RigL
from fggp.methods.gradual import (
    FGGP,
    GMP,
    GradientFirstAnnealed,
    GradientOnly,
    MagnitudeFirst,
    MagnitudeFirstAnnealed,
    Random,
    Taylor,
)
from fggp.methods.one_shot import SNIP, GraSP, OneShot, StaticERK, SynFlow

__all__ = [
    "FGGP",
    "GMP",
    "REGISTRY",
    "SET",
    "SNIP",
    "GraNet",
    "GraSP",
    "GradientFirstAnnealed",
    "GradientOnly",
    "MagnitudeFirst",
    "MagnitudeFirstAnnealed",
    "Method",
    "OneShot",
    "Random",
    "RigL",
    "StaticERK",
    "SynFlow",
    "Taylor",
    "Update",
    "candidates",
    "checked_chain",
    "cosine",
    "resolve",
]

REGISTRY: dict[str, type[Method] | type[OneShot]] = {
    m.name: m
    for m in (
        FGGP,
        GMP,
        GradientOnly,
        GradientFirstAnnealed,
        MagnitudeFirst,
        MagnitudeFirstAnnealed,
        Taylor,
        Random,
        GraNet,
        RigL,
        SET,
        SNIP,
        GraSP,
        SynFlow,
        StaticERK,
    )
}
"""The built-in methods by name."""


def resolve(method: Method | OneShot | str) -> Method | OneShot:
    """Turn the name of a built-in method into the method; check and return a method that is given as an object.

    Raises:
        ValueError: no built-in method has this name, or the one that has it needs arguments.
        TypeError: the object has no name.
    """
    if isinstance(method, (Method, OneShot)):
        if not isinstance(getattr(method, "name", None), str):
            raise TypeError(f"method={method!r} must have a name: set `name = ...` in its class")
        return method
    if not isinstance(method, str) or method not in REGISTRY:
        raise ValueError(f"method={method!r} must be a fggp.Method or one of {', '.join(map(repr, REGISTRY))}")
    kind = REGISTRY[method]
    parameters = inspect.signature(kind).parameters.values()
    needed = [p.name for p in parameters if p.default is p.empty]
    if needed:
        raise ValueError(f"method={method!r} needs {', '.join(needed)}: pass fggp.{kind.__name__}({needed[0]}=…, …)")
    return kind()
