"""Data in and out: tensors from Python and NumPy, their values back, other devices, and printing. Floor 5."""

from __future__ import annotations

import operator
import sys
from typing import Any

import numpy as np

from . import array, dtypes, eager, views
from .array import Array
from .device import Device
from .dtypes import Dtype
from .errors import ArgumentError, DtypeError, GradientError, ShapeError
from .ops.create import copy, target
from .ops.elementwise import astype
from .ops.primitive import executor
from .ops.typing import dtype_constant
from .tape import no_grad, recording
from .tensor import Tensor, result_tensor

DLPACK = {"cpu": 1, "cuda": 2}  # the standard's numbers of the kinds of devices

def initialize(self: Tensor, data: Any, *, dtype=None, device=None, requires_grad: bool = False) -> None:
    self.array = _array_of(data, dtype, device)
    self.grad = self.node = self._hooks = None
    self.node_output = 0
    self._requires_grad = self._has_wide_grad = False
    if requires_grad:
        self.requires_grad = True


def _array_of(data: Any, dtype: Any, device: Any) -> Array:
    """A copy of data on a device, in `dtype` or the one that follows from the data."""
    if isinstance(data, Tensor):
        moved = data.detach() if device is None else to(data.detach(), device)
        if dtype is not None and dtypes.dtype(dtype) is not moved.dtype:
            return astype(moved, dtype).array
        return copy(moved).array
    if hasattr(data, "__dlpack__") and not isinstance(data, np.ndarray):
        return _array_of(from_dlpack(data), dtype, device)
    try:
        values = np.asarray(data)
    except ValueError:
        raise ShapeError("Tensor: the nested lists have unequal lengths: every row must have the same shape") from None
    if values.dtype.kind not in "biufV" or values.dtype.names:
        raise DtypeError(f"Tensor: data holds {values.dtype}: use bool, integers or real floating numbers")
    values = _of_truth(values)
    natural = dtypes.dtype(values.dtype)
    if natural is dtypes.float64 and not hasattr(data, "dtype"):
        natural = dtypes.float32  # the default for Python's floats
    dtype, device = target(dtype, device, natural)
    if values.size and values.dtype.kind in "iu" and not hasattr(data, "dtype"):
        for extreme in (int(values.min()), int(values.max())):
            dtype_constant("Tensor", extreme, dtype)
    stored = array.empty(device, tuple(values.shape), dtype)
    with np.errstate(all="ignore"):  # what overflows becomes infinite, as in astype, without NumPy's warnings
        values = values.astype(dtype.numpy)
    device.backend.from_numpy(values, stored)
    executor.get().constant(stored)
    return stored


def _of_truth(values: np.ndarray) -> np.ndarray:
    """The array itself; of bool bytes that are neither 0 nor 1, which only foreign memory has, a copy with 1."""
    if values.dtype != bool or not (values.view(np.uint8) > 1).any():
        return values
    return values.view(np.uint8) != 0


def asarray(data: Any, /, *, dtype=None, device=None, copy: bool | None = None) -> Tensor:
    """`data` as a tensor: itself where it is one of that dtype and device already, else `Tensor(data, ...)`.

    With copy=True always a copy. With copy=False raises ArgumentError where one would be needed.
    """
    if isinstance(data, Tensor) and copy is not True:
        same_dtype = dtype is None or dtypes.dtype(dtype) is data.dtype
        if same_dtype and (device is None or Device(device) is data.device):
            return data
    if copy is False:
        raise ArgumentError("asarray: copy is False, but only a tensor of that dtype and device needs no copy")
    return Tensor(data, dtype=dtype, device=device)


