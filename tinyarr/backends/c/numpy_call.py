"""Calls without a C function: NumPy's kernel runs them, in the same memory, between two sections of C code. Floor 2."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ... import views
from ...program import Argument, KernelCall, Place


class NumpyCall:
    """buffer(place): the number of the buffer that a place is in."""

    nbytes = 0  # of scratch: the kernel takes its own from the pool

    def __init__(self, call: KernelCall, buffer: Callable[[Place], int]):
        self._call, self._buffer = call, buffer
        self._function = call.call.device.backend.kernel(call.call).function

    def run(self, addresses: Sequence[int], scratch: int, begun: Any) -> None:
        """addresses: of the buffers."""
        inputs, outputs = ([self._array(x, addresses) for x in xs] for xs in (self._call.inputs, self._call.outputs))
        self._function(inputs, outputs)

    def _array(self, x: Any, addresses: Sequence[int]) -> Any:
        if not isinstance(x, Argument):
            return x
        assert x.place is not None
        low, high = views.extent(x.view._replace(offset=0))
        size = x.dtype.itemsize
        start = addresses[self._buffer(x.place)] + x.place.offset + low * size
        memory: Any = (ctypes.c_char * ((high - low) * size)).from_address(start)
        return np.ndarray(x.shape, x.dtype.numpy, memory, -low * size, [s * size for s in x.strides])
