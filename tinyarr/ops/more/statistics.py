"""Variance, standard deviation and norms over axes; half types are computed in float32. Floor 5."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from ... import dtypes, views
from ...autograd import gradients
from ...dtypes import Dtype
from ...tape import recording
from ...tensor import Tensor, require_tensors
from ...views import Shape
from .. import row
from ..create import full, ones_like
from ..elementwise import abs, astype, equal, maximum, not_equal, square, where
from ..elementwise_primitive import Elementwise, elementwise
from ..norm import LARGEST, SCALE, SMALLEST, STEEPEST
from ..primitive import Rule
from ..reduce import Axis, computed_wide, count_of, max, min, reduced_shape, sum
from ..rowwise import Rowwise
from ..scalar import cast, column_sum
from ..scalar import sqrt as scalar_sqrt
from ..scalar import where as scalar_where
from ..shape import reshape, slice_axes

MANY = 4  # rows from which a row expression serves: one goes through each row on one thread
WIDE = 512  # elements of such a row: compiled, shorter ones take up to 1.8 times as long as one sum over all
LARGE = 1 << 15  # elements from which passes through memory cost more than calls


def _has_rows(size: int, n: int) -> bool:
    """Returns whether a row expression is worth its while for rows of n elements."""
    return n >= WIDE and size >= LARGE and size >= MANY * n


class _SumOf:
    """The sum of an elementwise expression over axes, which goes through no memory: by rows, or by columns.

    Operands beside x have size 1 along the axes.
    """

    def __init__(self, name: str, function: Callable, inputs: Sequence[str]):
        self._elements = Elementwise(name, function, inputs, ("out",), derived=True)
        self._rows = Rowwise(f"{name}_of_rows", _then(row.sum, function), inputs, ("out",), derived=True)
        self._columns = Rowwise(f"{name}_of_columns", _then(column_sum, function), inputs, ("out",), derived=True)

    def __call__(self, x: Tensor, *others: Tensor, axes: Shape, keepdims: bool, **params: Any) -> Tensor:
        kept = x.shape[len(axes) :]
        if x.ndim - 1 in axes and _has_rows(x.size, x.shape[-1]):
            of_rows = self._rows(x, *others, **params)
            found = sum(of_rows, axis=axes[:-1], keepdims=True) if axes[:-1] else of_rows
        elif x.size >= LARGE and axes == tuple(range(len(axes))) and kept:
            sizes = math.prod(x.shape[: len(axes)]), math.prod(kept)
            found = self._columns(reshape(x, sizes), *(reshape(o, (1, sizes[1])) for o in others), **params)
        else:
            return sum(self._elements(x, *others, **params), axis=axes, keepdims=keepdims)
        return reshape(found, reduced_shape(x.shape, axes, keepdims))


def _then(fold: Callable, function: Callable) -> Callable:
    @functools.wraps(function)
    def folded(*operands, **params):
        return fold(function(*operands, **params))

    return folded


def _squared_distance(x, first, average, *, dtype):
    return square(cast((x - first) - average, dtype))


_sum_of_distances = _SumOf("distance", lambda x, first: x - first, ("x", "first"))
_sum_of_squared_distances = _SumOf("squared_distance", _squared_distance, ("x", "first", "average"))


def _average(x: Tensor, axes: Shape) -> tuple[Tensor, Tensor]:
    """The mean as a sum of two numbers: the first element along the axes, and how far the mean is from it.

    x less one and the other is exactly 0 where all elements are equal.
    """
    first = slice_axes(x.detach(), [slice(1) if a in axes else slice(None) for a in range(x.ndim)])
    return first, _sum_of_distances(x, first, axes=axes, keepdims=True) / (count_of("mean", x, axes) or math.nan)


def _centered(x):
    """(x - mean, whether the squares of that are good in its own dtype, their sum) of a row.

    They aren't where the mean is far from all elements, as its rounding then counts, nor where squares are lost.
    """
    mean = row.mean(x)
    squares = row.sum(square(x - mean))
    well = (mean * mean * row.size <= squares * STEEPEST**2) & (squares < LARGEST[4]) & (squares > 1 / LARGEST[4])
    first = row.at(x, 0)
    average = row.mean(x - first)
    return x - scalar_where(well, mean, first) - scalar_where(well, 0.0, average), well, squares


def _spread_of_row(x):
    distance, well, squares = _centered(x)
    again = row.sum(square(cast(distance, dtypes.float64)))
    return scalar_where(well, cast(squares, dtypes.float64), again)


_row_spread = Rowwise("row_spread", _spread_of_row, ("x",), ("out",), derived=True)


@_row_spread.gradient
def _row_spread_gradient(g, x):  # by hand: the mean's own share is 0
    return 2 * g * cast(_centered(x)[0], dtypes.float64)


def _as_rows(x: Tensor, axes: Shape) -> Tensor | None:
    """x (rows, n), to be reduced over its last axis; None for other axes, or rows too few for a thread to have some."""
    kept = x.ndim - len(axes)
    n = math.prod(x.shape[kept:])
    if axes != tuple(range(kept, x.ndim)) or not _has_rows(x.size, n):
        return None
    return reshape(x, (x.size // n, n))


def _spread(x: Tensor, axes: Shape, keepdims: bool, dtype: Dtype) -> Tensor:
    """The sum of squared distances from the mean over axes; they are squared in a dtype."""
    rows = _as_rows(x, axes)
    if rows is not None:
        return reshape(_row_spread(rows), reduced_shape(x.shape, axes, keepdims))
    return _sum_of_squared_distances(x, *_average(x, axes), axes=axes, keepdims=keepdims, dtype=dtype)


@computed_wide
def var(x: Tensor, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The mean squared distance from the mean; divided by n - correction (1 for the unbiased estimate)."""
    axes = views.normalize_axes("var", axis, x.ndim)
    divisor = count_of("var", x, axes) - correction
    squares = astype(_spread(x, axes, keepdims, x.dtype) / (divisor if divisor > 0 else 1), x.dtype, copy=False)
    return squares if divisor > 0 else full(squares.shape, math.nan, dtype=x.dtype, device=x.device)


