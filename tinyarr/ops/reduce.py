"""Reductions over axes: sum, prod, max, min, argmax, argmin, and any, all and count_nonzero composed of them. Floor 1.

`axis` is an int, a tuple of ints, or None for all axes; `keepdims` leaves reduced axes with size 1. Half types
accumulate in float32 and return their own dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import ParamSpec

from .. import dtypes, views
from ..errors import ShapeError
from ..tensor import Tensor, require_tensors
from ..views import Shape
from .create import full
from .elementwise import astype, equal, not_equal, where
from .primitive import Primitive, apply
from .shape import broadcast_to, reshape

Axis = int | Sequence[int] | None


def reduced_shape(shape: Shape, axes: Shape, keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def _infer_sum(shapes, dtypes_, *, axis, keepdims):
    return [(reduced_shape(shapes[0], axis, keepdims), dtypes_[0])]


def _infer_arg_extremum(shapes, dtypes_, *, axis, keepdims):
    return [(reduced_shape(shapes[0], (axis,), keepdims), dtypes.int64)]


_sum = Primitive("sum", _infer_sum, reads="runs", reduces=True)
_prod = Primitive("prod", _infer_sum, reads="runs", reduces=True)  # its gradient takes scans: see scan.py
_max = Primitive("max", _infer_sum, reads="runs", reduces=True)
_min = Primitive("min", _infer_sum, reads="runs", reduces=True)
_argmax = Primitive("argmax", _infer_arg_extremum).no_gradient()
_argmin = Primitive("argmin", _infer_arg_extremum).no_gradient()


def restored(x: Tensor, shape: Shape, axes: Shape) -> Tensor:
    """A reduced tensor (with or without keepdims) broadcast back to the shape that was reduced."""
    return broadcast_to(reshape(x, reduced_shape(shape, axes, keepdims=True)), shape)


@_sum.gradient
def _sum_gradient(g, *, axis, shapes):
    return restored(g, shapes[0], axis)


@_max.gradient
@_min.gradient
def _extremum_gradient(g, x, out, *, axis):
    """Split evenly among the elements that equal the extremum; a NaN result passes its gradient to nothing."""
    attained = equal(x, restored(out, x.shape, axis))
    count = sum(attained, axis=axis, keepdims=True, dtype=g.dtype)
    return where(attained, restored(g, x.shape, axis) / count, 0)


def accumulator(x: Tensor, dtype) -> Tensor:
    """x in the dtype in which it is summed: the one given, or its own, but int64 (uint64) for bool and integers."""
    if dtype is None and not x.dtype.is_float:
        dtype = dtypes.uint64 if x.dtype.kind == "unsigned" else dtypes.int64
    return x if dtype is None else astype(x, dtype, copy=False)


def sum(x: Tensor, /, axis: Axis = None, *, dtype=None, keepdims: bool = False) -> Tensor:
    """The sum over axes. bool and integers are summed as int64 (unsigned ones as uint64), unless `dtype` is given."""
    require_tensors("sum", x=x)
    axes = views.normalize_axes("sum", axis, x.ndim)
    return apply(_sum, accumulator(x, dtype), axis=axes, keepdims=keepdims)


def prod(x: Tensor, /, axis: Axis = None, *, dtype=None, keepdims: bool = False) -> Tensor:
    """The product over axes, 1 over an empty one; dtypes as for sum. Where elements are 0 the gradient is right too."""
    require_tensors("prod", x=x)
    axes = views.normalize_axes("prod", axis, x.ndim)
    return apply(_prod, accumulator(x, dtype), axis=axes, keepdims=keepdims)


def count_nonzero(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Returns the number of elements that are not 0 (NaN counts), int64."""
    require_tensors("count_nonzero", x=x)
    return sum(not_equal(x, 0), axis=axis, keepdims=keepdims)


def any(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Returns whether an element is true (not 0), bool; False over an empty axis."""
    require_tensors("any", x=x)
    return not_equal(count_nonzero(x, axis=axis, keepdims=keepdims), 0)


def all(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """Returns whether all elements are true (not 0), bool; True over an empty axis."""
    require_tensors("all", x=x)
    return equal(sum(equal(x, 0), axis=axis, keepdims=keepdims), 0)


def extremum(operation: str, kind: str, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    """The 'max' or 'min' on behalf of `operation`, which errors name."""
    require_tensors(operation, x=x)
    axes = views.normalize_axes(operation, axis, x.ndim)
    require_elements(operation, x, axes)
    return apply(_max if kind == "max" else _min, x, axis=axes, keepdims=keepdims)


def require_elements(operation: str, x: Tensor, axes: Shape) -> None:
    if 0 in [x.shape[a] for a in axes]:
        raise ShapeError(f"{operation}: x has shape {x.shape}, axis is {axes}: an empty axis has no extreme element")


def max(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The largest element, NaN if there is one; ties split the gradient evenly. Raises ShapeError for empty axes."""
    return extremum("max", "max", x, axis, keepdims)


def min(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The smallest element, NaN if there is one; ties split the gradient evenly. Raises ShapeError for empty axes."""
    return extremum("min", "min", x, axis, keepdims)


def _arg(primitive: Primitive, x: Tensor, axis: int | None, keepdims: bool) -> Tensor:
    require_tensors(primitive.name, x=x)
    if axis is None:
        found = _arg(primitive, reshape(x, (x.size,)), 0, False)
        return reshape(found, (1,) * x.ndim) if keepdims else found
    axis = views.normalize_axis(primitive.name, axis, x.ndim)
    require_elements(primitive.name, x, (axis,))
    return apply(primitive, x, axis=axis, keepdims=keepdims)


def argmax(x: Tensor, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The position of the first largest element along one axis (None: in the flattened tensor); int64."""
    return _arg(_argmax, x, axis, keepdims)


def argmin(x: Tensor, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The position of the first smallest element along one axis (None: in the flattened tensor); int64."""
    return _arg(_argmin, x, axis, keepdims)


def sum_to(x: Tensor, shape: Shape, *, operation: str = "sum_to") -> Tensor:
    """x summed over the axes along which `shape` was broadcast to x's shape: the transpose of broadcast_to."""
    if x.shape == shape:
        return x
    extra = x.ndim - len(shape)
    if extra < 0 or [n for n, m in zip(shape, x.shape[extra:], strict=False) if n not in (1, m)]:
        raise ShapeError(
            f"{operation}: the gradient has shape {x.shape}, its operand {shape}: it must broadcast to that"
        )
    axes = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 and x.shape[extra + i] != 1)
    return reshape(apply(_sum, x, axis=axes, keepdims=False), shape)


P = ParamSpec("P")


def computed_wide(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorator: integers become float32, and half types are computed in float32 and rounded once, at the end."""

    @functools.wraps(function)
    def widened(x: Tensor, /, *args, **kwargs) -> Tensor:
        require_tensors(function.__name__, x=x)
        dtype = x.dtype if x.dtype.is_float else dtypes.float32
        result = function(astype(x, dtype.compute, copy=False), *args, **kwargs)  # type: ignore[arg-type]
        return astype(result, dtype, copy=False)

    return widened  # type: ignore[return-value]


def count_of(operation: str, x: Tensor, axis: Axis) -> int:
    return math.prod(x.shape[a] for a in views.normalize_axes(operation, axis, x.ndim))


@computed_wide
def mean(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The arithmetic mean over axes; of integers in float32. NaN over an empty axis."""
    count = count_of("mean", x, axis)
    total = sum(x, axis=axis, keepdims=keepdims)
    return total / count if count else full(total.shape, math.nan, dtype=x.dtype, device=x.device)
