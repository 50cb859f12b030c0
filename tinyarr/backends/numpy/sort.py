"""Sorting and searching. NumPy's sort works in memory of its own, which grows with the axis that is sorted. Floor 2."""

from __future__ import annotations

import numpy as np

from .registry import kernel


def _rows(call):
    """Scratch: the operand with the axis moved to the end, in a dtype that NumPy sorts, and the positions."""
    shape, axis = call.in_shapes[0], call.params["axis"]
    moved = shape[:axis] + shape[axis + 1 :] + shape[axis : axis + 1]
    return [(moved, call.in_dtypes[0].compute.numpy)]


@kernel("argsort", scratch=_rows)
def argsort(x, out, rows, *, axis, descending):
    """Descending, the axis is read backwards, so that equal elements keep their order when the result is reversed."""
    step = -1 if descending else 1
    np.copyto(rows, np.moveaxis(x, axis, -1)[..., ::step], casting="unsafe")
    found = np.argsort(rows, axis=-1, kind="stable")[..., ::step]
    np.copyto(np.moveaxis(out, axis, -1), rows.shape[-1] - 1 - found if descending else found)


@kernel("nonzero", layouts="dense")
def nonzero(x, out, *, count):
    np.copyto(out, np.flatnonzero(x))
