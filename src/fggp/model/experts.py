"""Weights that stack one matrix for each expert of a mixture of experts."""

from __future__ import annotations

import re

from torch import Tensor, nn

_EXPERTS = re.compile("expert|moe", re.IGNORECASE)
# Parameters beside the matrices: added, not multiplied with.
_NO_MATRIX = re.compile("bias|scale|norm|embed|pos|token|query", re.IGNORECASE)


def stacked_matrices(module: nn.Module, attribute: str, name: str, parameter: Tensor) -> int:
    """How many experts' matrices a parameter stacks along dimension 0; 0 if it is no such weight.

    It is one if it is held by the module itself (``nn.Parameter``, not a layer in it) and

    - it has three dimensions [n, a, b] with a, b ≥ 2, and the module says that these are experts: "expert" or "moe"
      is part of the name of its class or of the parameter's full name (``mlp.experts.gate_up_proj``); or one of its
      attributes with "expert" in its name is the number n. If there is only the word "moe", n must be 2 at least.
    - or it has two dimensions [n·a, b] with n, a, b ≥ 2, "expert" is in the name of the module's class, and one of the
      module's attributes with "expert" in its name is the number n (the Transformers library's DBRX).

    Names that say bias, scale, norm, position, embedding, token or query are none of these. Position embeddings
    [1, n, b], class tokens [1, 1, b] and weights of grouped or per-head projections (no word of experts) are left out.
    A router's weight [n, b] is one matrix, not n.

    Args:
        module: the module that holds the parameter.
        attribute: the parameter's name there.
        name: its full name in the model.
        parameter: the parameter.
    """
    shape = parameter.shape
    if len(shape) not in (2, 3) or min(shape[-2:]) < 2 or _NO_MATRIX.search(attribute):
        return 0
    # A subclass that fully_shard makes has its class's name in its own; a user's need not.
    kinds = " ".join(kind.__name__ for kind in type(module).__mro__ if kind.__module__ != "torch.nn.modules.module")
    counts = {n for key, n in vars(module).items() if "expert" in key.lower() and type(n) is int and n > 1}
    if len(shape) == 2:
        fitting = [n for n in counts if shape[0] % n == 0 and shape[0] > n]
        return fitting[0] if "expert" in kinds.lower() and len(fitting) == 1 else 0
    words = {word.lower() for word in _EXPERTS.findall(f"{kinds} {name}")}
    if shape[0] in counts or "expert" in words or ("moe" in words and shape[0] > 1):
        return shape[0]
    return 0
