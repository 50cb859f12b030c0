"""Reductions over axes: sum, max, min, argmax, argmin, and mean, var, std, softmax and logsumexp composed of them.

`axis` is an int, a tuple of ints, or None for all axes; `keepdims` leaves reduced axes with size 1. Sums of half
types accumulate in float32 and return their own dtype.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

from .. import dtypes, views
from ..errors import ShapeError
from ..tensor import Tensor, method, require_tensors
from ..views import Shape
from .create import full
from .elementwise import astype, equal, exp, log, sqrt, square, where
from .primitive import Primitive, apply
from .shape import broadcast_to, reshape

Axis = int | Sequence[int] | None


def _reduced(shape: Shape, axes: Shape, keepdims: bool) -> Shape:
    if keepdims:
        return tuple(1 if i in axes else n for i, n in enumerate(shape))
    return tuple(n for i, n in enumerate(shape) if i not in axes)


def _infer_sum(shapes, dtypes_, *, axis, keepdims):
    return [(_reduced(shapes[0], axis, keepdims), dtypes_[0])]


def _infer_arg_extremum(shapes, dtypes_, *, axis, keepdims):
    return [(_reduced(shapes[0], (axis,), keepdims), dtypes.int64)]


_sum = Primitive("sum", _infer_sum)
_max = Primitive("max", _infer_sum)
_min = Primitive("min", _infer_sum)
_argmax = Primitive("argmax", _infer_arg_extremum).no_gradient()
_argmin = Primitive("argmin", _infer_arg_extremum).no_gradient()


def _restored(x: Tensor, shape: Shape, axes: Shape) -> Tensor:
    """A reduced tensor (with or without keepdims) broadcast back to the shape that was reduced."""
    return broadcast_to(reshape(x, _reduced(shape, axes, keepdims=True)), shape)


@_sum.gradient
def _sum_gradient(g, *, axis, shapes):
    return _restored(g, shapes[0], axis)


@_max.gradient
@_min.gradient
def _extremum_gradient(g, x, out, *, axis):
    """Split evenly among the elements that equal the extremum; a NaN result passes its gradient to nothing."""
    attained = equal(x, _restored(out, x.shape, axis))
    count = astype(sum(attained, axis=axis, keepdims=True), g.dtype)
    return where(attained, _restored(g, x.shape, axis) / count, 0)


@method()
def sum(x: Tensor, /, axis: Axis = None, *, dtype=None, keepdims: bool = False) -> Tensor:
    """The sum over axes. bool and small integers are summed as int64 (unsigned as uint64), unless `dtype` is given."""
    require_tensors("sum", x=x)
    if dtype is None and not x.dtype.is_float:
        dtype = dtypes.uint64 if x.dtype.kind == "unsigned" else dtypes.int64
    if dtype is not None:
        x = astype(x, dtype, copy=False)
    return apply(_sum, x, axis=views.normalize_axes("sum", axis, x.ndim), keepdims=keepdims)


def _extremum(operation: str, primitive: Primitive, x: Tensor, axis: Axis, keepdims: bool) -> Tensor:
    """max or min on behalf of `operation`, which errors name."""
    require_tensors(operation, x=x)
    axes = views.normalize_axes(operation, axis, x.ndim)
    _require_elements(operation, x, axes)
    return apply(primitive, x, axis=axes, keepdims=keepdims)


def _require_elements(operation: str, x: Tensor, axes: Shape) -> None:
    if any(x.shape[a] == 0 for a in axes):
        raise ShapeError(f"{operation}: x has shape {x.shape}, axis is {axes}: an empty axis has no extreme element")


@method()
def max(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The largest element, NaN if there is one; ties split the gradient evenly. Raises ShapeError for empty axes."""
    return _extremum("max", _max, x, axis, keepdims)


