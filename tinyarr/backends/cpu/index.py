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


@kernel("take")
def take(x, indices, out, *, axis):
    n = x.shape[axis]
    check_range("take", indices, -n, n)
    np.take(x, indices, axis=axis, out=out, mode="wrap")


def _sorted_rows(call):
    """Scratch: the rows of g in the order of their indices, float32 for half types."""
    g, indices = call.in_shapes
    count = int(np.prod(indices, dtype=np.int64))
    axis = call.params["axis"]
    rest = g[:axis] + g[axis + len(indices) :]
    return [((count, int(np.prod(rest, dtype=np.int64))), call.in_dtypes[0].compute.numpy)]


@kernel("take_gradient", scratch=_sorted_rows)
def take_gradient(g, indices, out, rows, *, axis, size):
    """Rows with the same index are brought together (stably) and each run is added up in its order."""
    check_range("take", indices, -size, size)
    out.fill(0)
    if g.size == 0:
        return
    number = np.remainder(indices.reshape(-1), size)
    order = np.argsort(number, kind="stable")
    number = number[order]
    starts = np.flatnonzero(np.concatenate(([True], number[1:] != number[:-1])))
    before = g.shape[:axis]
    after = g.shape[axis + indices.ndim :]
    by_index = np.moveaxis(g.reshape(before + (order.size,) + after), axis, 0)
    for k, i in enumerate(order):
        np.copyto(rows[k].reshape(before + after), by_index[i], casting="unsafe")
    target = np.moveaxis(out, axis, 0)
    ends = np.append(starts[1:], order.size)
    for n, start, end in zip(number[starts], starts, ends, strict=True):
        total = rows[start]
        for k in range(start + 1, end):
            np.add(total, rows[k], total)
        np.copyto(target[n, ...], total.reshape(before + after), casting="unsafe")
