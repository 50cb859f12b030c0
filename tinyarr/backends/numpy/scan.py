"""Scans. Half types accumulate in float32. Floor 2.

NumPy adds one by one, so a long floating sum is cut into blocks, by its length alone: each is added to the sum of those
before it, which is such a scan itself.
"""

from __future__ import annotations

import numpy as np

from .registry import kernel

BLOCK = 128  # elements that are added one after another; a sum of up to twice as many isn't cut


def _wide(call):
    """Scratch for a half type: the running totals in float32."""
    dtype = call.out_dtypes[0]
    return [] if dtype.compute is dtype else [(call.out_shapes[0], dtype.compute.numpy)]


def _sum_scratch(call):
    """After that for a half type, the sums of the blocks, and those of blocks of blocks."""
    shape, axis, dtype = call.out_shapes[0], call.params["axis"], call.out_dtypes[0].compute
    specs, length = _wide(call), shape[axis]
    while dtype.is_float and length > 2 * BLOCK:
        length //= BLOCK
        specs.append(((*shape[:axis], length, *shape[axis + 1 :]), dtype.numpy))
    return specs


@kernel("cumulative_sum", scratch=_sum_scratch)
def cumulative_sum(x, out, *scratch, axis):
    wide, sums = out, scratch
    if scratch and scratch[0].dtype != out.dtype:
        wide, sums = scratch[0], scratch[1:]
        np.copyto(wide, x, casting="unsafe")
        x = wide
    if not sums:
        np.add.accumulate(x, axis=axis, out=wide, dtype=wide.dtype)
    else:
        _sum_in_blocks(x, wide, axis, *sums)
    if wide is not out:
        np.copyto(out, wide, casting="unsafe")


def _sum_in_blocks(x, out, axis: int, *scratch) -> None:
    if not scratch:
        np.add.accumulate(x, axis=axis, out=out)
        return
    sums, *more = scratch
    before, blocks = (slice(None),) * axis, sums.shape[axis]
    end = blocks * BLOCK
    cut, rest = (*before, slice(end)), (*before, slice(end, None))
    whole = out[cut].reshape(*out.shape[:axis], blocks, BLOCK, *out.shape[axis + 1 :])  # a view, as it splits an axis
    np.add.accumulate(x[cut].reshape(whole.shape), axis=axis + 1, out=whole)
    np.copyto(sums, whole[(*before, slice(None), -1)])
    _sum_in_blocks(sums, sums, axis, *more)
    following = whole[(*before, slice(1, None))]
    np.add(following, np.expand_dims(sums[(*before, slice(-1))], axis + 1), following)
    if end < x.shape[axis]:
        np.add.accumulate(x[rest], axis=axis, out=out[rest])
        np.add(out[rest], sums[(*before, slice(-1, None))], out[rest])


@kernel("cumulative_prod", scratch=_wide)
def cumulative_prod(x, out, wide=None, *, axis):
    if wide is None:
        np.multiply.accumulate(x, axis=axis, out=out, dtype=out.dtype)
    else:
        np.copyto(wide, x, casting="unsafe")
        np.multiply.accumulate(wide, axis=axis, out=wide)
        np.copyto(out, wide, casting="unsafe")
