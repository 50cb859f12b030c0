"""Slices that begin where data says: x[i : i + 8] in a program, read as a copy and written by where. Floor 5."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

from ... import dtypes
from ...errors import TraceError
from ...tensor import Tensor
from ..create import arange, full
from ..elementwise import astype, clip, logical_and, where
from ..index import _take
from ..primitive import Primitive, apply, executor


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


def in_trace() -> bool:
    """Returns whether tensors have no elements yet, so that a position may be known to programs alone."""
    return getattr(executor.get(), "trace", None) is not None


def moves(k: Any) -> bool:
    """Returns whether a part of a key is a position that is data, or a slice that begins or ends at one."""
    return _is_data(k) or (isinstance(k, slice) and (_is_data(k.start) or _is_data(k.stop)))


def _is_data(k: Any) -> bool:
    """Returns whether an index is a 0-d tensor, or an int that each call of a program brings."""
    return (isinstance(k, Tensor) and not k.ndim) or (isinstance(k, int) and not issubclass(type(k), int))


def span_of(x: Tensor, axis: int, k: Any) -> Span | None:
    """Returns the span of x that a part of a key is, in a trace; None for one that is no data or can't be one.

    A program refuses a tensor beyond the axis, and a slice that would be cut off there, as it runs. An int is compared.
    """
    n, is_slice = x.shape[axis], isinstance(k, slice)
    if not moves(k) or (is_slice and k.step not in (None, 1)):
        return None
    start, size = (k.start, _length(k)) if is_slice else (k, 1)
    if isinstance(start, Tensor):
        if not 0 < size <= n:
            return None
        at = apply(_take, arange(n - size + 1, device=x.device), start, axis=0, wrap=not is_slice)
        return Span(axis, at, size)
    if not _is_data(start) or type(size) is not int or size < 1:
        return None
    if not is_slice and -n <= start < 0:
        start += n
    if start < 0 or start + size > n:
        return None
    return Span(axis, full((), start, dtype=dtypes.int64, device=x.device), size)


def _length(k: slice) -> Any:
    """Returns how many elements a slice asks for, which must not be data where an end is a tensor."""
    size = (0 if k.stop is None else k.stop) - (0 if k.start is None else k.start)
    if isinstance(size, Tensor):
        size = executor.get().trace.known_integers.value(size.array)
        if size is None:
            raise TraceError(
                "index: a slice by tensors came of which a program can't know the length: write it as x[i : i + 8], "
                "with an i of int32 or int64, or use a mask"
            )
    return size
