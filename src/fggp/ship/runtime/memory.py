"""Memory for all activations of one plan: who lies where, and who takes over whose place."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import torch
from torch import Tensor

from fggp.ship.runtime.instructions import Buffer, Step, Torch
from fggp.ship.runtime.kernels import CTensor
from fggp.ship.runtime.layout import Layout

LINE = 64  # bytes that caches move at once
HUGE_PAGE = 2 << 20


def last_touches(steps: Sequence[Step]) -> dict[Buffer, int]:
    """The step that reads or writes each buffer last."""
    last: dict[Buffer, int] = {}
    for i, step in enumerate(steps):
        last.update(dict.fromkeys(_touched(step), i))
    return last


def takeovers(steps: Sequence[Step]) -> dict[Buffer, Buffer]:
    """Which buffers are written in place of another one: in place of ``over``, where nothing reads that one any more.

    Not where the step reads it twice: in a chain of products the second reader may come after the first one writes.
    """
    last = last_touches(steps)
    found: dict[Buffer, Buffer] = {}
    seen: set[Buffer] = set()
    for i, step in enumerate(steps):
        touched = _touched(step)
        for buffer in touched:
            before = buffer.over
            if buffer in seen or before is None or before in found.values():
                continue
            if last[before] == i and touched.count(before) == 1:
                found[buffer] = before
        seen.update(touched)
    return found


class Memory:
    """All activations of one plan, in one stretch that begins as zeros.

    A buffer takes over memory that is free again, or that is read for the last time where the buffer is written. Where
    there are zeros in it that must stay zero, only a buffer of the very same layout may do so: nothing ever writes
    between its pixels.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._offsets: dict[Buffer, int] = {}
        self._end = 0
        self._place_all(steps)
        # Planes lie far apart, so that small pages would each be looked up anew.
        # Private: a forked process is to have its own.
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        self._memory = mmap.mmap(-1, self._end + HUGE_PAGE, **private)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        everything = torch.frombuffer(self._memory, dtype=torch.float32)
        skip = -everything.data_ptr() % HUGE_PAGE // 4
        self.floats = everything[skip:]

    def _place_all(self, steps: Sequence[Step]) -> None:
        over, last = takeovers(steps), last_touches(steps)
        taken = set(over.values())
        free: dict[int, tuple[int, Layout | None]] = {}  # offset: bytes, and the layout that must stay
        size: dict[Buffer, int] = {}
        for i, step in enumerate(steps):
            for buffer in _touched(step):
                if buffer in self._offsets:
                    continue
                if buffer in over:
                    self._offsets[buffer], size[buffer] = self._offsets[over[buffer]], size[over[buffer]]
                else:
                    self._offsets[buffer], size[buffer] = self._take(buffer.layout, free)
            for buffer in _touched(step):
                if last[buffer] == i and buffer not in taken:
                    free[self._offsets[buffer]] = size[buffer], buffer.layout if buffer.layout.padded else None

    def _take(self, layout: Layout, free: dict[int, tuple[int, Layout | None]]) -> tuple[int, int]:
        needed = -(-layout.floats * 4 // LINE) * LINE
        stays = layout if layout.padded else None
        fitting = [(size, offset) for offset, (size, kept) in free.items() if kept == stays and size >= needed]
        if fitting:
            size, offset = min(fitting)
            del free[offset]
            return offset, size
        offset, self._end = self._end, self._end + needed
        return offset, needed

    @property
    def bytes(self) -> int:
        """How much it is."""
        return self._end

    def at(self, buffer: Buffer | None) -> CTensor:
        """Where a buffer lies; None: nowhere."""
        if buffer is None:
            return CTensor()
        return buffer.layout.at(self.floats.data_ptr() + self._offsets[buffer])

    def view(self, buffer: Buffer) -> Tensor:
        """A buffer's memory, padding included."""
        start = self._offsets[buffer] // 4
        return self.floats[start : start + buffer.layout.floats]


def _touched(step: Step) -> tuple[Buffer, ...]:
    if isinstance(step, Torch):
        return ()
    return *step.reads, *step.writes
