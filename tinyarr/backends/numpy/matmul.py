"""Matrix products: BLAS through np.matmul in float32 and float64; half types are widened into scratch. Floor 1."""

from __future__ import annotations

import numpy as np

from .registry import kernel


def _wide(call):
    """Scratch for half types: both operands and the product in float32."""
    dtype = call.out_dtypes[0]
    if dtype.compute is dtype:
        return []
    return [(shape, dtype.compute.numpy) for shape in (*call.in_shapes, *call.out_shapes)]


@kernel("matmul", layouts="matrix", scratch=_wide)
def matmul(x, y, out, wide_x=None, wide_y=None, wide_out=None):
    if wide_x is None:
        np.matmul(x, y, out=out)
    else:
        np.copyto(wide_x, x, casting="unsafe")
        np.copyto(wide_y, y, casting="unsafe")
        np.matmul(wide_x, wide_y, out=wide_out)
        np.copyto(out, wide_out, casting="unsafe")


def _scaled(call):
    """Scratch: both operands and the product in float32."""
    return [(shape, np.float32) for shape in (*call.in_shapes[:2], *call.out_shapes)]


@kernel("scaled_matmul", layouts=("dense", "dense", "any", "any"), scratch=_scaled)
def scaled_matmul(x, weight, scale_x, scale_weight, out, wide_x, wide_weight, wide_out, *, dtype):
    for wide, narrow, scale in ((wide_x, x, scale_x), (wide_weight, weight, scale_weight)):
        np.copyto(wide, narrow, casting="unsafe")
        np.multiply(wide, scale, wide)
    np.matmul(wide_x, wide_weight.T, out=wide_out)
    np.copyto(out, wide_out, casting="unsafe")