@method()
def min(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The smallest element, NaN if there is one; ties split the gradient evenly. Raises ShapeError for empty axes."""
    return _extremum("min", _min, x, axis, keepdims)


def _arg(primitive: Primitive, x: Tensor, axis: int | None, keepdims: bool) -> Tensor:
    require_tensors(primitive.name, x=x)
    if axis is None:
        found = _arg(primitive, reshape(x, (x.size,)), 0, False)
        return reshape(found, (1,) * x.ndim) if keepdims else found
    axis = views.normalize_axis(primitive.name, axis, x.ndim)
    _require_elements(primitive.name, x, (axis,))
    return apply(primitive, x, axis=axis, keepdims=keepdims)


@method()
def argmax(x: Tensor, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The position of the first largest element along one axis (None: in the flattened tensor); int64."""
    return _arg(_argmax, x, axis, keepdims)


@method()
def argmin(x: Tensor, /, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
    """The position of the first smallest element along one axis (None: in the flattened tensor); int64."""
    return _arg(_argmin, x, axis, keepdims)


def sum_to(x: Tensor, shape: Shape, *, operation: str = "sum_to") -> Tensor:
    """x summed over the axes along which `shape` was broadcast to x's shape: the transpose of broadcast_to."""
    if x.shape == shape:
        return x
    extra = x.ndim - len(shape)
    if extra < 0 or any(n not in (1, m) for n, m in zip(shape, x.shape[extra:], strict=False)):
        raise ShapeError(
            f"{operation}: the gradient has shape {x.shape}, its operand {shape}: it must broadcast to that"
        )
    axes = tuple(range(extra)) + tuple(extra + i for i, n in enumerate(shape) if n == 1 and x.shape[extra + i] != 1)
    return reshape(apply(_sum, x, axis=axes, keepdims=False), shape)


def _count(operation: str, x: Tensor, axis: Axis) -> int:
    return math.prod(x.shape[a] for a in views.normalize_axes(operation, axis, x.ndim))


def _wide(function):
    """Decorator: integers become float32, and half types are computed in float32 and rounded once, at the end."""

    @functools.wraps(function)
    def widened(x: Tensor, /, *args, **kwargs) -> Tensor:
        require_tensors(function.__name__, x=x)
        dtype = x.dtype if x.dtype.is_float else dtypes.float32
        return astype(function(astype(x, dtype.compute, copy=False), *args, **kwargs), dtype, copy=False)

    return widened


@method()
@_wide
def mean(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The arithmetic mean over axes; of integers in float32. NaN over an empty axis."""
    count = _count("mean", x, axis)
    total = sum(x, axis=axis, keepdims=keepdims)
    return total / count if count else full(total.shape, math.nan, dtype=x.dtype, device=x.device)


@method()
@_wide
def var(x: Tensor, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The mean squared distance from the mean; divided by n - correction (1 for the unbiased estimate)."""
    divisor = _count("var", x, axis) - correction
    squares = sum(square(x - mean(x, axis=axis, keepdims=True)), axis=axis, keepdims=keepdims)
    return squares / divisor if divisor > 0 else full(squares.shape, math.nan, dtype=x.dtype, device=x.device)


@method()
@_wide
def std(x: Tensor, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The square root of `var`."""
    axis = views.normalize_axes("std", axis, x.ndim)
    return sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))


@method()
@_wide
def logsumexp(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes, without overflow."""
    largest = _extremum("logsumexp", _max, x, axis, keepdims=True).detach()
    shift = where(equal(abs(largest), math.inf), 0, largest)
    total = log(sum(exp(x - shift), axis=axis, keepdims=True)) + shift
    axes = views.normalize_axes("logsumexp", axis, x.ndim)
    return total if keepdims else reshape(total, _reduced(x.shape, axes, keepdims=False))


@method()
@_wide
def softmax(x: Tensor, /, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis, without overflow."""
    e = exp(x - _extremum("softmax", _max, x, axis, keepdims=True).detach())
    return e / sum(e, axis=axis, keepdims=True)


@method()
@_wide
def log_softmax(x: Tensor, /, axis: int = -1) -> Tensor:
    """log(softmax(x)) along an axis, exact where softmax underflows."""
    shifted = x - _extremum("log_softmax", _max, x, axis, keepdims=True).detach()
    return shifted - log(sum(exp(shifted), axis=axis, keepdims=True))
