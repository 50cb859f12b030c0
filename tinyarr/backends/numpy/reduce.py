"""Reductions. Half types accumulate in float32: NumPy's own sum of bfloat16 stays in bfloat16. Floor 1.

NumPy adds in pairs along the last axis alone; over any other, and between the pieces in which it converts half types,
it adds one by one. So floating sums over those are cut into blocks, by shape alone, whose sums are added in pairs.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import numpy as np

from .registry import kernel

BLOCK = 32  # elements that are added one after another
UNCUT = 256  # so many are, where cutting a sum would cost more than adding
UNCUT_HALVES = 4096  # of half types, whose result is rounded more coarsely than their sum in float32
WIDTH = 1 << 17  # sums that are made side by side at most: so many stay in cache


def wide_result(call):
    """Scratch for a half-precision result: it is reduced in float32 and rounded once."""
    dtype = call.out_dtypes[0]
    return [] if dtype.compute is dtype else [(call.out_shapes[0], dtype.compute.numpy)]


@functools.lru_cache(maxsize=4096)
def _steps(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[tuple[int, int, int], ...]:
    """(before, length, after) of each run of neighbouring reduced axes, the last first, given what is reduced then."""
    runs = [
        (reduced, math.prod(n for _, n in run))
        for reduced, run in itertools.groupby(enumerate(shape), key=lambda pair: pair[0] in axes)
    ]
    steps, after = [], 1
    for i in reversed(range(len(runs))):
        reduced, length = runs[i]
        if reduced:
            steps.append((math.prod(n for _, n in runs[:i]), length, after))
        else:
            after *= length
    return tuple(steps)


def _is_cut(step: tuple[int, int, int], converts: bool) -> bool:
    _, length, after = step
    return length > (UNCUT_HALVES if converts else UNCUT if after > 1 else math.inf)


def blocks(before: int, length: int, after: int) -> tuple[int, int, int]:
    """The shape of the scratch in which sum_of_blocks works."""
    return before, -(-length // BLOCK), after


def sum_of_blocks(x: np.ndarray, out: np.ndarray, sums: np.ndarray) -> None:
    """out (K, C) = x (K, R, C) summed over R: blocks of BLOCK rows, then their sums in pairs."""
    before, length, after = x.shape
    dtype, count = sums.dtype, 0
    together = WIDTH // after or 1
    for first in range(0, length, BLOCK * together):
        n = (length - first) // BLOCK if length - first < BLOCK * together else together
        whole = x[:, first : first + n * BLOCK].reshape(before, BLOCK, n * after)
        np.add.reduce(whole, 1, dtype, out=sums[:, count : count + n].reshape(before, n * after))
        count += n
    if length % BLOCK:
        np.add.reduce(x[:, -(length % BLOCK) :], 1, dtype, out=sums[:, count])
        count += 1
    add_in_pairs(sums, count, out)


def add_in_pairs(sums: np.ndarray, count: int, out: np.ndarray) -> None:
    """out (K, C) = the first `count` of sums (K, N, C), which are overwritten, added in pairs."""
    while count > 8:
        half = count // 2
        np.add(sums[:, :half], sums[:, count - half : count], sums[:, :half])
        count -= half
    np.add.reduce(sums[:, :count], 1, sums.dtype, out=out)


def _sum_scratch(call):
    """None of its own where no sum is cut; else the total, each cut step's blocks, and what all but the last give."""
    x, dtype, shape = call.in_dtypes[0], call.out_dtypes[0].compute, call.in_shapes[0]
    steps = _steps(shape, call.params["axis"])
    columns = len([after for _, _, after in steps if after > 1])
    cut = [_is_cut(step, i == 0 and x is not dtype) for i, step in enumerate(steps)]
    if not dtype.is_float or 0 in shape or (columns < 2 and True not in cut):
        return wide_result(call)
    shapes: list[tuple[int, ...]] = [(steps[-1][0], steps[-1][2])]
    for i, step in enumerate(steps):
        shapes += [blocks(*step)] if cut[i] else []
        shapes += [(step[0], step[2])] if step is not steps[-1] else []
    return [(s, dtype.numpy) for s in shapes]


@kernel("sum", layouts="dense", scratch=_sum_scratch)
def sum(x, out, *scratch, axis, keepdims):
    if len(scratch) > 1:
        _sum_in_steps(x, out, *scratch, axis=axis)
    else:
        _reduce(np.add, x, out, *scratch, axis=axis, keepdims=keepdims)


def _reduce(ufunc, x, out, wide=None, *, axis, keepdims):
    total = out if wide is None else wide
    ufunc.reduce(x, axis=axis, out=total, keepdims=keepdims, dtype=total.dtype)
    if wide is not None:
        np.copyto(out, wide, casting="unsafe")


def _sum_in_steps(x, out, total, *scratch, axis):
    """The sum in the steps of _steps, each in scratch of its own."""
    remaining, steps = iter(scratch), _steps(x.shape, axis)
    for step in steps:
        x = x.reshape(step)
        sums = next(remaining) if _is_cut(step, x.dtype != total.dtype) else None
        result = total if step is steps[-1] else next(remaining)
        if sums is None:
            np.add.reduce(x, axis=1, out=result, dtype=result.dtype)
        else:
            sum_of_blocks(x, result, sums)
        x = result
    np.copyto(out, total.reshape(out.shape), casting="unsafe")


kernel("prod", layouts="dense", scratch=wide_result)(functools.partial(_reduce, np.multiply))


def _rows(call):
    """Scratch: the operand with the axis moved to the end, a copy that NumPy would otherwise make itself."""
    shape, axis = call.in_shapes[0], call.params["axis"]
    return [(shape[:axis] + shape[axis + 1 :] + shape[axis : axis + 1], call.in_dtypes[0].numpy)]


def _register(name: str, ufunc: np.ufunc, position: Callable) -> None:
    """The kernels of an extreme element and of its position."""

    @kernel(name)
    def extremum(x, out, *, axis, keepdims):
        ufunc.reduce(x, axis=axis, out=out, keepdims=keepdims)

    @kernel(f"arg{name}", scratch=_rows)
    def arg_extremum(x, out, rows, *, axis, keepdims):
        np.copyto(rows, np.moveaxis(x, axis, -1))
        position(rows, axis=-1, out=out.reshape(rows.shape[:-1]))


_register("max", np.maximum, np.argmax)
_register("min", np.minimum, np.argmin)
