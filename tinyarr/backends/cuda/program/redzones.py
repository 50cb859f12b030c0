"""Guards: finds what writes beyond its memory in a program's arena, or reads there what nothing has written. Floor 3.

With TINYARR_GUARD=1 all blocks of the arena are apart. Before each run all of it is filled with one byte, which is
NaN for floats; after the run what belongs to nobody must still hold that byte.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .... import views
from ....errors import DeviceError
from ....views import View
from .lowering import Launchable

FILLED = 0xFF


class GuardedBlock(NamedTuple):
    """Bytes of the arena, from `start` to before `end`, and whose they are."""

    start: int
    end: int
    owner: str


class Gap(NamedTuple):
    """Bytes that belong to nobody, and the owners of what ends before them and of what begins behind."""

    start: int
    end: int
    before: tuple[str, ...]
    behind: tuple[str, ...]


def blocks(tasks: Iterable[Launchable]) -> list[GuardedBlock]:
    """Returns the blocks of the arena that tasks write: their results, and the scratch that they work in."""
    found = []
    for task in tasks:
        owner = " ".join(str(task).split())
        for place, operand in zip(task.outputs, task.makes, strict=True):
            low, high = (n * operand.dtype.itemsize for n in views.extent(View(operand.shape, operand.strides, 0)))
            if place.buffer == "arena":
                found.append(GuardedBlock(place.offset + low, place.offset + high, owner))
        for number, (place, nbytes) in enumerate(zip(task.scratch, task.plan.scratch, strict=True)):
            found.append(GuardedBlock(place.offset, place.offset + nbytes, f"scratch {number} of {owner}"))
    return found


def gaps(taken: Iterable[GuardedBlock], end: int) -> list[Gap]:
    """Returns the gaps between the blocks of an arena of `end` bytes."""
    taken = sorted(b for b in taken if b.start < b.end)
    edges, reached = [], 0
    for block in taken:
        if block.start > reached:
            edges.append((reached, block.start))
        reached = max(reached, block.end)
    if reached < end:
        edges.append((reached, end))
    return [
        Gap(low, high, _owners(b for b in taken if b.end == low), _owners(b for b in taken if b.start == high))
        for low, high in edges
    ]


def _owners(taken: Iterable[GuardedBlock]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(b.owner for b in taken))


def fill(backend: Any, base: int, nbytes: int) -> None:
    """Fills the arena at an address."""
    from cupy.cuda import runtime

    runtime.memsetAsync(base, FILLED, nbytes, backend.stream.ptr)


def check(backend: Any, base: int, free: Sequence[Gap]) -> None:
    """Raises DeviceError for the first gap that was written into."""
    from cupy.cuda import runtime

    for gap in free:
        found = np.empty(gap.end - gap.start, np.uint8)
        kind = runtime.memcpyDeviceToHost
        runtime.memcpyAsync(found.ctypes.data, base + gap.start, found.nbytes, kind, backend.stream.ptr)
        backend.stream.synchronize()
        raise_for(gap, found)


def raise_for(gap: Gap, found: np.ndarray) -> None:
    """Raises DeviceError where a gap's bytes are not what it was filled with."""
    written = np.flatnonzero(found != FILLED)
    if written.size:
        at = f"bytes {written[0]} to {written[-1]} of the {found.size}"
        before, behind = ("".join(f"\n  {owner}" for owner in owners) for owners in (gap.before, gap.behind))
        raise DeviceError(
            f"TINYARR_GUARD: a kernel wrote where nothing lies: {at} behind what was made by{before or ' nobody'}"
            f"\nand before what was made by{behind or ' nobody'}"
        )
