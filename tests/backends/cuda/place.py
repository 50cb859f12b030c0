"""Tensors of the CPU on a GPU, lying in its memory as they did."""

import numpy as np

from tinyarr import Device
from tinyarr.array import Array, empty
from tinyarr.tensor import Tensor, result_tensor
from tinyarr.views import contiguous_strides


def on(device: str, x: Tensor) -> Tensor:
    """The same view of the same storage: offset, strides and what lies in the gaps."""
    memory = x.array.storage.memory
    flat = np.ascontiguousarray(memory).reshape(-1).view(np.uint8)
    bytes_ = Tensor(flat, device=device).array
    return result_tensor(Array(bytes_.storage, x.dtype, x.shape, x.array.strides, x.array.offset))


def misaligned(x: Tensor) -> Tensor:
    """A copy that begins one element behind an aligned address."""
    moved = empty(Device(x.device), (x.size + 1,), x.dtype)
    view = Array(moved.storage, x.dtype, x.shape, contiguous_strides(x.shape), 1) if x.size else x.array
    if x.size:
        x.device.backend.copy(x.array, view)
    return result_tensor(view)
