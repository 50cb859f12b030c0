"""The CPU backend: NumPy kernels over pooled memory."""

from __future__ import annotations

import contextvars
import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...array import Array, Storage
from ...device import Device
from ...dtypes import Dtype
from ...ops.elementwise_primitive import Pointwise
from ...program import Graph, Lowered
from ...views import Shape
from ..base import Backend, Kernel, MemoryStats
from ..c import compiler
from . import collective, expression, index, matmul, reduce, scan, shape, sort
from .pool import POOLED_FROM, Pool
from .registry import KERNELS, Layouts, NumpyKernel, plan_scratch

# Importing them fills KERNELS.
FAMILIES = (collective, index, matmul, reduce, scan, shape, sort)

_BYTES = np.dtype(np.uint8)


class CpuBackend(Backend):
    """Memory and kernels of the device `cpu`."""

    def __init__(self, device: Device):
        self._device = device
        self._pool = Pool(device)

    def empty(self, shape: Shape, dtype: Dtype, strides: Shape, nbytes: int) -> Array:
        if nbytes < POOLED_FROM:
            data = np.empty(shape, dtype.numpy)
            return Array(Storage(data, nbytes, self._device), dtype, shape, strides, 0, data)
        return Array(self._pool.allocate(nbytes), dtype, shape, strides, 0)

    def handle(self, array: Array) -> np.ndarray:
        memory = array.storage.memory
        if memory.dtype is not _BYTES:
            memory = memory.reshape(-1).view(_BYTES)
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
            return Kernel(self._with_scratch(specs, function), _layouts(layout), in_place)
        record = KERNELS.get(call.primitive)
        if record is None:
            return None
        specs = list(record.scratch(call)) if record.scratch else []
        return Kernel(self._with_scratch(specs, _spread(record, call.params)), _layouts(record.layouts))

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
            block = self._pool.allocate(total)
            scratch = [np.ndarray(shape, dtype, block.memory, offset) for shape, dtype, offset in pieces]
            quiet().run(function, inputs, outputs, scratch)

        return run

    def holds(self, call: Any) -> bool:
        """Returns whether a call has a kernel in C, or, if it has no composite, NumPy's between two sections."""
        return _in_c(call) or (call.primitive.composite is None and call.primitive in KERNELS)

    def in_layouts(self, call: Any) -> Sequence[str]:
        layouts = None if _in_c(call) else _layouts(KERNELS[call.primitive].layouts)
        return super().in_layouts(call) if layouts is None else layouts(call)

    def out_layouts(self, call: Any) -> Sequence[str]:
        return ("any" if _in_c(call) else "dense",) * len(call.out_shapes)

    def joins_expression(self, first: Any, last: Any, stored: Sequence[int]) -> bool:
        return _in_c(last)

    def program(self, graph: Graph, lowered: Lowered) -> Any | None:
        """The calls as a C library; None, with a warning, where there is no C compiler that works.

        Raises SourceError where the compiler rejects the code.
        """
        from ..c import library

        try:
            compiler.check_openmp()
            self._pool.give_back()  # a program works in an arena of its own
            return library.Library(graph, lowered, self._pool)
        except compiler.SourceError:
            raise
        except compiler.CCompilerError as error:
            _warn_of_numpy(str(error))
            return None

    def scratch(self, graph: Graph, lowered: Lowered) -> int:
        from ..c import library

        return library.scratch_of(graph, lowered)

    def memory_stats(self) -> MemoryStats:
        """Blocks of 64 KiB and more, and the arena of programs; smaller ones are malloc's and not counted."""
        return self._pool.stats()


def _in_c(call: Any) -> bool:
    from ..c import library  # here: who compiles nothing needs none of it

    return library.is_written(call.primitive)


@functools.cache
def _warn_of_numpy(why: str) -> None:
    warnings.warn(f"compile: programs run NumPy's kernels, which is slower: {why}", stacklevel=2)


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


def _layouts(layouts: Layouts) -> Callable[[Any], Sequence[str]] | None:
    if layouts is None:
        return None
    if callable(layouts):
        return lambda call: (layouts(call),) * len(call.in_shapes)
    if isinstance(layouts, str):
        return lambda call: (layouts,) * len(call.in_shapes)
    return lambda call: layouts
