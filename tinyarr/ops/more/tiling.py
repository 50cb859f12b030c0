"""Arrangements composed of others: grids, triangles, rolled, tiled and repeated tensors. Floor 5."""

from __future__ import annotations

from collections.abc import Sequence

from ... import dtypes, views
from ...errors import ArgumentError, ShapeError
from ...tensor import Tensor
from ..create import arange, full
from ..elementwise import where
from ..index import take
from ..shape import broadcast_to, concat, expand_dims, require_each, reshape, split, swapaxes
from .scan import cumulative_sum
from .sort import searchsorted


def meshgrid(*arrays: Tensor, indexing: str = "xy") -> list[Tensor]:
    """For 1-d tensors the coordinates of the grid that they span: one tensor each, all of one shape.

    indexing: 'ij', the axes in the order of the tensors, or 'xy', the first two exchanged. The results are views.
    """
    if indexing not in ("xy", "ij"):
        raise ArgumentError(f"meshgrid: indexing is {indexing!r}: use 'xy' or 'ij'")
    for i, x in enumerate(arrays):
        if x.ndim != 1:
            raise ShapeError(f"meshgrid: tensor {i} has shape {x.shape}: it must have 1 dimension")
    shape = tuple(x.size for x in arrays)
    alone = [[x.size if a == i else 1 for a in range(len(arrays))] for i, x in enumerate(arrays)]
    grids = [broadcast_to(reshape(x, sizes), shape) for x, sizes in zip(arrays, alone, strict=True)]
    return [swapaxes(g, 0, 1) for g in grids] if indexing == "xy" and len(arrays) > 1 else grids


def _triangle(operation: str, x: Tensor, k: int, lower: bool) -> Tensor:
    if x.ndim < 2:
        raise ShapeError(f"{operation}: x has shape {x.shape}: it must have at least 2 dimensions")
    rows = expand_dims(arange(x.shape[-2], device=x.device), -1)
    columns = arange(x.shape[-1], device=x.device)
    return where(columns - rows <= k if lower else columns - rows >= k, x, full((), 0, dtype=x.dtype, device=x.device))


def tril(x: Tensor, /, *, k: int = 0) -> Tensor:
    """x (..., M, N) on and below the k-th diagonal, zeros above."""
    return _triangle("tril", x, k, lower=True)


def triu(x: Tensor, /, *, k: int = 0) -> Tensor:
    """x (..., M, N) on and above the k-th diagonal, zeros below."""
    return _triangle("triu", x, k, lower=False)


def broadcast_arrays(*tensors: Tensor) -> list[Tensor]:
    """The tensors broadcast to one shape; views."""
    require_each("broadcast_arrays", tensors)
    shape = views.broadcast_shapes("broadcast_arrays", *(t.shape for t in tensors))
    return [broadcast_to(t, shape) for t in tensors]


def roll(x: Tensor, /, shift: int | Sequence[int], *, axis: int | Sequence[int] | None = None) -> Tensor:
    """The elements shifted along the axes, those pushed out coming in at the other end; without axes, flattened."""
    if axis is None:
        if not isinstance(shift, int):
            raise ArgumentError(f"roll: shift is {shift}, axis is None: one shift, or an axis for each")
        return reshape(roll(reshape(x, (x.size,)), shift, axis=0), x.shape)
    axes = axis if isinstance(axis, Sequence) else (axis,)
    shifts = shift if isinstance(shift, Sequence) else (shift,) * len(axes)
    if len(axes) != len(shifts):
        raise ArgumentError(f"roll: shift is {shift}, axis is {axis}: they must be equally many")
    for a, s in zip(axes, shifts, strict=True):
        a = views.normalize_axis("roll", a, x.ndim)
        n = x.shape[a]
        if n and s % n:
            x = concat(split(x, [n - s % n, s % n], axis=a)[::-1], axis=a)
    return x


def tile(x: Tensor, repetitions: Sequence[int], /) -> Tensor:
    """x repeated as a whole along each axis; axes missing on either side count as 1."""
    times = views.normalize_shape("tile", repetitions)
    ndim = max(len(times), x.ndim)
    times = (1,) * (ndim - len(times)) + times
    shape = (1,) * (ndim - x.ndim) + x.shape
    paired = reshape(x, tuple(m for n in shape for m in (1, n)))
    wide = broadcast_to(paired, tuple(m for pair in zip(times, shape, strict=True) for m in pair))
    return reshape(wide, tuple(n * t for n, t in zip(shape, times, strict=True)))


def repeat(x: Tensor, repeats: int | Tensor, /, *, axis: int | None = None) -> Tensor:
    """Each element repeated in place along an axis (None: flattened); `repeats` may differ, a 1-d tensor of ints.

    With a tensor the size of the result is known only once `repeats` is computed.
    """
    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    axis = views.normalize_axis("repeat", axis, x.ndim)
    n = x.shape[axis]
    if not isinstance(repeats, Tensor):
        (times,) = views.normalize_shape("repeat", repeats)
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        wide = broadcast_to(expand_dims(x, axis + 1), (*before, n, times, *after))
        return reshape(wide, (*before, n * times, *after))
    if repeats.shape not in ((n,), (1,), ()):
        raise ShapeError(f"repeat: repeats has shape {repeats.shape}, axis {axis} of x has size {n}: one for each")
    if repeats.dtype.kind == "signed" and n and (repeats < 0).any():
        raise ArgumentError("repeat: repeats holds a negative number: each must be 0 or more")
    ends = cumulative_sum(broadcast_to(repeats, (n,)), axis=0, dtype=dtypes.int64)
    total = int(ends[-1].item()) if n else 0
    return take(x, searchsorted(ends, arange(total, device=x.device), side="right"), axis=axis)
