"""Memory for all activations of one plan: the place of each buffer, and which buffers overwrite others."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from fggp.ship.runtime.instructions import Buffer, Step, Torch
from fggp.ship.runtime.kernels import CTensor
from fggp.ship.runtime.layout import ActivationLayout

CACHE_LINE = 64  # bytes
HUGE_PAGE = 2 << 20  # bytes


def last_uses(steps: Sequence[Step]) -> dict[Buffer, int]:
    """For each buffer, the index of the last step that reads or writes it."""
    last: dict[Buffer, int] = {}
    for i, step in enumerate(steps):
        last.update(dict.fromkeys(_buffers_of(step), i))
    return last


def overwritten_buffers(steps: Sequence[Step]) -> dict[Buffer, Buffer]:
    """For each buffer that is written in place, the buffer that it overwrites.

    Each buffer names a candidate in ``may_overwrite``. The candidate is overwritten if no later step reads it and
    this step reads it only once: in a chain, a second product could read it after the first one has written.
    """
    last = last_uses(steps)
    overwritten: dict[Buffer, Buffer] = {}
    seen: set[Buffer] = set()
    for i, step in enumerate(steps):
        used = _buffers_of(step)
        for buffer in used:
            source = buffer.may_overwrite
            if buffer in seen or source is None or source in overwritten.values():
                continue
            if last[source] == i and used.count(source) == 1:
                overwritten[buffer] = source
        seen.update(used)
    return overwritten


class Memory:
    """All activations of one plan in one block of memory, which is zero at first.

    A buffer goes into free memory, or it overwrites an input of the step that writes it (`overwritten_buffers`). Memory
    with padding is reused only by a buffer of the same layout: kernels write only pixels, so that the padding stays
    zero.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._offsets: dict[Buffer, int] = {}
        self._end = 0
        self._assign_offsets(steps)
        # Huge pages, because planes are so far apart that each would lie in small pages of its own.
        # Private, so that a forked process has its own copy.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._memory = mmap.mmap(-1, self._end + HUGE_PAGE, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        everything = torch.frombuffer(self._memory, dtype=torch.float32)
        skip = -everything.data_ptr() % HUGE_PAGE // 4
        self.floats = everything[skip:]

    def _assign_offsets(self, steps: Sequence[Step]) -> None:
        overwritten, last = overwritten_buffers(steps), last_uses(steps)
        reused = set(overwritten.values())
        free: dict[int, tuple[int, ActivationLayout | None]] = {}  # offset: bytes, and the layout if it has padding
        size: dict[Buffer, int] = {}
        for i, step in enumerate(steps):
            for buffer in _buffers_of(step):
                if buffer in self._offsets:
                    continue
                if buffer in overwritten:
                    source = overwritten[buffer]
                    self._offsets[buffer], size[buffer] = self._offsets[source], size[source]
                else:
                    self._offsets[buffer], size[buffer] = self._allocate(buffer.layout, free)
            for buffer in _buffers_of(step):
                if last[buffer] == i and buffer not in reused:
                    free[self._offsets[buffer]] = size[buffer], buffer.layout if buffer.layout.padded else None

    def _allocate(
        self, layout: ActivationLayout, free: dict[int, tuple[int, ActivationLayout | None]]
    ) -> tuple[int, int]:
        needed = -(-layout.floats * 4 // CACHE_LINE) * CACHE_LINE
        padded = layout if layout.padded else None
        fitting = [(size, offset) for offset, (size, other) in free.items() if other == padded and size >= needed]
        if fitting:
            size, offset = min(fitting)
            del free[offset]
            return offset, size
        offset, self._end = self._end, self._end + needed
        return offset, needed

    @property
    def bytes(self) -> int:
        """The number of bytes of all activations."""
        return self._end

    def c_tensor(self, buffer: Buffer | None) -> CTensor:
        """The C structure of a buffer; None: the structure of a missing tensor."""
        if buffer is None:
            return CTensor()
        return buffer.layout.c_tensor(self.floats.data_ptr() + self._offsets[buffer])

    def view(self, buffer: Buffer) -> Tensor:
        """A buffer's memory, padding included."""
        start = self._offsets[buffer] // 4
        return self.floats[start : start + buffer.layout.floats]


def _buffers_of(step: Step) -> tuple[Buffer, ...]:
    if isinstance(step, Torch):
        return ()
    return *step.reads, *step.writes