def from_dlpack(x: Any, /, *, device=None, copy: bool | None = None) -> Tensor:
    """A tensor over the memory of another library's array, which both then share; a copy with `copy` True.

    Takes any object with `__dlpack__`, whose memory is that of the CPU or of an NVIDIA GPU.
    """
    if isinstance(x, Tensor):
        return asarray(x, device=device, copy=copy)
    if not hasattr(x, "__dlpack__"):
        raise ArgumentError(f"from_dlpack: {type(x).__name__} came: it must be an array that offers __dlpack__")
    kind, number = x.__dlpack_device__()
    if kind == DLPACK["cuda"]:
        shared = result_tensor(Device(f"cuda:{number}").backend.from_dlpack(x))
        return asarray(shared, device=device, copy=copy)
    try:
        values = np.from_dlpack(x)
    except (BufferError, TypeError, RuntimeError) as error:
        raise ArgumentError(f"from_dlpack: {error}: copy it to the CPU, in a dtype that NumPy has") from None
    if _of_truth(values) is not values:
        if copy is False:
            raise ArgumentError("from_dlpack: copy is False, but bytes of bool are neither 0 nor 1: allow a copy")
        copy = True
    if copy is True or not values.flags.writeable or values.dtype.kind not in "biuf":
        return Tensor(values, device=device)
    shared = result_tensor(_over(values))
    return shared if device is None else to(shared, device)


