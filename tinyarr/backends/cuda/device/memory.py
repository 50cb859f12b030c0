"""CUDA memory from CuPy's pool: what is held, what was the most, and what to say when there is no more. Floor 3."""

from __future__ import annotations

import gc
from typing import Any

import cupy

from .... import views
from ....array import Array, Storage
from ....device import Device
from ....errors import OutOfMemory
from ...base import MemoryStats

GRANULE = 512  # bytes: CuPy's pool rounds sizes up to it
MIB = 2**20
LISTED = 5  # tensors that an error names


class DeviceMemory:
    """The blocks of one device.

    Kernels run on one stream, and what still arrives on another is held, so a block may be used again once it is free.
    """

    def __init__(self, device: Device):
        self._device = device
        self._pool = cupy.cuda.MemoryPool()
        self.in_use = 0
        self.peak = 0

    def allocate(self, nbytes: int) -> Storage:
        """A block of at least `nbytes` bytes, aligned to 512. Raises OutOfMemory."""
        size = -(-nbytes // GRANULE) * GRANULE
        try:
            block = self._pool.malloc(nbytes)
        except cupy.cuda.memory.OutOfMemoryError:
            raise OutOfMemory(self._explain(nbytes)) from None
        self.in_use += size
        self.peak = max(self.peak, self.in_use)
        return _DeviceStorage(block, nbytes, self._device, self, size)

    def give_back(self) -> None:
        """Returns to the device what nobody uses."""
        self._pool.free_all_blocks()

    def stats(self) -> MemoryStats:
        return MemoryStats(self.in_use, self.peak, self._pool.total_bytes() - self.in_use)

    def _explain(self, nbytes: int) -> str:
        free, total = cupy.cuda.runtime.memGetInfo()
        lines = [
            f"{self._device}: {nbytes / MIB:,.1f} MiB wanted, {free / MIB:,.1f} of {total / MIB:,.1f} MiB are free, "
            f"tensors hold {self.in_use / MIB:,.1f} MiB, the pool {self._pool.total_bytes() / MIB:,.1f} MiB: "
            "use a smaller batch or model, or free tensors. The biggest that are alive:"
        ]
        for storage, shape in biggest(self._device):
            lines.append(f"  {storage.nbytes / MIB:,.1f} MiB {shape}")
        return "\n".join(lines)


class DeviceArena:
    """Memory that all programs of a device share, one after the other; it grows to what the largest needs."""

    def __init__(self, memory: DeviceMemory):
        self._memory = memory
        self._block: Storage | None = None

    def address(self, nbytes: int) -> int:
        """Returns the address of `nbytes` bytes."""
        if self._block is None or self._block.nbytes < nbytes:
            self._block = None  # freed before the larger one is taken
            self._memory.give_back()
            self._block = self._memory.allocate(nbytes)
        return self._block.memory.ptr


def biggest(device: Device) -> list[tuple[Storage, str]]:
    """The largest storages alive on a device, each with the dtype and shape of the largest tensor that sees it."""
    seen: dict[int, tuple[Storage, int, str]] = {}
    for x in gc.get_objects():
        if type(x) is Array and x.device is device:
            elements = views.size(x.shape)
            known = seen.get(id(x.storage))
            if known is None or elements > known[1]:
                seen[id(x.storage)] = x.storage, elements, f"{x.dtype.name} {x.shape}"
    found = sorted(seen.values(), key=lambda entry: -entry[0].nbytes)[:LISTED]
    return [(storage, text) for storage, _, text in found]


class _DeviceStorage(Storage):
    __slots__ = ("_owner", "_size")

    def __init__(self, memory: Any, nbytes: int, device: Device, owner: DeviceMemory, size: int):
        super().__init__(memory, nbytes, device)
        self._owner = owner
        self._size = size

    def __del__(self):
        self._owner.in_use -= self._size
