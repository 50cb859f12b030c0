"""The meta backend: shapes and dtypes without memory. Kernels do nothing; reading a value is an error. Floor 5.

What plans programs for the device that it stands for answers all questions of kernels.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..array import Array, Storage
from ..device import Device, planner
from ..dtypes import Dtype
from ..errors import DeviceError
from ..views import Shape
from .base import Backend, Kernel


class MetaBackend(Backend):
    def __init__(self, device: Device):
        self._device = device
        self._planner = planner(device.like or "cpu")
        self.stops = self._planner.stops
        self.block, self.even = self._planner.block, self._planner.even
        if device.like is None:
            self.block = 1 << 62  # there is no memory to save

    def empty(self, shape: Shape, dtype: Dtype, strides: Shape, nbytes: int) -> Array:
        return Array(Storage(None, nbytes, self._device), dtype, shape, strides, 0)

    def handle(self, array: Array) -> None:
        return None

    def copy(self, source: Array, target: Array) -> None:
        pass

    def from_numpy(self, data, target: Array) -> None:
        pass

    def to_numpy(self, array: Array):
        raise DeviceError(f"to_numpy: the tensor {array.shape} is on meta, which has shapes and no values")

    def copy_to_host_async(self, array: Array) -> None:
        raise DeviceError(f"copy_to_host_async: the tensor {array.shape} is on meta, which has shapes and no values")

    def kernel(self, call) -> Kernel | None:
        """One that does nothing, where the device that this one stands for has a kernel."""
        known = self._device.like is None or self._planner.kernel(call) is not None
        return Kernel(lambda inputs, outputs: None, in_place=True) if known else None

    def holds(self, call) -> bool:
        return self._device.like is None or self._planner.holds(call)

    def in_layouts(self, call) -> Sequence[str]:
        return self._planner.in_layouts(call)

    def out_layouts(self, call) -> Sequence[str]:
        return self._planner.out_layouts(call)

    def joins_expression(self, first, last, stored) -> bool:
        return self._planner.joins_expression(first, last, stored)

    def scratch(self, graph, lowered) -> int:
        return self._planner.scratch(graph, lowered)
