"""Slices that begin where data says: x[i : i + 8] in a program, read as a copy and written by where. Floor 5."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from ... import dtypes
from ...tensor import Tensor
from ..create import arange
from ..elementwise import astype, clip, logical_and, where
from ..index import _take
from ..primitive import Primitive, apply


def _taken(x, start, *, axis, size):
    positions = astype(start, dtypes.int64, copy=False) + arange(size, device=x.device)
    return apply(_take, x, positions, axis=axis, wrap=False)


_slice_at = Primitive(
    "slice_at",
    lambda shapes, types, *, axis, size: [(shapes[0][:axis] + (size,) + shapes[0][axis + 1 :], types[0])],
    inputs=("x", "start"),
    composite=_taken,
)
_slice_at.gradients_are_derived = True  # of where, whose gradient keeps the sign of a zero as a slice's does


@_slice_at.gradient
def _slice_at_gradient(g, start, *, axis, size, shapes):
    inside, placed = _placed(g, shapes[0], [Span(axis, start, size)])
    return where(inside, placed, 0), None


class Span(NamedTuple):
    """Elements `start`, a 0-d integer tensor, to `start + size` along an axis."""

    axis: int
    start: Tensor
    size: int


def slice_at(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """The elements of x in all spans, a copy. Raises OutOfBounds for a span that leaves its axis."""
    for axis, start, size in spans:
        x = apply(_slice_at, x, start, axis=axis, size=size)
    return x


def with_spans(x: Tensor, spans: Sequence[Span], value: Tensor) -> Tensor:
    """x with a value in all spans: a 0-d one, or one of x's other sizes and the spans', or 1 where it is repeated."""
    inside, placed = _placed(astype(value, x.dtype, copy=False), x.shape, spans)
    return where(inside, placed, x)


def checked(start: Tensor, size: int, n: int, *, wraps: bool) -> Tensor:
    """Returns a start in an axis of n elements; a program refuses one from which `size` leave it, as it runs.

    wraps: negative ones count from the end.
    """
    return apply(_take, arange(n - size + 1, device=start.device), start, axis=0, wrap=wraps)


def _placed(value: Tensor, shape: tuple[int, ...], spans: Sequence[Span]) -> tuple[Tensor, Tensor]:
    """Returns which elements of a shape are in all spans, and of a value those that belong there, and any elsewhere."""
    insides = []
    for axis, start, size in spans:
        like = arange(shape[axis], device=value.device) - astype(start, dtypes.int64, copy=False)
        if value.ndim and value.shape[axis] != 1:
            value = apply(_take, value, clip(like, 0, size - 1), axis=axis, wrap=False)
        along = tuple(-1 if a == axis else 1 for a in range(len(shape)))
        insides.append(logical_and(like >= 0, like < size).reshape(along))
    return functools.reduce(logical_and, insides), value
