"""Scans. Half types accumulate in float32."""

from __future__ import annotations

import numpy as np

from .registry import kernel


def _wide(call):
    """Scratch for a half type: the running totals in float32."""
    dtype = call.out_dtypes[0]
    return [] if dtype.compute is dtype else [(call.out_shapes[0], dtype.compute.numpy)]


def _scan(operation: np.ufunc, x, out, wide, axis: int) -> None:
    if wide is None:
        operation.accumulate(x, axis=axis, out=out, dtype=out.dtype)
    else:
        np.copyto(wide, x, casting="unsafe")
        operation.accumulate(wide, axis=axis, out=wide)
        np.copyto(out, wide, casting="unsafe")


@kernel("cumulative_sum", scratch=_wide)
def cumulative_sum(x, out, wide=None, *, axis):
    _scan(np.add, x, out, wide, axis)


@kernel("cumulative_prod", scratch=_wide)
def cumulative_prod(x, out, wide=None, *, axis):
    _scan(np.multiply, x, out, wide, axis)
