"""Rows by number, and the sum of gradients back into the rows."""

from __future__ import annotations

import numpy as np

from ...errors import OutOfBounds
from .registry import kernel


def check_range(operation: str, indices: np.ndarray, low: int, high: int) -> None:
    """Raises OutOfBounds naming the first index outside [low, high)."""
    if indices.size and (int(indices.min()) < low or int(indices.max()) >= high):
        bad = (indices < low) | (indices >= high)
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        raise OutOfBounds(
            f"{operation}: indices{list(at)} is {int(indices[at])}, the axis has size {high}: use {low} to {high - 1}"
        )


@kernel("take", layouts=("dense", "any"), scratch=lambda call: [(call.in_shapes[1], np.intp)])
def take(x, indices, out, positions, *, axis, wrap):
    n = x.shape[axis]
    check_range("take", indices, -n if wrap else 0, n)
    np.copyto(positions, indices, casting="unsafe")  # of any other dtype np.take would make a copy itself
    np.take(x, positions, axis=axis, out=out, mode="wrap")


def _wide(call):
    """Scratch for half types: the sums in float32."""
    dtype = call.out_dtypes[0]
    return [] if dtype.compute is dtype else [(call.out_shapes[0], dtype.compute.numpy)]


@kernel("take_gradient", layouts=("dense", "any"), scratch=_wide)
def take_gradient(g, indices, out, wide=None, *, axis, size, wrap):
    """Adds each row to the one that it was taken from, in the order in which they stand."""
    check_range("take", indices, -size if wrap else 0, size)
    total = out if wide is None else wide
    total.fill(0)
    rows = g.reshape(g.shape[:axis] + (indices.size,) + g.shape[axis + indices.ndim :])
    rows, target = np.moveaxis(rows, axis, 0), np.moveaxis(total, axis, 0)
    if rows.ndim == 1:
        np.add.at(target, indices.reshape(-1), rows)
        rows = rows[:0]
    for i, row in zip(indices.flat, rows, strict=False):
        place = target[i, ...]
        np.add(place, row, out=place)
    if wide is not None:
        np.copyto(out, wide, casting="unsafe")


def _row(call):
    """Scratch: a row's sum."""
    return [(call.in_shapes[0][1:], call.out_dtypes[0].compute.numpy)]


@kernel("index_add", layouts=("any", "dense", "any"), scratch=_row)
def index_add(x, g, indices, out, total, *, start, size):
    check_range("take", indices, 0, size)
    np.copyto(out, x)
    numbers, rows = indices.reshape(-1), g.reshape(indices.size, *total.shape)
    order = np.argsort(numbers, kind="stable")
    for same in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1) if order.size else ():
        total.fill(0)
        for k in same:
            np.add(total, rows[k], out=total)
        place = out[start + numbers[same[0]], ...]
        np.add(place, total.astype(out.dtype), out=place)


@kernel("scatter", layouts=("any", "any", "any"))
def scatter(x, indices, values, out):
    check_range("scatter", indices, 0, len(x))
    np.copyto(out, x)
    out[indices] = values
