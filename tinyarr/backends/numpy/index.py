"""Rows by number, and the sum of gradients back into the rows. Floor 1."""

from __future__ import annotations

import math

import numpy as np

from ...errors import OutOfBounds
from .reduce import wide_result
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


@kernel("take_gradient", layouts=("dense", "any"), scratch=wide_result)
def take_gradient(g, indices, out, wide=None, *, axis, size, wrap):
    """Adds each row to the one that it was taken from, in their order."""
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


def _rows_by_index(call):
    """Scratch: a row's sum; the indices, the first row with each, and the next with the same."""
    row, count = call.in_shapes[0][1:], (math.prod(call.in_shapes[2]),)
    numbers = [(count, np.intp), ((call.params["size"],), np.intp), (count, np.intp)]
    return [(row, call.out_dtypes[0].compute.numpy), *numbers]


@kernel("index_add", layouts=("any", "dense", "any"), scratch=_rows_by_index)
def index_add(x, g, indices, out, total, numbers, first, following, *, start, size):
    check_range("take", indices, 0, size)
    np.copyto(out, x)
    np.copyto(numbers.reshape(indices.shape), indices, casting="unsafe")
    first.fill(-1)
    for k in reversed(range(len(numbers))):
        following[k], first[numbers[k]] = first[numbers[k]], k
    rows = g.reshape(len(numbers), *total.shape)
    for k, i in enumerate(numbers):
        if first[i] == k:
            total.fill(0)
            while k >= 0:
                np.add(total, rows[k], out=total)
                k = following[k]
            place = out[start + i, ...]
            np.add(place, total.astype(out.dtype), out=place)


@kernel("scatter", layouts=("any", "any", "any"))
def scatter(x, indices, values, out):
    check_range("scatter", indices, 0, len(x))
    np.copyto(out, x)
    out[indices] = values
