"""DLPack to and from CuPy, PyTorch and their like on one GPU: shared memory, ordered by their streams. Floor 3."""

from __future__ import annotations

from typing import Any

import cupy

from .... import dtypes, views
from ....array import Array, Storage


def export(backend: Any, array: Array, **options: Any) -> Any:
    """A capsule over the array's memory. The consumer's stream, if it names one, waits for ours."""
    itemsize = array.dtype.itemsize
    pointer = array.storage.memory + array.offset * itemsize
    strides = tuple(s * itemsize for s in array.strides)
    with backend.stream:
        return cupy.ndarray(array.shape, array.dtype.numpy, pointer, strides).__dlpack__(**options)


def adopt(backend: Any, x: Any) -> Array:
    """An Array over the memory of another library's array, once what its stream wrote is there.

    Memory that does not begin at a multiple of 16 bytes is copied, since kernels count on it.
    """
    with backend.stream:
        shared = cupy.from_dlpack(x)
        if shared.data.ptr % 16:
            shared = shared.copy()
    itemsize = shared.dtype.itemsize
    strides = tuple(s // itemsize for s in shared.strides)
    lowest = sum((n - 1) * s for n, s in zip(shared.shape, strides, strict=True) if s < 0 < n)
    memory = shared.data + lowest * itemsize
    extent = views.extent(views.View(shared.shape, strides, -lowest))[1]
    storage = Storage(memory, extent * itemsize, backend.device)
    return Array(storage, dtypes.dtype(shared.dtype), shared.shape, strides, -lowest)
