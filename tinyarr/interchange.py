"""Data in and out: tensors from Python and NumPy data, their values back, other devices, and how they print."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from . import array, dtypes
from .device import Device
from .errors import DtypeError, GradientError, ShapeError
from .ops.create import copy, target, with_gradient
from .ops.elementwise import astype
from .tensor import Tensor, method, result_tensor


def tensor(data: Any, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor with a copy of `data`: Python numbers in nested lists, an np.ndarray, or another tensor.

    Python numbers give bool, int64 or float32; an array or tensor keeps its dtype; `dtype` overrides both.
    Raises ShapeError for lists of unequal length, DtypeError for a dtype that tinyarr lacks.
    """
    if isinstance(data, Tensor):
        result = copy(data.detach())
        result = result if device is None else to(result, device)
        return with_gradient(result if dtype is None else astype(result, dtype, copy=False), requires_grad)
    try:
        values = np.asarray(data)
    except ValueError:
        raise ShapeError("tensor: the nested lists have unequal lengths: every row must have the same shape") from None
    if values.dtype.kind not in "biufV" or values.dtype.names:
        raise DtypeError(f"tensor: data holds {values.dtype}: use bool, integers or real floating numbers")
    natural = dtypes.dtype(values.dtype)
    from_python = not hasattr(data, "dtype")
    if from_python and natural is dtypes.float64:
        natural = dtypes.float32
    dtype, device = target(dtype, device, natural)
    stored = array.empty(device, tuple(values.shape), dtype)
    device.backend.from_numpy(values.astype(dtype.numpy), stored)
    return with_gradient(result_tensor(stored), requires_grad)


asarray = tensor


@method()
def to(x: Tensor, device: str | Device) -> Tensor:
    """The tensor on another device; itself where it is there already. The copy has no history."""
    device = Device(device)
    if x.device is device:
        return x
    moved = array.empty(device, x.shape, x.dtype)
    if device.kind != "meta":
        device.backend.from_numpy(to_numpy(x), moved)
    return result_tensor(moved)


@method("numpy")
def to_numpy(x: Tensor) -> np.ndarray:
    """A fresh np.ndarray with the elements: writing into it does not change the tensor."""
    return x.device.backend.to_numpy(x.array)


@method()
def tolist(x: Tensor) -> Any:
    """The elements as Python numbers in nested lists; a number for a 0-d tensor."""
    return to_numpy(x).tolist()


@method()
def item(x: Tensor) -> Any:
    """The one element as a Python number. Raises ShapeError where there are more or none."""
    if x.size != 1:
        raise ShapeError(f"item: the tensor has shape {x.shape}: only a single element converts to a Python number")
    return to_numpy(x).reshape(()).tolist()


def _as_numpy_array(self: Tensor, dtype=None, copy=None) -> np.ndarray:
    """NumPy's conversion protocol. A tensor that is part of a gradient must be detached first, as the graph is lost."""
    if self.requires_grad:
        raise GradientError(
            "np.asarray: the tensor requires a gradient, which NumPy would lose: use x.detach() or x.numpy()"
        )
    values = to_numpy(self)
    return values if dtype is None else values.astype(dtype)


def _repr(self: Tensor) -> str:
    if self.device.kind == "meta":
        body = f"shape={self.shape}"
    else:
        body = np.array2string(to_numpy(self), separator=", ", prefix="tensor(", threshold=200, precision=4)
    parts = [body]
    if self.dtype not in dtypes.DEFAULT.values():
        parts.append(f"dtype={self.dtype.name}")
    if self.device.kind != "cpu":
        parts.append(f"device='{self.device}'")
    if self.requires_grad:
        parts.append("requires_grad=True" if self.node is None else f"computed_by={self.node.name}")
    return f"tensor({', '.join(parts)})"


Tensor.__array__ = _as_numpy_array
Tensor.__array_ufunc__ = None  # np.float32(2) * tensor is the tensor's business
Tensor.__repr__ = _repr  # type: ignore[method-assign, assignment]
Tensor.__float__ = lambda self: float(self.item())
Tensor.__int__ = lambda self: int(self.item())
Tensor.__index__ = lambda self: operator.index(self.item())
