"""Sorting and searching. NaN counts as the largest number. Floor 5."""

from __future__ import annotations

import math

from ... import dtypes, views
from ...errors import ArgumentError, ShapeError, describe
from ...tensor import Tensor, require_tensors
from ..create import arange, full
from ..elementwise import isnan, less, less_equal, logical_and, logical_not, logical_or, where
from ..index import take, take_along_axis
from ..primitive import Primitive, apply
from ..reduce import count_nonzero
from ..shape import reshape, slice_axes

_argsort = Primitive(
    "argsort", lambda shapes, types, *, axis, descending: [(shapes[0], dtypes.int64)]
).no_gradient()
_nonzero = Primitive("nonzero", lambda shapes, types, *, count: [((count,), dtypes.int64)]).no_gradient()


def argsort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The positions along an axis, in the order that sorts it, int64. Equal elements keep their order, always."""
    require_tensors("argsort", x=x)
    return apply(_argsort, x, axis=views.normalize_axis("argsort", axis, x.ndim), descending=descending)


def sort(x: Tensor, /, *, axis: int = -1, descending: bool = False, stable: bool = True) -> Tensor:
    """The elements sorted along an axis; each gradient goes back to where its element came from."""
    require_tensors("sort", x=x)
    return take_along_axis(x, argsort(x, axis=axis, descending=descending), axis=axis)


def topk(x: Tensor, /, k: int, *, axis: int = -1, largest: bool = True) -> tuple[Tensor, Tensor]:
    """The k largest (or smallest) elements along an axis, sorted, and their positions. Of equal ones the first."""
    require_tensors("topk", x=x)
    axis = views.normalize_axis("topk", axis, x.ndim)
    if not 0 <= k <= x.shape[axis]:
        raise ArgumentError(f"topk: k is {k}, axis {axis} of x has size {x.shape[axis]}: k must lie between")
    order = argsort(x, axis=axis, descending=largest)
    indices = slice_axes(order, [slice(k) if a == axis else slice(None) for a in range(x.ndim)])
    return take_along_axis(x, indices, axis=axis), indices


def searchsorted(x1: Tensor, x2: Tensor, /, *, side: str = "left", sorter: Tensor | None = None) -> Tensor:
    """Returns the position of each element of x2 in the sorted x1 that keeps it sorted; int64 of x2's shape.

    x1 is (N,), or (..., N) where x2 is (..., M): then each row is searched for the elements in its own row of x2.
    side: before ('left') or behind ('right') elements that are equal. sorter: the positions that sort x1.
    """
    require_tensors("searchsorted", x1=x1, x2=x2)
    if side not in ("left", "right"):
        raise ArgumentError(f"searchsorted: side is {side!r}: use 'left' or 'right'")
    if x1.ndim == 0 or (x1.ndim > 1 and x1.shape[:-1] != x2.shape[:-1]):
        raise ShapeError(f"searchsorted: {describe('x1', x1)}, {describe('x2', x2)}: they must be (N,) and any, or "
                         "(..., N) and (..., M)")
    if sorter is not None:
        x1 = take_along_axis(x1, sorter)
    if x1.ndim == 1:
        return reshape(_searched(x1, reshape(x2, (x2.size,)), side), x2.shape)
    return _searched(x1, x2, side)


def _searched(x1: Tensor, x2: Tensor, side: str) -> Tensor:
    """The positions of x2 (..., M) in x1 (..., N)."""
    *rows, n = x1.shape
    flat, first = reshape(x1, (x1.size,)), reshape(arange(math.prod(rows), device=x1.device) * n, (*rows, 1))
    low, high = (full(x2.shape, m, dtype=dtypes.int64, device=x2.device) for m in (0, n))
    for _ in range(n.bit_length()):  # halves the n + 1 places until one is left
        middle = (low + high) // 2
        found = take(flat, first + middle.clip(0, n - 1))
        before = _ordered(found, x2) if side == "left" else logical_not(_ordered(x2, found))
        before = logical_and(before, low < high)
        low, high = where(before, middle + 1, low), where(before, high, middle)
    return low


def _ordered(x: Tensor, y: Tensor) -> Tensor:
    """x < y, NaN being the largest."""
    return logical_or(less(x, y), logical_and(isnan(y), less_equal(x, x))) if y.dtype.is_float else less(x, y)


def nonzero(x: Tensor, /) -> tuple[Tensor, ...]:
    """The positions of the elements that are not 0, one int64 tensor an axis, in row-major order.

    How many there are is known only once x is computed.
    """
    require_tensors("nonzero", x=x)
    if x.ndim == 0:
        raise ShapeError("nonzero: x is 0-d: it must have at least 1 dimension")
    flat = apply(_nonzero, x, count=int(count_nonzero(x).item()))
    found = []
    for n in reversed(x.shape):
        found.append(flat % n if n else flat)
        flat = flat // n if n else flat
    return tuple(reversed(found))
