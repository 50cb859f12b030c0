"""CudaBackend: memory, copies and kernels of one GPU on one stream; uploads come on another. Floor 3."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime

from .... import views
from ....array import Array
from ....cuda import warn_if_missing
from ....device import Device
from ....dtypes import Dtype
from ....groups import watching
from ....ops.attention import _scaled_dot_product_attention
from ....ops.elementwise_primitive import Pointwise
from ....ops.matmul import _matmul
from ....ops.typing import dtype_constant, integer_casts
from ....program import Graph, Lowered
from ....views import Shape
from ...base import Backend, Kernel, MemoryStats
from ..kernels import elementwise
from ..planning import plans
from ..planning.planner import CudaPlanner
from ..planning.registry import Input, LaunchPlan, Operand, Output
from ..program.program import Program
from . import dlpack
from .device_errors import DeviceErrors
from .downloads import Download, Downloads
from .events import wait_for
from .launch import Loader, bits
from .memory import DeviceArena, DeviceMemory
from .uploads import Uploads

USES: dict[Any, str] = {_matmul: "cuBLASLt", _scaled_dot_product_attention: "cuDNN"}  # without which they are slower
STAGED = 32 * 2**20  # bytes; what is smaller goes through pinned memory, without waiting for the copy


class Handle:
    """Array as kernels take it: its address, and its strides and alignment, which plans depend on."""

    __slots__ = ("address", "layout")

    def __init__(self, address: int, strides: Shape):
        self.address = address
        self.layout = strides, address % 16 == 0


class CudaBackend(CudaPlanner, Backend):
    """Memory and kernels of one device, on one stream; another copies small tensors from the host."""

    def __init__(self, device: Device):
        self.device = device
        self.memory = DeviceMemory(device)
        with cupy.cuda.Device(device.index):
            self.stream = cupy.cuda.Stream(non_blocking=True)
            self._arrivals = Uploads(self.stream)
            self._reports = DeviceErrors()
            capability = cupy.cuda.Device(device.index).compute_capability
        self.loader = Loader(f"sm_{capability}", self.stream, self.memory, self._reports)
        self.arena = DeviceArena(self.memory)
        self.lock = threading.RLock()  # of who launches: a capture takes in whatever is launched meanwhile
        self._copies: dict[tuple, Callable] = {}
        self._staged: list[tuple[Any, Any]] = []
        self._on_host = Downloads()

    def empty(self, shape: Shape, dtype: Dtype, strides: Shape, nbytes: int) -> Array:
        self.enter()
        return Array(self.memory.allocate(nbytes), dtype, shape, strides, 0)

    def handle(self, array: Array) -> Handle:
        return Handle(array.storage.memory.ptr + array.offset * array.dtype.itemsize, array.strides)

    def copy(self, source: Array, target: Array) -> None:
        if 0 in source.shape:
            return
        with self.lock:
            self._copy(source, target)

    def _copy(self, source: Array, target: Array) -> None:
        self.ready()
        x, y = source.data, target.data
        if views.is_contiguous(source.view) and views.is_contiguous(target.view):
            self.copy_bytes(x.address, y.address, source.nbytes)
            return
        key = source.shape, source.dtype, x.layout, y.layout
        if key not in self._copies:
            operands = [Operand(source.shape, layout[0], source.dtype, layout[1]) for layout in (x.layout, y.layout)]
            self._copies[key] = self.loader.bind(
                LaunchPlan(elementwise.copy((operands[0], Input(0)), (operands[1], Output(0))))
            )
        self._copies[key]([x.address], [y.address])

    def copy_bytes(self, source: int, target: int, nbytes: int) -> None:
        """Copies from one address on the device to another."""
        if nbytes:
            runtime.memcpyAsync(target, source, nbytes, runtime.memcpyDeviceToDevice, self.stream.ptr)

    def from_numpy(self, data: np.ndarray, target: Array) -> None:
        if not data.size:
            return
        self.enter()
        with self.lock:
            if target.nbytes <= STAGED:
                stream = self._arrivals.begin()
                self._arrivals.add(target, self._upload(data, target.data.address, stream))
                return
            data, to = np.ascontiguousarray(data), target.data.address
            runtime.memcpyAsync(to, data.ctypes.data, target.nbytes, runtime.memcpyHostToDevice, self.stream.ptr)
            self.stream.synchronize()  # the driver has staged it by then

    def upload(self, data: np.ndarray, to: int) -> None:
        """Copies a few bytes to an address on the device, for what is launched next: the data may change at once."""
        self._upload(data, to, self.stream)

    def _upload(self, data: np.ndarray, to: int, stream: Any) -> Any:
        """Copies through pinned memory; returns the event that then comes to pass."""
        pinned = cupy.cuda.alloc_pinned_memory(data.nbytes)
        np.copyto(np.frombuffer(pinned, data.dtype, data.size).reshape(data.shape), data)
        runtime.memcpyAsync(to, pinned.ptr, data.nbytes, runtime.memcpyHostToDevice, stream.ptr)
        return self._keep_until_copied(pinned, stream)

    def _keep_until_copied(self, pinned: Any, stream: Any) -> Any:
        """An event after the copy that was launched last. Until then the pool must not give its memory away."""
        event = cupy.cuda.Event(disable_timing=True)
        event.record(stream)
        with self.lock:
            self._staged = [staged for staged in self._staged if not staged[0].done] + [(event, pinned)]
        return event

    def copy_to_host_async(self, array: Array) -> None:
        count = views.size(array.shape)
        if not count or not self._on_host.wants(array):
            return
        with self.lock:
            self.ready()
            source, pinned = self._dense(array).data.address, cupy.cuda.alloc_pinned_memory(array.nbytes)
            runtime.memcpyAsync(pinned.ptr, source, array.nbytes, runtime.memcpyDeviceToHost, self.stream.ptr)
            values = np.frombuffer(pinned, array.dtype.numpy, count).reshape(array.shape)
            self._on_host.keep(array, Download(self._keep_until_copied(pinned, self.stream), values))

    def _dense(self, array: Array) -> Array:
        """`array`, or a row-major copy of it."""
        if views.is_contiguous(array.view):
            return array
        dense = self.empty(array.shape, array.dtype, views.contiguous_strides(array.shape), array.nbytes)
        self.copy(array, dense)
        return dense

    def to_numpy(self, array: Array) -> np.ndarray:
        begun = self._on_host.find(array)
        if begun is not None:
            wait_for(begun.event)
            if self._reports.any():
                self.synchronize()
            return begun.values.copy()
        result = np.empty(array.shape, array.dtype.numpy)
        if result.size:
            if watching() is not None:
                self._wait()  # the copy would wait in the driver, where nothing tells of a lost rank
            with self.lock:
                self.ready()
                array = self._dense(array)
                source, kind = array.data.address, runtime.memcpyDeviceToHost
                runtime.memcpyAsync(result.ctypes.data, source, array.nbytes, kind, self.stream.ptr)
        self.synchronize()
        return result

    def kernel(self, call: Any) -> Kernel | None:
        if call.primitive in USES and call.in_dtypes[0].is_float:
            warn_if_missing(USES[call.primitive])
        plan = plans.planner(call)
        if plan is None:
            return None
        shapes, kinds = (*call.in_shapes, *call.out_shapes), (*call.in_dtypes, *call.out_dtypes)
        inputs_count = len(call.in_shapes)
        bound: dict[tuple, Callable] = {}
        loader = self.loader
        name, casts = call.primitive.name, _casts_of_integers(call)

        def prepare(key: tuple) -> Callable:
            operands = [
                Operand(shape, *(((), kind, True) if layout is None else (layout[0], kind, layout[1])))
                for shape, kind, layout in zip(shapes, kinds, key, strict=True)
            ]
            found = bound[key] = loader.bind(plan(operands[:inputs_count], operands[inputs_count:]))
            return found

        def function(inputs: Sequence[Any], outputs: Sequence[Handle]) -> None:
            for i, dtype in casts:
                dtype_constant(name, inputs[i], dtype)
            key = tuple([x.layout if type(x) is Handle else None for x in (*inputs, *outputs)])
            addresses = [x.address if type(x) is Handle else bits(x) for x in inputs]
            with self.lock:
                self.ready()
                run = bound.get(key)
                if run is None:
                    run = prepare(key)
                run(addresses, [x.address for x in outputs])

        return Kernel(function, plans.layouts(call), in_place=isinstance(call.primitive, Pointwise))

    def dlpack(self, array: Array, **options: Any) -> Any:
        with self.lock:
            self.ready()
            self._on_host.share(array.storage)
            return dlpack.export(self, array, **options)

    def from_dlpack(self, x: Any) -> Array:
        with self.lock:
            self.enter()
            adopted = dlpack.adopt(self, x)
            self._on_host.share(adopted.storage)
            return adopted

    def program(self, graph: Graph, lowered: Lowered) -> Program:
        with self.lock:
            self.enter()
            return Program(graph, lowered, self)

    def synchronize(self) -> None:
        """Waits for what was launched.

        Raises OutOfBounds where a kernel reported a bad index, RankError where a collective waits for a lost rank.
        """
        self._wait()
        self._reports.check()

    def _wait(self) -> None:
        reached = cupy.cuda.Event(disable_timing=True)
        with self.lock:
            self.ready()
            reached.record(self.stream)
        wait_for(reached)

    def memory_stats(self) -> MemoryStats:
        """Blocks of the pool, rounded up to 512 bytes."""
        return self.memory.stats()

    def enter(self) -> None:
        """Makes the device current for this thread."""
        if runtime.getDevice() != self.device.index:
            runtime.setDevice(self.device.index)

    def ready(self, arrays: Sequence[Array] | None = None) -> None:
        """Enters; what is launched next finds what came from the host, all of it or what these arrays show."""
        self.enter()
        self._arrivals.wait_for(arrays)


def _casts_of_integers(call: Any) -> list[tuple[int, Dtype]]:
    """The operands that are Python integers, and the dtypes that must hold them, where a kernel would cut them off."""
    if not isinstance(call.primitive, Pointwise) or "signed" not in call.in_dtypes:
        return []
    casts = integer_casts(call.primitive.typed(call.in_shapes, call.in_dtypes, call.params))
    return [(i, dtype) for i, dtype in casts if call.in_dtypes[i] == "signed" and not dtype.is_float]