@computed_wide
def std(x: Tensor, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The square root of `var`. Gradient 0 where all elements are equal."""
    axes = views.normalize_axes("std", axis, x.ndim)
    divisor = count_of("std", x, axes) - correction
    if divisor <= 0:
        return var(x, axis=axes, correction=correction, keepdims=keepdims)
    if x.dtype is dtypes.float32 and x.size:
        return astype(_root(_spread(x, axes, keepdims, dtypes.float64)), x.dtype) / math.sqrt(divisor)
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


_sum_of_squares = _SumOf("square_in_float64", lambda x: square(cast(x, dtypes.float64)), ("x",))


def _squares_of_row(x):
    squares = row.sum(square(x))
    well = (squares < LARGEST[4]) & (squares > 1 / LARGEST[4])
    return scalar_where(well, cast(squares, dtypes.float64), row.sum(square(cast(x, dtypes.float64))))


_row_squares = Rowwise("row_squares", _squares_of_row, ("x",), ("out",), derived=True)


@_row_squares.gradient
def _row_squares_gradient(g, x):
    return 2 * g * cast(x, dtypes.float64)


def _norm(x: Tensor, axes: Shape, keepdims: bool, order: float) -> Tensor:
    """The norm, with no power of an element overflowing or lost: squares of float32 are added in float64.

    Other elements are scaled first, and the norm is scaled back.
    """
    shape = reduced_shape(x.shape, axes, keepdims)
    if 0 in x.shape:
        return sum(x, axis=axes, keepdims=keepdims)
    if order == 2 and x.dtype is dtypes.float32:
        if x.ndim - 1 in axes and _has_rows(x.size, x.shape[-1]):
            total = sum(_row_squares(x), axis=axes)
        else:
            total = _sum_of_squares(x, axes=axes, keepdims=keepdims)
        return reshape(astype(_root(total), x.dtype), shape)
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
