"""The modules of a model and their plain names, without the prefixes that wrappers add."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_WRAPPED_CHILDREN = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules, each once, with the prefix of their parameters' plain names."""
    for prefix, lineage in lineages(model):
        yield prefix, lineage[-1]


def lineages(model: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
    """All modules, each once: the prefix of its parameters' plain names, and the modules from the model down to it."""

    def walk(prefix: str, lineage: tuple[nn.Module, ...]) -> Iterator[tuple[str, tuple[nn.Module, ...]]]:
        module = lineage[-1]
        if id(module) in seen:
            return
        seen.add(id(module))
        yield prefix, lineage
        for name, child in module._modules.items():
            if child is not None:
                yield from walk(prefix if is_wrapped(module, name) else f"{prefix}{name}.", (*lineage, child))

    seen: set[int] = set()
    yield from walk("", (model,))


def is_wrapped(module: nn.Module | None, child: str) -> bool:
    """Whether ``module`` wraps this child, whose name plain names then leave out.

    Args:
        module: None if only the child's name is known.
        child: the child's name in the module.
    """
    return child in _WRAPPED_CHILDREN or (child == "module" and isinstance(module, _WRAPPERS))
