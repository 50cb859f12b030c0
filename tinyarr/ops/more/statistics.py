"""Variance, standard deviation and norms over axes; half types are computed in float32. Floor 5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ... import dtypes, views
from ...autograd import gradients
from ...tape import recording
from ...tensor import Tensor, require_tensors
from ...views import Shape
from ..create import full, ones_like
from ..elementwise import abs, astype, equal, maximum, not_equal, square, where
from ..elementwise_primitive import Elementwise, elementwise
from ..norm import LARGEST, SCALE, SMALLEST
from ..primitive import Rule
from ..reduce import Axis, computed_wide, count_of, max, mean, min, reduced_shape, sum
from ..scalar import cast
from ..scalar import sqrt as scalar_sqrt
from ..shape import reshape, slice_axes


@elementwise
def _squared_distance(x, first, average):
    return square((x - first) - average)


def _average(x: Tensor, axes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The mean as a sum of two numbers: the first element along the axes, and how far the mean is from it.

    x less one and the other is exactly 0 where all elements are equal.
    """
    first = slice_axes(x.detach(), [slice(1) if a in axes else slice(None) for a in range(x.ndim)])
    return first, mean(x - first, axis=axes, keepdims=True)


@computed_wide
def var(x: Tensor, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The mean squared distance from the mean; divided by n - correction (1 for the unbiased estimate)."""
    axes = views.normalize_axes("var", axis, x.ndim)
    divisor = count_of("var", x, axes) - correction
    squares = sum(_squared_distance(x, *_average(x, axes)), axis=axes, keepdims=keepdims)
    return squares / divisor if divisor > 0 else full(squares.shape, math.nan, dtype=x.dtype, device=x.device)


@computed_wide
def std(x: Tensor, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The square root of `var`. Gradient 0 where all elements are equal."""
    axes = views.normalize_axes("std", axis, x.ndim)
    divisor = count_of("std", x, axes) - correction
    if divisor <= 0:
        return var(x, axis=axes, correction=correction, keepdims=keepdims)
    first, average = _average(x, axes)
    return vector_norm(x - first - average, axis=axes, keepdims=keepdims) / math.sqrt(divisor)


@elementwise
def _scale_of(largest, *, limit, scale, dtype):
    small = (largest > 0) & (largest <= 1 / limit)
    return cast(where(largest >= limit, 1 / scale, where(small, scale, 1.0)), dtype)


_scale_of.no_gradient()


def scale_of(largest: Tensor) -> Tensor:
    """1, or the power of 2 with which the squares of numbers up to `largest` neither overflow nor are lost."""
    size = largest.dtype.itemsize
    return _scale_of(largest, limit=LARGEST[size], scale=SCALE[size], dtype=largest.dtype)


class _Root(Elementwise):
    """The square root of a sum of squares, whose gradient is taken by its limit at 0.

    There that of f(sqrt(t)) is 0 if f is a plain number times the root (a norm), and f'' / 2 if f is even (its square),
    which shows once the gradient g = f' is a function of the root itself.
    """

    def rule(self, call, needs):
        def backward(call, needs, gs, values):
            (g,), (out,) = gs, values
            slope = where(equal(out, 0), 0, 0.5 / where(equal(out, 0), 1, out))
            if recording.get() and g.requires_grad:
                (curvature,) = gradients([g], [out], [ones_like(g)], create_graph=True)
                if curvature is not None:
                    return [where(equal(out, 0), 0.5 * curvature, g * slope)]
            return [g * slope]

        return Rule(((True, 0),), backward)


_root = _Root("root", scalar_sqrt, ("total",), ("out",), derived=True)


def vector_norm(
    x: Tensor, /, *, axis: int | Sequence[int] | None = None, keepdims: bool = False, ord: float = 2
) -> Tensor:
    """sum(|x|**ord)**(1/ord) over axes; the largest |x| for inf, the smallest for -inf, how many are not 0 for 0.

    The gradient of a norm that is 0 is 0.
    """
    require_tensors("vector_norm", x=x)
    if not x.dtype.is_float:
        x = astype(x, dtypes.float32)
    wide = astype(x, x.dtype.compute, copy=False)
    axes = views.normalize_axes("vector_norm", axis, x.ndim)
    over: Any = {"axis": axes, "keepdims": keepdims}
    if ord == math.inf:
        found = max(abs(wide), **over)
    elif ord == -math.inf:
        found = min(abs(wide), **over)
    elif ord == 0:
        found = sum(astype(not_equal(wide, 0), wide.dtype), **over)
    elif ord == 1:
        found = sum(abs(wide), **over)
    else:
        found = _norm(wide, axes, keepdims, float(ord))
    return astype(found, x.dtype, copy=False)


@elementwise
def _wide_square(x):
    return square(cast(x, dtypes.float64))


def _norm(x: Tensor, axes: Shape, keepdims: bool, order: float) -> Tensor:
    """The norm, with no power of an element overflowing or lost: squares of float32 are added in float64.

    Other elements are scaled first, and the norm is scaled back.
    """
    shape = reduced_shape(x.shape, axes, keepdims)
    if 0 in x.shape:
        return sum(x, axis=axes, keepdims=keepdims)
    if order == 2 and x.dtype is dtypes.float32:
        return astype(_root(sum(_wide_square(x), axis=axes, keepdims=keepdims)), x.dtype)
    values = x.detach()
    largest = maximum(max(values, axis=axes, keepdims=True), -min(values, axis=axes, keepdims=True))
    if order == 2:
        scale = scale_of(largest)
        root = _root(sum(square(x * scale), axis=axes, keepdims=keepdims))
    else:
        largest = where(equal(largest, 0) | equal(largest, math.inf), 1, largest)
        scale = 1 / maximum(largest, SMALLEST[x.dtype.itemsize])
        total = sum(abs(x * scale) ** order, axis=axes, keepdims=keepdims)
        # At 0 the root has no derivative: it is taken of 1 there, and its result not used.
        safe = where(equal(total, 0), 1, total)
        root = where(equal(total, 0), total, safe ** (1 / order))
    return root / reshape(scale, shape)
