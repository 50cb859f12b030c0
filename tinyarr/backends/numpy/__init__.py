"""NumPy's backend: kernels over pooled memory, with which eager mode runs on the CPU. Floor 1."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...array import Array, Storage
from ...device import Device
from ...dtypes import Dtype
from ...ops.elementwise_primitive import Pointwise
from ...ops.rowwise import Rowwise
from ...views import Shape
from ..base import Backend, Kernel, MemoryStats
from . import expression, index, matmul, reduce, rows, shape
from .pool import POOLED_FROM, Pool
from .registry import KERNELS, Layouts, NumpyKernel, plan_scratch

# Importing them fills KERNELS.
FAMILIES = (index, matmul, reduce, shape)

_BYTES = np.dtype(np.uint8)


class NumpyBackend(Backend):
    """Memory and kernels of the device `cpu`, without programs: c/backend.py adds those."""

    def __init__(self, device: Device):
        self._device = device
        self.pool = Pool(device)

    def empty(self, shape: Shape, dtype: Dtype, strides: Shape, nbytes: int) -> Array:
        if nbytes < POOLED_FROM:
            data = np.empty(shape, dtype.numpy)
            return Array(Storage(data, nbytes, self._device), dtype, shape, strides, 0, data)
        return Array(self.pool.allocate(nbytes), dtype, shape, strides, 0)

    def handle(self, array: Array) -> np.ndarray:
        memory = array.storage.memory
        if memory.dtype is not _BYTES:
            memory = array.storage.memory = memory.reshape(-1).view(_BYTES)
        itemsize = array.dtype.itemsize
        strides = tuple([s * itemsize for s in array.strides])
        return np.ndarray(array.shape, array.dtype.numpy, memory, array.offset * itemsize, strides)

    def copy(self, source: Array, target: Array) -> None:
        np.copyto(target.data, source.data)

    def from_numpy(self, data: np.ndarray, target: Array) -> None:
        np.copyto(target.data, data)

    def to_numpy(self, array: Array) -> np.ndarray:
        return array.data.copy(order="C")

    def kernel(self, call: Any) -> Kernel | None:
        if isinstance(call.primitive, Pointwise):
            specs, function, in_place, layout = expression.compile_call(call)
            return Kernel(self._with_scratch(specs, function), layouts_of(layout), in_place)
        if isinstance(call.primitive, Rowwise):
            specs, function = rows.compile_call(call)
            return Kernel(self._with_scratch(specs, function), layouts_of("dense"))
        record = KERNELS.get(call.primitive)
        if record is None:
            return None
        specs = list(record.scratch(call)) if record.scratch else []
        return Kernel(self._with_scratch(specs, _spread(record, call.params)), layouts_of(record.layouts))

    def _with_scratch(self, specs: Sequence, function: Callable) -> Callable:
        """`function(inputs, outputs[, scratch])` with scratch from the pool, and without NumPy's warnings.

        IEEE results are what is wanted of overflow and 0/0. Running in a context that has the warnings off costs
        0.1 µs; np.errstate around each kernel would cost 1.3.
        """
        quiet = _quiet
        if not specs:
            return lambda inputs, outputs: quiet().run(function, inputs, outputs)
        total, pieces = plan_scratch(specs)

        def run(inputs: Sequence[Any], outputs: Sequence[np.ndarray]) -> None:
            block = self.pool.allocate(total)
            scratch = [np.ndarray(shape, dtype, block.memory, offset) for shape, dtype, offset in pieces]
            quiet().run(function, inputs, outputs, scratch)

        return run

    def memory_stats(self) -> MemoryStats:
        """Blocks of 64 KiB and more, and the arena of programs; smaller ones are malloc's and not counted."""
        return self.pool.stats()


_contexts = threading.local()


def _quiet() -> contextvars.Context:
    """This thread's context in which NumPy reports no floating-point errors."""
    try:
        return _contexts.quiet
    except AttributeError:
        context = _contexts.quiet = contextvars.Context()
        context.run(np.seterr, all="ignore")
        return context


def _spread(record: NumpyKernel, params: dict[str, Any]) -> Callable:
    """`function(inputs, outputs, scratch)` for a kernel that takes them one by one."""
    function = record.function
    if record.takes_lists:
        return lambda inputs, outputs, scratch=(): function(inputs, outputs, *scratch, **params)
    return lambda inputs, outputs, scratch=(): function(*inputs, *outputs, *scratch, **params)


def layouts_of(layouts: Layouts) -> Callable[[Any], Sequence[str]] | None:
    if layouts is None:
        return None
    if callable(layouts):
        return lambda call: (layouts(call),) * len(call.in_shapes)
    if isinstance(layouts, str):
        return lambda call: (layouts,) * len(call.in_shapes)
    return lambda call: layouts
