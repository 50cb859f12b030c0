"""Arrangements composed of others: grids, triangles, padded, rolled, tiled and repeated tensors. Floor 5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import dtypes, views
from ...errors import ArgumentError, DtypeError, ShapeError, describe, whole_number
from ...tensor import Tensor, require_tensors
from ..create import arange, full, ones
from ..elementwise import astype, where
from ..index import take
from ..primitive import apply
from ..shape import _unslice, broadcast_to, concat, expand_dims, require_each, reshape, slice_axes, split, swapaxes
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


def pad(x: Tensor, pad: Sequence[int], mode: str = "constant", value: float = 0) -> Tensor:
    """x with `value` put before and after its elements along its last axes; a negative width cuts so many off.

    pad: the widths (before, after) of the last axis, then those of the axis before it, and so on, as in PyTorch.
    The result has x's dtype. Raises ArgumentError for other widths and for a mode other than 'constant', ShapeError
    where an axis is too short, DtypeError for a floating value beside an x that isn't.

    >>> import tinyarr
    >>> tinyarr.pad(tinyarr.Tensor([1, 2, 3]), (2, -1)).tolist()
    [0, 0, 1, 2]
    """
    require_tensors("pad", x=x)
    if mode != "constant":
        raise ArgumentError(f"pad: mode is {mode!r}: it must be 'constant'; concat, flip and broadcast_to give others")
    widths = [whole_number("pad", "a width", w) for w in pad]
    if len(widths) % 2 or len(widths) > 2 * x.ndim:
        raise ArgumentError(f"pad: pad is {tuple(pad)}, x has {x.ndim} dimensions: two for each of its last axes")
    before = [0] * (x.ndim - len(widths) // 2) + widths[-2::-2]
    after = [0] * (x.ndim - len(widths) // 2) + widths[:0:-2]
    if any(n + min(a, 0) + min(b, 0) < 0 for n, a, b in zip(x.shape, before, after, strict=True)):
        raise ShapeError(f"pad: x has shape {x.shape}, pad is {tuple(pad)}: an axis is shorter than what is cut off")
    kept = x
    if min(widths, default=0) < 0:
        kept = slice_axes(x, [slice(max(-a, 0), n + min(b, 0)) for n, a, b in zip(x.shape, before, after, strict=True)])
    if max(widths, default=0) <= 0:
        return kept
    starts = tuple(max(a, 0) for a in before)
    stops = tuple(a + n for a, n in zip(starts, kept.shape, strict=True))
    shape = tuple(n + max(b, 0) for n, b in zip(stops, after, strict=True))
    where_kept: dict[str, Any] = {"shape": shape, "starts": starts, "stops": stops, "steps": (1,) * x.ndim}
    padded = apply(_unslice, kept, **where_kept)
    if value == 0:
        return padded
    inside = apply(_unslice, ones(kept.shape, dtype=dtypes.bool, device=x.device), **where_kept)
    filled = where(inside, padded, value)
    if filled.dtype.is_float and not x.dtype.is_float:
        raise DtypeError(f"pad: value is {value}, {describe('x', x)}: use x.astype(...) first")
    return astype(filled, x.dtype, copy=False)


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
