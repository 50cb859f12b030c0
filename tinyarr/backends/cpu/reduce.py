"""Reductions. Half types accumulate in float32: NumPy's own sum of bfloat16 stays in bfloat16."""

from __future__ import annotations

import numpy as np

from .registry import kernel


def _wide(call):
    """Scratch for a half-precision result: it is reduced in float32 and rounded once."""
    dtype = call.out_dtypes[0]
    return [] if dtype.compute is dtype else [(call.out_shapes[0], dtype.compute.numpy)]


@kernel("sum", scratch=_wide)
def sum(x, out, wide=None, *, axis, keepdims):
    if wide is None:
        np.add.reduce(x, axis=axis, out=out, keepdims=keepdims, dtype=out.dtype)
    else:
        np.add.reduce(x, axis=axis, out=wide, keepdims=keepdims, dtype=wide.dtype)
        np.copyto(out, wide, casting="unsafe")


@kernel("max")
def max(x, out, *, axis, keepdims):
    np.maximum.reduce(x, axis=axis, out=out, keepdims=keepdims)


@kernel("min")
def min(x, out, *, axis, keepdims):
    np.minimum.reduce(x, axis=axis, out=out, keepdims=keepdims)


@kernel("argmax")
def argmax(x, out, *, axis, keepdims):
    np.argmax(x, axis=axis, out=out, keepdims=keepdims)


@kernel("argmin")
def argmin(x, out, *, axis, keepdims):
    np.argmin(x, axis=axis, out=out, keepdims=keepdims)
