"""Whether a pruner's model is as it should be: what is found, and what is said about it, once.

Nothing here changes weights or masks. Looking is cheap at a step (each weight's version counter), and thorough at an
update, when the user asks (`Pruner.check`), and where a model is saved or compiled (`fggp.registry`).
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from fggp.caller import warn_caller
from fggp.masks.masks import Masks
from fggp.model.copies import parameters_like
from fggp.model.coverage import Coverage
from fggp.model.detached import find_detached
from fggp.registry import Record, filled_again
from fggp.text import listing
from fggp.weights.gradients import LastGradients
from fggp.weights.optimizers import Optimizers

STRANGE_ZEROS = 0.05
"""A network that starts has fewer zeros than this share of its weights, whole tensors of zeros not counted."""

UPDATES_WITHOUT_GRADIENT = 3
"""After this many updates in a row without any gradient, a weight is named."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Args:
        kind: ``"coverage"``, ``"unfinished"``, ``"never-stepped"``, ``"other-optimizer"``, ``"revived"``,
            ``"strange-zeros"``, ``"no-gradient"``, ``"dead-layer"``, ``"uncovered"``, ``"detached"`` or ``"copy"``.
        message: what it is, with its numbers, and what to do.
        weights: the names of the weights that it is about, if it is about some.
    """

    kind: str
    message: str
    weights: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


class Health:
    """What a pruner knows about its own state.

    Args:
        record: the pruner's record, which outlives it.
    """

    def __init__(self, record: Record) -> None:
        self.record = record
        self._told: set[tuple[str, str]] = set()
        self._versions: dict[int, int] = {}
        self._trainable: set[int] = set()
        self._copies: list[weakref.ref[nn.Module]] = []

    # At steps and updates

    def note_written(self, masks: Masks) -> None:
        """Remember the weights as they are now: whoever changes them before the next step is not the optimizer."""
        self._versions = {i: w.parameter._version for i, w in enumerate(masks.weights)}

    def check_unchanged(self, masks: Masks) -> None:
        """Refuse to go on from weights that somebody filled again since the last step.

        Raises:
            RuntimeError: some pruned weights are not zero.
        """
        if masks.active == masks.total or not self._versions:
            return
        changed = [i for i, w in enumerate(masks.weights) if w.parameter._version != self._versions.get(i)]
        if changed and (filled := masks.revived(changed)):
            raise RuntimeError(filled_again(filled))

    def note_trainable(self, optimizers: Optimizers) -> None:
        """Remember what the optimizers train when the pruner takes its weights from them."""
        self._trainable = _trainable(optimizers)

    def has_new_trainable(self, optimizers: Optimizers) -> bool:
        """Whether the optimizers train parameters now that they did not train then."""
        return not _trainable(optimizers) <= self._trainable

    def told(self, kind: str) -> set[str]:
        """The names of the weights that a kind of finding was told about."""
        return {name for known, name in self._told if known == kind}

    def tell(self, findings: Iterable[Finding]) -> None:
        """Warn of findings, once of each kind for each weight."""
        for finding in findings:
            about = {(finding.kind, name) for name in finding.weights or ("",)}
            if not about <= self._told:
                self._told |= about
                warn_caller(finding.message, RuntimeWarning)

    # Copies of the model

    def follow(self, copy: nn.Module) -> None:
        """Keep a copy of the model in mind, weakly."""
        if all(known() is not copy for known in self._copies):
            self._copies.append(weakref.ref(copy))

    @property
    def copies(self) -> list[nn.Module]:
        """The copies that are alive."""
        alive = [(ref, copy) for ref in self._copies if (copy := ref()) is not None]
        self._copies = [ref for ref, _ in alive]
        return [copy for _, copy in alive]

    # Findings

    def zero_copies(self, masks: Masks) -> None:
        """Zero the pruned weights of the copies. One that is no copy any more is let go, with a warning."""
        for copy in self.copies:
            try:
                parameters = parameters_like(copy, masks.weights)
            except ValueError as error:
                self._copies = [ref for ref in self._copies if ref() is not copy]
                message = f"{error}; it is not followed any more"
                warn_caller(message, RuntimeWarning)
            else:
                masks.apply_to(parameters)

    def of_copies(self, masks: Masks) -> list[Finding]:
        """Copies of the model whose pruned weights are not zero, or that are none any more."""
        found = []
        for copy in self.copies:
            try:
                filled = masks.revived_in(parameters_like(copy, masks.weights))
            except ValueError as error:
                found.append(Finding("copy", str(error)))
                continue
            if filled:
                names = tuple(filled)
                count = sum(filled.values())
                message = (
                    f"the copy {type(copy).__name__} has {count:,} non-zero weights, in {listing(names)}, that are "
                    f"pruned in the model: call pruner.follow(copy) to zero them again"
                )
                found.append(Finding("copy", message, names))
        return found

    def of_training(self) -> list[Finding]:
        """How far training got, and who else trains the weights."""
        found = []
        shortfall = self.record.shortfall()
        if shortfall is not None:
            found.append(Finding("unfinished" if self.record.step else "never-stepped", shortfall))
        if self.record.others:
            message = (
                f"{', '.join(sorted(set(self.record.others)))} changed pruned weights without the pruner: call "
                f"pruner.attach(optimizer)"
            )
            found.append(Finding("other-optimizer", message))
        return found


def of_coverage(coverage: Coverage, include: object, exclude: object) -> list[Finding]:
    """That most of the model is not pruned, unless the user chose the weights."""
    warning = coverage.warning() if include is None and exclude is None else None
    return [] if warning is None else [Finding("coverage", warning)]


def of_strange_zeros(masks: Masks) -> list[Finding]:
    """Many zeros that the masks do not know, at the first step: the state of an earlier pruner was not loaded."""
    zeros, size = masks.zeros_among_active()
    if size == 0 or zeros < STRANGE_ZEROS * size:
        return []
    message = (
        f"{zeros / size:.1%} of the weights that this Pruner keeps are zero already, and training fills them again. If "
        f"an earlier Pruner pruned them, load its state (pruner.load_state_dict), or make this one with init='keep'"
    )
    return [Finding("strange-zeros", message)]


def of_weights(masks: Masks) -> list[Finding]:
    """Pruned weights that are not zero."""
    filled = masks.revived()
    return [Finding("revived", filled_again(filled), tuple(filled))] if filled else []


def of_layers(masks: Masks, besides: Collection[str] = ()) -> list[Finding]:
    """Layers without any weight left, besides some that are known."""
    pairs = zip(masks.weights, masks.counts, strict=True)
    dead = tuple(w.name for w, kept in pairs if not kept and w.name not in besides)
    if not dead:
        return []
    message = (
        f"no weight is left in {listing(dead)}: nothing passes through such a layer. Keep some in each layer "
        f"(floor=1, or a share such as floor=0.005), or prune less"
    )
    return [Finding("dead-layer", message, dead)]


def of_gradients(gradients: LastGradients, besides: Collection[str] = ()) -> list[Finding]:
    """Weights that have had no gradient for several updates, besides some that are known."""
    names = tuple(name for name in gradients.without(UPDATES_WITHOUT_GRADIENT) if name not in besides)
    if not names:
        return []
    message = (
        f"{listing(names)} had no gradient in {UPDATES_WITHOUT_GRADIENT} updates in a row: they are ranked by their "
        f"last gradient, or by magnitude if there never was one. If nothing trains them, leave them out with exclude="
    )
    return [Finding("no-gradient", message, names)]


def of_model(masks: Masks, model: nn.Module, uncovered: Sequence[str]) -> list[Finding]:
    """Weights that left the model, and weights that could be pruned but are not.

    Args:
        masks: the masks.
        model: the model.
        uncovered: the names of the latter.
    """
    found = []
    detached = tuple(find_detached(masks.weights, model))
    if detached:
        message = (
            f"the module of {listing(detached)} is no longer part of the model: make a new Pruner with init='keep'"
        )
        found.append(Finding("detached", message, detached))
    replaced = tuple(w.name for w in masks.weights if w.name not in detached and w.current() is not w.parameter)
    if replaced:
        message = (
            f"{listing(replaced)} was replaced in the model by another parameter, which is not pruned: make an "
            f"optimizer that holds it, and call pruner.attach(optimizer)"
        )
        found.append(Finding("detached", message, replaced))
    if uncovered:
        message = (
            f"{listing(uncovered)} became trainable after the Pruner was made, and is not pruned: call "
            f"pruner.attach(optimizer) to take it in, or leave it out with exclude="
        )
        found.append(Finding("uncovered", message, tuple(uncovered)))
    return found


def _trainable(optimizers: Optimizers) -> set[int]:
    parameters: Iterable[Tensor] = (p for o in optimizers.all for g in o.param_groups for p in g["params"])
    return {id(p) for p in parameters if p.requires_grad and p.ndim > 1}
