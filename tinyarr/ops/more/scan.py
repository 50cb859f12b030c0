"""Scans: cumulative sums and products along an axis, and differences. Floor 5."""

from __future__ import annotations

import math

from ... import views
from ...errors import ArgumentError, ShapeError
from ...tensor import Tensor, require_tensors
from ..create import full, ones_like, zeros_like
from ..elementwise import logical_xor
from ..primitive import Primitive, apply
from ..reduce import _prod, accumulator, restored
from ..shape import concat, permute_dims, reshape, slice_axes
from .slices import flip


def _same(shapes, types, *, axis):
    return [(shapes[0], types[0])]


_cumulative_sum = Primitive("cumulative_sum", _same)
_cumulative_prod = Primitive("cumulative_prod", _same)


@_cumulative_sum.gradient
def _cumulative_sum_gradient(g, *, axis):
    return flip(cumulative_sum(flip(g, axis=axis), axis=axis, dtype=g.dtype), axis=axis)


@_cumulative_prod.gradient
def _cumulative_prod_gradient(g, x, *, axis):
    """With P the product of the elements before j: dx_j = P s_j, where s_j = g_j + x_{j+1} s_{j+1}.

    Nothing is divided by x, so zeros are right.
    """
    before = _cut(cumulative_prod(x, axis=axis, dtype=x.dtype, include_initial=True), axis, 0, -1)
    following = concat([_cut(x, axis, 1, None), zeros_like(_cut(x, axis, 0, 1))], axis=axis)
    return before * flip(_recurrence(flip(following, axis=axis), flip(g, axis=axis), axis), axis=axis)


@_prod.gradient
def _prod_gradient(g, x, *, axis):
    """g times the product of the elements before and of those after: nothing is divided by x, so zeros are right."""
    kept = tuple(a for a in range(x.ndim) if a not in axis)
    order = kept + axis
    rows = permute_dims(x, order)
    flat = reshape(rows, (*rows.shape[: len(kept)], math.prod(rows.shape[len(kept) :])))
    before = _cut(cumulative_prod(flat, axis=-1, include_initial=True), len(kept), 0, -1)
    after = flip(cumulative_prod(flip(flat, axis=-1), axis=-1, include_initial=True), axis=-1)
    after = _cut(after, len(kept), 1, None)
    others = reshape(before * after, rows.shape)
    back = permute_dims(others, tuple(order.index(a) for a in range(x.ndim)))
    return restored(g, x.shape, axis) * back


def _recurrence(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """y with y_i = a_i y_{i-1} + b_i and y_{-1} = 0, by doubling: about log2(n) steps on whole tensors.

    Source: Blelloch 1990, "Prefix sums and their applications", section 1.4.
    """
    n, reach = b.shape[axis], 1
    while reach < n:
        b = b + a * concat([zeros_like(_cut(b, axis, 0, reach)), _cut(b, axis, 0, -reach)], axis=axis)
        a = a * concat([ones_like(_cut(a, axis, 0, reach)), _cut(a, axis, 0, -reach)], axis=axis)
        reach *= 2
    return b


def _cut(x: Tensor, axis: int, start: int, stop: int | None) -> Tensor:
    return slice_axes(x, [slice(start, stop) if a == axis else slice(None) for a in range(x.ndim)])


def _scan(primitive: Primitive, initial: int, x: Tensor, axis: int | None, dtype, include_initial: bool) -> Tensor:
    operation = primitive.name
    require_tensors(operation, x=x)
    if axis is None:
        if x.ndim != 1:
            raise ShapeError(f"{operation}: x has shape {x.shape}, axis is None: give the axis along which to add up")
        axis = 0
    axis = views.normalize_axis(operation, axis, x.ndim)
    result = apply(primitive, accumulator(x, dtype), axis=axis)
    if not include_initial:
        return result
    shape = x.shape[:axis] + (1,) + x.shape[axis + 1 :]
    return concat([full(shape, initial, dtype=result.dtype, device=x.device), result], axis=axis)


def cumulative_sum(x: Tensor, /, *, axis: int | None = None, dtype=None, include_initial: bool = False) -> Tensor:
    """At each position the sum of the elements up to it along an axis; with `include_initial` a 0 comes first.

    The axis may be left out for one dimension. Dtypes as for sum; half types accumulate in float32.
    """
    return _scan(_cumulative_sum, 0, x, axis, dtype, include_initial)


def cumulative_prod(x: Tensor, /, *, axis: int | None = None, dtype=None, include_initial: bool = False) -> Tensor:
    """At each position the product of the elements up to it along an axis; with `include_initial` a 1 comes first.

    The axis may be left out for one dimension. Dtypes as for prod. Where elements are 0 the gradient is right too.
    """
    return _scan(_cumulative_prod, 1, x, axis, dtype, include_initial)


def diff(
    x: Tensor, /, *, axis: int = -1, n: int = 1, prepend: Tensor | None = None, append: Tensor | None = None
) -> Tensor:
    """Each element less the one before it along an axis, n times over; of bool, whether they differ.

    prepend and append are joined to x first.
    """
    require_tensors("diff", x=x)
    axis = views.normalize_axis("diff", axis, x.ndim)
    if n < 0:
        raise ArgumentError(f"diff: n is {n}: it must be 0 or more")
    parts = [part for part in (prepend, x, append) if part is not None]
    x = concat(parts, axis=axis) if len(parts) > 1 and n else x
    for _ in range(n):
        after, before = _cut(x, axis, 1, None), _cut(x, axis, 0, -1) if x.shape[axis] else x
        x = (logical_xor if x.dtype.kind == "bool" else lambda a, b: a - b)(after, before)
    return x
