"""Making tensors without data: filled, counted, copied. Floor 1."""

from __future__ import annotations

import math
from collections.abc import Iterable

from .. import dtypes, views
from ..device import Device, default_device
from ..dtypes import Dtype
from ..errors import ArgumentError
from ..tensor import Tensor, result_tensor
from . import scalar
from .elementwise import elementwise
from .elementwise_primitive import Elementwise
from .primitive import apply, executor
from .typing import dtype_constant


@elementwise
def _full(value, *, shape, dtype):
    return scalar.cast(value, dtype)


@elementwise
def _arange(start, step, *, shape, dtype):
    return scalar.cast(start + scalar.weak(scalar.index(0)) * step, dtype)


for _f in (_full, _arange):
    _f.no_gradient()


@elementwise
def _copy(x):
    return x


_full.moves = _copy.moves = True


def target(dtype, device, default: Dtype | str) -> tuple[Dtype, Device]:
    """The dtype and device to create with: the given ones, or `default` (a Dtype or a kind) and the default device."""
    dtype = (dtypes.DEFAULT[default] if isinstance(default, str) else default) if dtype is None else dtypes.dtype(dtype)
    return dtype, default_device() if device is None else Device(device)


def require_fit(operation: str, dtype: Dtype, *extremes) -> None:
    """Raises DtypeError where an integer dtype can't hold the smallest or largest number that would be written."""
    for extreme in extremes if dtype.kind in ("signed", "unsigned") else ():
        dtype_constant(operation, extreme if isinstance(extreme, int) else int(extreme), dtype)


def require_numbers(operation: str, **given: object) -> None:
    """Raises TypeError that names the first argument that is no Python number."""
    for name, value in given.items():
        if dtypes.scalar_kind(value) is None:
            raise TypeError(f"{operation}: {name} is {value!r}: it must be a Python number")


def with_gradient(x: Tensor, requires_grad: bool) -> Tensor:
    """x, made a leaf that gradients flow to where that is asked for."""
    if requires_grad:
        x.requires_grad = True
    return x


def full(shape: int | Iterable[int], fill_value, *, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor filled with a Python scalar; by default of the scalar's own dtype (bool, int64, float32)."""
    value = dtypes.python_scalar(fill_value)
    kind = dtypes.scalar_kind(value)
    if kind is None:
        raise ArgumentError(f"full: fill_value is {value!r} ({type(value).__name__}): use a Python bool, int or float")
    dtype, device = target(dtype, device, kind)
    shape = views.normalize_shape("full", shape)
    return with_gradient(apply(_full, value, shape=shape, dtype=dtype, device=device), requires_grad)


def zeros(shape: int | Iterable[int], *more: int, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor of zeros, float32 unless a dtype is given: `zeros((2, 3))` or `zeros(2, 3)`."""
    shape = views.normalize_shape("zeros", shape, *more)
    return full(shape, 0, dtype=dtypes.float32 if dtype is None else dtype, device=device, requires_grad=requires_grad)


Elementwise.zeros = staticmethod(zeros)  # gradients of outputs that are not used


def ones(shape: int | Iterable[int], *more: int, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor of ones, float32 unless a dtype is given: `ones((2, 3))` or `ones(2, 3)`."""
    shape = views.normalize_shape("ones", shape, *more)
    return full(shape, 1, dtype=dtypes.float32 if dtype is None else dtype, device=device, requires_grad=requires_grad)


def empty(shape: int | Iterable[int], *more: int, dtype=None, device=None, requires_grad: bool = False) -> Tensor:
    """A tensor with undefined contents, float32 unless a dtype is given: `empty((2, 3))` or `empty(2, 3)`."""
    dtype, device = target(dtype, device, "float")
    result = result_tensor(executor.get().empty(device, views.normalize_shape("empty", shape, *more), dtype))
    return with_gradient(result, requires_grad)


def full_like(x: Tensor, /, fill_value, *, dtype=None, device=None) -> Tensor:
    """A tensor of x's shape, dtype and device (unless given), filled with a Python scalar."""
    return full(x.shape, fill_value, dtype=x.dtype if dtype is None else dtype, device=device or x.device)


def zeros_like(x: Tensor, *, dtype=None, device=None) -> Tensor:
    """Zeros of x's shape, dtype and device (unless given)."""
    return full_like(x, 0, dtype=dtype, device=device)


def ones_like(x: Tensor, *, dtype=None, device=None) -> Tensor:
    """Ones of x's shape, dtype and device (unless given)."""
    return full_like(x, 1, dtype=dtype, device=device)


def empty_like(x: Tensor, *, dtype=None, device=None) -> Tensor:
    """Undefined contents in x's shape, dtype and device (unless given)."""
    return empty(x.shape, dtype=x.dtype if dtype is None else dtype, device=device or x.device)


def arange(start, stop=None, step=1, *, dtype=None, device=None) -> Tensor:
    """start, start + step, ... before stop; `arange(n)` counts from 0. int64 unless a float is among them."""
    if stop is None:
        start, stop = 0, start
    start, stop, step = map(dtypes.python_scalar, (start, stop, step))
    require_numbers("arange", start=start, stop=stop, step=step)
    if step == 0:
        raise ArgumentError("arange: step is 0: it must be positive or negative")
    if any(x - x != 0 for x in (start, stop, step)):
        raise ArgumentError(f"arange: start is {start}, stop is {stop}, step is {step}: they must be finite")
    kind = "float" if any(isinstance(x, float) for x in (start, stop, step)) else "signed"
    dtype, device = target(dtype, device, kind)
    count = max(math.ceil((stop - start) / step), 0)
    if count:
        require_fit("arange", dtype, start, start + (count - 1) * step)
    return apply(_arange, start, step, shape=(count,), dtype=dtype, device=device)


def copy(x: Tensor) -> Tensor:
    """The same elements in memory of their own, row-major. Gradients pass through."""
    return apply(_copy, x)


def contiguous(x: Tensor) -> Tensor:
    """x itself where it is row-major without gaps, else a copy that is."""
    return x if views.is_contiguous(x.array.view) else copy(x)