def _over(values: np.ndarray) -> Array:
    """An Array over a NumPy array's own memory, whatever its strides."""
    itemsize = values.dtype.itemsize
    lowest = values[tuple(slice(None, None, -1 if s < 0 else 1) for s in values.strides)]
    reach = sum((n - 1) * abs(s) for n, s in zip(values.shape, values.strides, strict=True)) if values.size else 0
    flat = np.lib.stride_tricks.as_strided(lowest, (reach // itemsize + 1 if values.size else 0,), (itemsize,))
    storage = array.Storage(flat, flat.nbytes, Device("cpu"))
    offset = sum((n - 1) * -s for n, s in zip(values.shape, values.strides, strict=True) if s < 0 and values.size)
    strides = tuple(s // itemsize for s in values.strides)
    return Array(storage, dtypes.dtype(values.dtype), values.shape, strides, offset // itemsize)


def to_dlpack(self: Tensor, *, stream=None, max_version=None, dl_device=None, copy=None):
    """The standard's way out: a capsule over the tensor's memory, without a copy unless `copy` is True."""
    if self.requires_grad:
        raise BufferError("__dlpack__: the tensor requires a gradient, which the capsule would lose: detach() it")
    executor.get().observe(self.array)
    if self.device.kind == "cuda":
        options = {"stream": stream, "max_version": max_version, "dl_device": dl_device, "copy": copy}
        return self.device.backend.dlpack(self.array, **options)
    if self.device.kind != "cpu":
        raise BufferError(f"__dlpack__: the tensor is on {self.device}, which has no memory")
    if self.dtype.numpy.kind == "V" or self.dtype in (dtypes.bfloat16, *dtypes.FLOAT8):
        raise BufferError(f"__dlpack__: NumPy, which makes the capsule, can't offer {self.dtype.name}: use astype")
    return self.array.data.__dlpack__(stream=stream, max_version=max_version, dl_device=dl_device, copy=copy)


def dlpack_device(self: Tensor) -> tuple[int, int]:
    if self.device.kind not in DLPACK:
        raise BufferError(f"__dlpack_device__: the tensor is on {self.device}, which has no memory")
    return DLPACK[self.device.kind], self.device.index


def to_device(self: Tensor, device: str | Device, /, *, stream=None) -> Tensor:
    """The standard's name of `to`."""
    return to(self, device)


def array_namespace(self: Tensor, /, *, api_version: str | None = None):
    """The module tinyarr, whose functions follow the Array API standard 2024.12."""
    if api_version not in (None, "2021.12", "2022.12", "2023.12", "2024.12"):
        raise ArgumentError(f"__array_namespace__: api_version is {api_version!r}: 2024.12 is the newest known")
    return sys.modules["tinyarr"]


def to(x: Tensor, device: str | Device | Dtype | None = None, dtype: Dtype | None = None) -> Tensor:
    """The tensor on another device, in another dtype (in place of the device, or after it), or both; else itself.

    A copy on another device has no history.
    """
    if isinstance(device, Dtype):
        return astype(x, device, copy=False)
    if dtype is not None:
        x = astype(x, dtype, copy=False)
    device = x.device if device is None else Device(device)
    if x.device is device:
        return x
    if x.requires_grad and recording.get():
        raise GradientError("to: the tensor requires a gradient, which does not cross devices: detach() it first")
    executor.get().observe(x.array)
    moved = array.empty(device, x.shape, x.dtype)
    if device.kind != "meta":
        device.backend.from_numpy(x.array.data if x.device.kind == "cpu" else to_numpy(x), moved)
    return result_tensor(moved)


def to_numpy(x: Tensor) -> np.ndarray:
    """A fresh np.ndarray with the elements: writing into it does not change the tensor."""
    values = x.array
    executor.get().observe(values)
    return values.device.backend.to_numpy(values)


def copy_to_host_async(x: Tensor) -> None:
    """Begins to copy the elements to the host's memory, without waiting.

    A later item(), tolist() or numpy() then waits for this copy alone, and not for what was launched after it. If the
    tensor is written in between, its elements are copied anew. The copy is kept as long as the tensor's memory. On the
    CPU there is nothing to do. Raises TraceError in a function that is being compiled, DeviceError on `meta`.
    """
    executor.get().observe(x.array)
    x.device.backend.copy_to_host_async(x.array)


def tolist(x: Tensor) -> Any:
    """The elements as Python numbers in nested lists; a number for a 0-d tensor."""
    return to_numpy(x).tolist()


def numel(x: Tensor) -> int:
    """Number of elements, which x.size is too."""
    return int(x.size)


def item(x: Tensor) -> Any:
    """The one element as a Python number. Raises ShapeError where there are more or none."""
    if views.size(x.array.shape) != 1:
        raise ShapeError(f"item: the tensor has shape {x.shape}: only a single element converts to a Python number")
    return to_numpy(x).item()


def as_numpy_array(self: Tensor, dtype=None, copy=None) -> np.ndarray:
    """NumPy's conversion protocol. A tensor that is part of a gradient must be detached first, as the graph is lost."""
    if self.requires_grad:
        raise GradientError(
            "np.asarray: the tensor requires a gradient, which NumPy would lose: use x.detach() or x.numpy()"
        )
    if copy is False:
        raise ValueError("np.asarray: copy is False: a tensor's values can only be copied out")
    values = to_numpy(self)
    return values if dtype is None else values.astype(dtype)


def as_index(self: Tensor) -> int:
    if self.dtype.kind not in ("signed", "unsigned"):
        raise DtypeError(f"index: the tensor has dtype {self.dtype.name}: only an integer can be an index")
    return operator.index(self.item())


def reduced(self: Tensor) -> tuple:
    """Returns the parts that pickle keeps: the values, not the storage (whose memory belongs to a pool) nor `.grad`."""
    if self.node is not None:
        raise GradientError("copy, pickle: the tensor is a result of recorded operations: use x.detach()")
    return _restore, (type(self), to_numpy(self), self.device, self.requires_grad, self._has_wide_grad)


def copied(self: Tensor, memo: dict | None = None) -> Tensor:
    """Returns the copy of copy.copy and copy.deepcopy: equal elements in new memory, without history or `.grad`."""
    if self.node is not None:
        raise GradientError("copy, pickle: the tensor is a result of recorded operations: use x.detach()")
    with no_grad():
        result = result_tensor(copy(self).array, type(self))
    result.requires_grad = self.requires_grad
    result._has_wide_grad = self._has_wide_grad
    return result


def _restore(
    kind: type[Tensor], values: np.ndarray, device: Device, requires_grad: bool, has_wide_grad: bool = False
) -> Tensor:
    result = result_tensor(_array_of(values, None, device), kind)
    result.requires_grad = requires_grad
    result._has_wide_grad = has_wide_grad
    return result


def shown(self: Tensor) -> str:
    if self.device.kind == "meta" or executor.get() is not eager:
        body = f"shape={self.shape}"
    else:
        body = np.array2string(to_numpy(self), separator=", ", prefix="Tensor(", threshold=200, precision=4)
    parts = [body]
    if not self.size and self.ndim > 1:
        parts.append(f"shape={self.shape}")
    if self.dtype not in dtypes.DEFAULT.values():
        parts.append(f"dtype={self.dtype.name}")
    if self.device.kind != "cpu":
        parts.append(f"device='{self.device}'")
    if self.requires_grad:
        parts.append("requires_grad=True")
    return f"Tensor({', '.join(parts)})"


def formatted(self: Tensor, spec: str) -> str:
    """Returns the one element in a format such as .3f; without a format the tensor's text."""
    return format(self.item(), spec) if spec else str(self)


def rounded(self: Tensor, digits: int | None = None) -> float:
    """The one element, rounded."""
    return round(self.item(), digits)
