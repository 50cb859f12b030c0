"""Sorting and searching. NaN counts as the largest number. Floor 5."""

from __future__ import annotations

from ... import dtypes, views
from ...errors import ArgumentError, ShapeError, describe
from ...tensor import Tensor, require_tensors
from ..create import full
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
    """Returns the position of each element of x2 in the sorted 1-d x1 that keeps it sorted; int64 of x2's shape.

    side: before ('left') or behind ('right') elements that are equal. sorter: the positions that sort x1.
    """
    require_tensors("searchsorted", x1=x1, x2=x2)
    if x1.ndim != 1 or side not in ("left", "right"):
        raise ArgumentError(
            f"searchsorted: {describe('x1', x1)}, side is {side!r}: x1 must be 1-d, side 'left' or 'right'"
        )
    if sorter is not None:
        x1 = take(x1, sorter)
    n = x1.shape[0]
    low, high = (full(x2.shape, m, dtype=dtypes.int64, device=x2.device) for m in (0, n))
    for _ in range(n.bit_length()):  # halves the n + 1 places until one is left
        middle = (low + high) // 2
        found = reshape(take(x1, reshape(middle.clip(0, n - 1), (x2.size,))), x2.shape)
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
