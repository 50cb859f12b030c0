"""Gathering by integer tensors: take, take_along_axis, embedding; and its opposite, scatter. Floor 1."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .. import dtypes, eager, views
from ..errors import DtypeError, OutOfBounds, ShapeError, describe
from ..tensor import Tensor, require_tensors
from .create import arange, zeros_like
from .elementwise import astype, equal, logical_or, where
from .primitive import Bounds, Primitive, apply, executor
from .reduce import max, min
from .shape import broadcast_to, concat, reshape


def _infer_take(shapes, types, *, axis, wrap):
    x, indices = shapes
    return [(x[:axis] + indices + x[axis + 1 :], types[0])]


def _take_bounds(size: int, wrap: bool) -> Bounds:
    return Bounds(1, -size if wrap else 0, size)


_take = Primitive(
    "take",
    _infer_take,
    inputs=("x", "indices"),
    bounds=lambda shapes, params: _take_bounds(shapes[0][params["axis"]], params["wrap"]),
)
_take_gradient = Primitive(
    "take_gradient",
    lambda shapes, types, *, axis, size, wrap: [
        (shapes[0][:axis] + (size,) + shapes[0][axis + len(shapes[1]) :], types[0]),
    ],
    inputs=("g", "indices"),
    bounds=lambda shapes, params: _take_bounds(params["size"], params["wrap"]),
)


_scatter = Primitive(
    "scatter",
    lambda shapes, types: [(shapes[0], types[0])],
    inputs=("x", "indices", "values"),
    bounds=lambda shapes, params: Bounds(1, 0, shapes[0][0]),
).no_gradient()


def _index_add_composite(x, g, indices, *, start, size):
    rows = apply(_take_gradient, g, indices, axis=0, size=size, wrap=False)
    stop = start + size
    return x + concat([zeros_like(x[:start]), rows, zeros_like(x[stop:])], axis=0)


# x with the rows of g, summed by index, added from row `start` on: what compilation makes of a sum with the gradient of
# an embedding. A zero that nothing is added to keeps its sign.
index_add = Primitive(
    "index_add",
    lambda shapes, types, *, start, size: [(shapes[0], types[0])],
    inputs=("x", "g", "indices"),
    composite=_index_add_composite,
    overwrites=0,
    bounds=lambda shapes, params: Bounds(2, 0, params["size"]),
).no_gradient()


@_take.gradient
def _take_backward(g, indices, *, axis, wrap, shapes):
    return apply(_take_gradient, g, indices, axis=axis, size=shapes[0][axis], wrap=wrap), None


@_take_gradient.gradient
def _take_gradient_backward(g, indices, *, axis, wrap):
    return apply(_take, g, indices, axis=axis, wrap=wrap), None


def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    """The elements of x at integer `indices` (any shape) along an axis, which the indices' axes replace.

    Negative indices count from the end. In the gradient, repeated indices add up, in their order.
    Raises OutOfBounds for an index outside the axis.
    """
    require_tensors("take", x=x, indices=indices)
    require_integers("take", "indices", indices)
    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    return apply(_take, x, indices, axis=views.normalize_axis("take", axis, x.ndim), wrap=True)


def embedding(weight: Tensor, tokens: Tensor) -> Tensor:
    """Rows of `weight` (V, C) by token number: tokens (...) of integers in [0, V) give (..., C).

    Raises OutOfBounds for any other token, negative ones included.
    """
    require_tensors("embedding", weight=weight, tokens=tokens)
    require_integers("embedding", "tokens", tokens)
    if weight.ndim == 0:
        raise ShapeError("embedding: weight is 0-d: it must have rows, (V, C)")
    return apply(_take, weight, tokens, axis=0, wrap=False)


def take_along_axis(x: Tensor, indices: Tensor, /, *, axis: int = -1) -> Tensor:
    """The elements of x at integer `indices` along an axis, position by position: result[i, j] = x[indices[i, j], j].

    indices has as many axes as x, and their sizes, but for `axis`, are equal or broadcast. Negative indices count from
    the end. Raises OutOfBounds for an index outside the axis.
    """
    require_tensors("take_along_axis", x=x, indices=indices)
    require_integers("take_along_axis", "indices", indices)
    if x.ndim != indices.ndim:
        raise ShapeError(
            f"take_along_axis: {describe('x', x)}, {describe('indices', indices)}: they must have equally many axes"
        )
    axis = views.normalize_axis("take_along_axis", axis, x.ndim)
    n, others = x.shape[axis], x.shape[:axis] + (1,) + x.shape[axis + 1 :]
    shape = views.broadcast_shapes("take_along_axis", others, indices.shape)
    x = broadcast_to(x, shape[:axis] + (n,) + shape[axis + 1 :])
    keys = [index_along(x, a) for a in range(x.ndim)]
    keys[axis] = broadcast_to(indices, shape)
    return take(reshape(x, (x.size,)), flat_positions(x.shape, keys))


def index_along(x: Tensor, axis: int) -> Tensor:
    """0, 1, ... along an axis, of size 1 along all others."""
    return reshape(arange(x.shape[axis], device=x.device), tuple(-1 if a == axis else 1 for a in range(x.ndim)))


def flat_positions(shape: views.Shape, keys: Sequence[Tensor]) -> Tensor:
    """Returns the flat positions of x[keys[0], keys[1], ...] in a row-major tensor of that shape; int64.

    An index outside its axis gives a position outside the tensor, which `take` and `scatter` refuse.
    """
    total = math.prod(shape)
    position: Tensor | int = 0
    outside: Tensor | bool = False
    for n, step, key in zip(shape, views.contiguous_strides(shape), keys, strict=True):
        key = astype(key, dtypes.int64, copy=False)
        position = position + where(key < 0, key + n, key) * step
        outside = logical_or(outside, logical_or(key < -n, key >= n))
    return where(outside, total, position)


def scatter(x: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    """A copy of x (n,) with values (m,) at integer indices (m,); of an index that comes twice the last value stays."""
    return apply(_scatter, x, indices, values)


def one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """For integers x (...) in [0, num_classes): (..., num_classes), 1 at each x and 0 elsewhere, int64.

    With -1 the classes are as many as the largest x asks for, which is known only once x is computed.
    Raises OutOfBounds for an x outside.
    """
    require_tensors("one_hot", x=x)
    require_integers("one_hot", "x", x)
    if num_classes == -1:
        num_classes = int(max(x).item()) + 1
    classes = arange(num_classes, device=x.device)
    if executor.get() is not eager:
        x = apply(_take, classes, x, axis=0, wrap=False)  # x itself; a program refuses an index outside as it runs
    elif x.size and (int(min(x).item()) < 0 or int(max(x).item()) >= num_classes):
        raise OutOfBounds(f"one_hot: x goes from {min(x).item()} to {max(x).item()}: it must lie in [0, {num_classes})")
    hit = equal(reshape(astype(x, dtypes.int64, copy=False), (*x.shape, 1)), classes)
    return astype(hit, dtypes.int64)


def require_integers(operation: str, name: str, x: Tensor) -> None:
    if x.dtype.kind not in ("signed", "unsigned"):
        raise DtypeError(f"{operation}: {name} has dtype {x.dtype.name}: it must be an integer dtype")
