"""Errors that kernels report: a kernel can't raise, so it leaves the first bad value in the host's memory. Floor 3."""

from __future__ import annotations

import cupy
import numpy as np

from ....errors import OutOfBounds
from ..planning.registry import Report

WORDS = 4  # of 64 bits: code, value, position, and one to spare
MOST = 4096  # slots; later kernels share the last one


class DeviceErrors:
    """A slot for each message, in pinned memory that kernels write and the host reads without a copy."""

    def __init__(self):
        self._pinned = cupy.cuda.alloc_pinned_memory(MOST * WORDS * 8)
        self._words = np.frombuffer(self._pinned, np.int64, MOST * WORDS).reshape(MOST, WORDS)
        self._words[...] = 0
        self._slots: list[Report] = []

    def address(self, report: Report) -> int:
        """Returns the address at which a kernel with that message reports."""
        if report not in self._slots:
            if len(self._slots) == MOST:
                report = Report("a kernel met a value outside its range ({value}, at {position})")
                self._slots[-1] = report
            else:
                self._slots.append(report)
        return self._pinned.ptr + self._slots.index(report) * WORDS * 8

    def any(self) -> bool:
        """Returns whether something was reported; its kernel may still be writing the value."""
        return bool(self._words[: len(self._slots), 0].any())

    def check(self) -> None:
        """Raises OutOfBounds for what was reported, once; the stream must have been synchronized."""
        found = np.flatnonzero(self._words[: len(self._slots), 0])
        if found.size:
            slot = int(found[0])
            _, value, position, _ = self._words[slot].tolist()
            self._words[...] = 0
            report = self._slots[slot]
            at = [int(i) for i in np.unravel_index(position, report.shape)] if report.shape else [position]
            raise OutOfBounds(report.message.format(value=value, position=", ".join(map(str, at))))
