"""Reductions. Half types accumulate in float32: NumPy's own sum of bfloat16 stays in bfloat16."""

from __future__ import annotations

import numpy as np

from .registry import kernel


def _wide(call):
    """Scratch for a half-precision result: it is reduced in float32 and rounded once."""
    dtype = call.out_dtypes[0]
    return [] if dtype.compute is dtype else [(call.out_shapes[0], dtype.compute.numpy)]


# NumPy adds in the order of memory; in dense memory that depends on the shape alone.
@kernel("sum", layouts="dense", scratch=_wide)
def sum(x, out, wide=None, *, axis, keepdims):
    if wide is None:
        np.add.reduce(x, axis=axis, out=out, keepdims=keepdims, dtype=out.dtype)
    else:
        np.add.reduce(x, axis=axis, out=wide, keepdims=keepdims, dtype=wide.dtype)
        np.copyto(out, wide, casting="unsafe")


@kernel("prod", layouts="dense", scratch=_wide)
def prod(x, out, wide=None, *, axis, keepdims):
    if wide is None:
        np.multiply.reduce(x, axis=axis, out=out, keepdims=keepdims, dtype=out.dtype)
    else:
        np.multiply.reduce(x, axis=axis, out=wide, keepdims=keepdims, dtype=wide.dtype)
        np.copyto(out, wide, casting="unsafe")


@kernel("max")
def max(x, out, *, axis, keepdims):
    np.maximum.reduce(x, axis=axis, out=out, keepdims=keepdims)


@kernel("min")
def min(x, out, *, axis, keepdims):
    np.minimum.reduce(x, axis=axis, out=out, keepdims=keepdims)


def _rows(call):
    """Scratch: the operand with the axis moved to the end, a copy that NumPy would otherwise make itself."""
    shape, axis = call.in_shapes[0], call.params["axis"]
    return [(shape[:axis] + shape[axis + 1 :] + shape[axis : axis + 1], call.in_dtypes[0].numpy)]


@kernel("argmax", scratch=_rows)
def argmax(x, out, rows, *, axis, keepdims):
    np.copyto(rows, np.moveaxis(x, axis, -1))
    np.argmax(rows, axis=-1, out=out.reshape(rows.shape[:-1]))


@kernel("argmin", scratch=_rows)
def argmin(x, out, rows, *, axis, keepdims):
    np.copyto(rows, np.moveaxis(x, axis, -1))
    np.argmin(rows, axis=-1, out=out.reshape(rows.shape[:-1]))
