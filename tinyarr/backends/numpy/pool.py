"""CPU memory: small blocks from malloc, large ones from a pool. Floor 1.

A fresh large block costs a page fault for every 4 KiB, which makes an eager training step several times slower than
its arithmetic; reused blocks cost nothing. A block goes back to the pool when its Storage dies, unless an np.ndarray
that shares its memory lives on: then NumPy frees it when that one dies.
"""

from __future__ import annotations

import sys

import numpy as np

from ...array import Storage
from ...device import Device
from ...errors import OutOfMemory
from ..base import MemoryStats

POOLED_FROM = 64 * 1024  # bytes; malloc serves smaller blocks without page faults
ALIGNMENT = 128  # bytes: a cache line pair, and what vector loads and segments want
SPARE = 1.25  # how far memory held may exceed the most that was ever in use


def size_class(nbytes: int) -> int:
    """`nbytes` rounded up to three significant bits: at most 1/4 is wasted, and similar sizes share blocks."""
    step = 1 << max((nbytes - 1).bit_length() - 3, 0)
    return -(-nbytes // step) * step


class Pool:
    """Free blocks by size class, and the statistics."""

    def __init__(self, device: Device):
        self._device = device
        self._free: dict[int, list[np.ndarray]] = {}
        self._pooled = 0
        self.in_use = 0
        self.peak = 0

    def allocate(self, nbytes: int) -> Storage:
        """A block of at least `nbytes` bytes. Raises OutOfMemory."""
        size = size_class(max(nbytes, 1))
        try:  # not asking first whether there is one: another thread may take it meanwhile
            block = self._free[size].pop()
            self._pooled -= size
        except LookupError:
            self._trim(size)
            try:
                raw = np.empty(size + ALIGNMENT, np.uint8)
            except (MemoryError, ValueError):  # the latter for more than an address can say
                held = f"{self.in_use:,} are in use: smaller shapes or batches need less"
                raise OutOfMemory(f"{self._device}: {nbytes:,} bytes can't be had, {held}") from None
            start = -raw.ctypes.data % ALIGNMENT
            block = raw[start : start + size]
        self.count(size)
        return _PooledStorage(block, nbytes, self._device, self)

    def count(self, nbytes: int) -> None:
        """Counts bytes that are taken, or (negative) given back; the arena of compiled programs is counted so."""
        self.in_use += nbytes
        self.peak = max(self.peak, self.in_use)

    def release(self, block: np.ndarray, shared: bool) -> None:
        self.in_use -= block.nbytes
        if not shared:
            self._free.setdefault(block.nbytes, []).append(block)
            self._pooled += block.nbytes

    def _trim(self, wanted: int) -> None:
        """Gives blocks of other sizes back to the system where holding them would go far past the peak in use."""
        limit = SPARE * max(self.peak, self.in_use + wanted)
        for size in sorted(self._free, reverse=True):
            while self._free[size] and self.in_use + self._pooled + wanted > limit:
                self._free[size].pop()
                self._pooled -= size

    def give_back(self) -> None:
        """Gives all free blocks back to the system."""
        self._free.clear()
        self._pooled = 0

    def stats(self) -> MemoryStats:
        return MemoryStats(self.in_use, self.peak, self._pooled)


class _PooledStorage(Storage):
    __slots__ = ("_pool",)

    def __init__(self, memory: np.ndarray, nbytes: int, device: Device, pool: Pool):
        super().__init__(memory, nbytes, device)
        self._pool = pool

    def __del__(self, _getrefcount=sys.getrefcount):
        block = self.memory
        # NumPy makes the block's base the base of every view of it. Two references to it when there are none: the
        # block's own, and the argument of getrefcount.
        self._pool.release(block, shared=_getrefcount(block.base) > 2)
