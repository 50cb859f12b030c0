"""The meta backend: shapes and dtypes without memory. Kernels do nothing; reading a value is an error."""

from __future__ import annotations

from collections.abc import Sequence

from ..array import Array, Storage
from ..device import Device
from ..dtypes import Dtype
from ..errors import DeviceError
from ..ops.elementwise_primitive import Pointwise
from ..views import Shape
from .base import Kernel, MemoryStats


class MetaBackend:
    def __init__(self, device: Device):
        self._device = device
        self._is_cuda = self.joins = (device.like or "").startswith("cuda")
        self.stops = not self._is_cuda

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
        if self._is_cuda:
            from .cuda.planning import planner

            known = planner(call) is not None
        else:
            from .cpu import KERNELS

            known = self._device.like is None or isinstance(call.primitive, Pointwise) or call.primitive in KERNELS
        return Kernel(lambda inputs, outputs: None, in_place=True) if known else None

    def holds(self, call) -> bool:
        if self._device.like == "cpu":
            return Device("cpu").backend.holds(call)
        return self.kernel(call) is not None

    def program(self, graph, plan) -> None:
        return None

    def out_layouts(self, call) -> Sequence[str]:
        if self._is_cuda:
            from .cuda.planning import out_layouts

            return out_layouts(call)
        return ("any",) * len(call.out_shapes)

    def scratch(self, graph, plan) -> int:
        if self._is_cuda:
            from .cuda.joining import join
            from .cuda.lowering import Lowering

            return join(Lowering(graph, plan), plan).scratch
        return Device("cpu").backend.scratch(graph, plan)

    def synchronize(self) -> None:
        pass

    def memory_stats(self) -> MemoryStats:
        return MemoryStats(0, 0, 0)
