"""Normalization over the last axis, in blocks of rows that stay in cache.

Rows whose statistics are lost to rounding or overflow are done again, scaled and centered in steps: so a row of equal
elements gives 0, and one of 1e30 what one of 1 gives.
"""

from __future__ import annotations

import math

import numpy as np

from ...ops.norm import STEEPEST
from ...ops.statistics import LARGEST, SCALE, SMALLEST
from .reduce import UNCUT, blocks, sum_of_blocks
from .registry import kernel

BLOCK = 32768  # elements


def row_blocks(call, count: int, operand: int = 0):
    """Scratch: `count` blocks of rows of an operand, in the dtype that it is computed in."""
    shape, dtype = call.in_shapes[operand], call.in_dtypes[operand]
    rows = min(max(BLOCK // max(shape[-1], 1), 1), int(np.prod(shape[:-1], dtype=np.int64)))
    return [((rows, shape[-1]), dtype.compute.numpy)] * count


def _flat(x: np.ndarray, columns: int | None = None) -> np.ndarray:
    """The rows of a contiguous array as a matrix (or, for statistics, as a vector)."""
    return x.reshape(-1) if columns is None else x.reshape(-1, columns)


def _layer_norm_scratch(call):
    parts = row_blocks(call, 2)
    return [*parts, *[((math.prod(call.in_shapes[0][:-1]),), parts[0][1])] * 2]


@kernel("layer_norm", layouts=("dense", "any", "any"), scratch=_layer_norm_scratch)
def layer_norm(x, weight, bias, out, mean, rstd, centered, squares, var, other, *, eps):
    n = x.shape[-1]
    x, out, mean, rstd = _flat(x, n), _flat(out, n), _flat(mean), _flat(rstd)
    step = max(len(centered), 1)
    for a in range(0, len(x), step):
        b = min(a + step, len(x))
        c, s = centered[: b - a], squares[: b - a]
        np.copyto(c, x[a:b], casting="unsafe")
        np.add.reduce(c, axis=-1, out=mean[a:b])
        np.divide(mean[a:b], n, mean[a:b])
        np.subtract(c, mean[a:b, None], c)
        np.multiply(c, c, s)
        np.add.reduce(s, axis=-1, out=rstd[a:b])
        np.divide(rstd[a:b], n, var[a:b])
        np.add(var[a:b], eps, rstd[a:b])
        np.sqrt(rstd[a:b], rstd[a:b])
        np.divide(1, rstd[a:b], rstd[a:b])
        np.multiply(c, rstd[a:b, None], c)
        np.multiply(c, weight, c)
        np.add(c, bias, c)
        np.copyto(out[a:b], c, casting="unsafe")
    steep = np.subtract(np.multiply(mean, mean, other), np.multiply(var, STEEPEST**2, var), other)
    if not (_in_range(rstd) and np.maximum.reduce(steep, initial=0) <= 0):
        well = (rstd > 0) & (rstd < LARGEST[rstd.itemsize]) & (steep <= 0)
        _do_again(np.flatnonzero(~well), x, weight, bias, out, mean, rstd, centered, squares, eps)


def _in_range(rstd: np.ndarray) -> bool:
    return np.minimum.reduce(rstd, initial=1) > 0 and np.maximum.reduce(rstd, initial=0) < LARGEST[rstd.itemsize]


def _do_again(every, x, weight, bias, out, mean, rstd, block, other, eps: float) -> None:
    """The rows, by their numbers, that were not normalized well; without mean and bias, by RMS norm.

    They and sqrt(eps) are scaled (statistics.scale_of). The mean that is subtracted first is exact for
    equal elements; what its rounding has left is subtracted then.
    """
    n, limit, factor = x.shape[-1], LARGEST[rstd.itemsize], SCALE[rstd.itemsize]
    for first in range(0, len(every), len(block)):
        rows = every[first : first + len(block)]
        c, s = block[: len(rows)], other[: len(rows)]
        np.copyto(c, x[rows], casting="unsafe")
        largest = np.maximum(np.abs(c, s).max(axis=-1), math.sqrt(eps))
        scale = np.where(largest >= limit, 1 / factor, np.where(largest <= 1 / limit, factor, 1)).astype(c.dtype)
        np.multiply(c, scale[:, None], c)
        if mean is not None:
            average = np.add.reduce(c, axis=-1) / n
            average += np.add.reduce(np.subtract(c, average[:, None], s), axis=-1) / n
            np.subtract(c, average[:, None], c)
            rest = np.add.reduce(c, axis=-1) / n
            np.subtract(c, rest[:, None], c)
            mean[rows] = (average + rest) / scale
        least = SMALLEST[rstd.itemsize] if eps else 0
        scaled_eps = np.maximum(np.square(math.sqrt(eps) * scale), least)
        root = 1 / np.sqrt(np.add.reduce(np.multiply(c, c, s), axis=-1) / n + scaled_eps)
        rstd[rows] = root * scale
        np.multiply(c, root[:, None], c)
        np.multiply(c, weight, c)
        if bias is not None:
            np.add(c, bias, c)
        out[rows] = c.astype(out.dtype)


def _sums(call, count: int):
    """Scratch for `count` sums over all rows, in float64, for one over a block, and for what that works in."""
    (rows, columns), dtype = row_blocks(call, 1, operand=1)[0]
    specs = [((columns,), np.dtype(np.float64))] * count + [((1, columns), dtype)]
    return specs + [(blocks(1, rows, columns), dtype)]


def _add_columns(total: np.ndarray, x: np.ndarray, column: np.ndarray, sums: np.ndarray) -> None:
    """Adds the sum over the rows of a block to the total."""
    if len(x) > UNCUT:
        sum_of_blocks(x[None], column, sums)
    else:
        np.add.reduce(x, axis=0, out=column[0])
    np.add(total, column[0], total)


def _gradient_scratch(call):
    parts = row_blocks(call, 3, operand=1)
    (rows, _), dtype = parts[0]
    return [*parts, *_sums(call, 2), ((rows,), dtype)]


@kernel("layer_norm_gradient", layouts=("dense", "dense", "any", "any", "any"), scratch=_gradient_scratch)
def layer_norm_gradient(
    g, x, weight, mean, rstd, dx, dweight, dbias, normalized, wide_g, product, total_w, total_b, column, sums, row,
    *, eps
):
    """With h = (x - mean) rstd, d = g weight: dx = rstd (d - mean(d) - h mean(d h)), dweight: sum g h, dbias: sum g."""
    n = x.shape[-1]
    g, x, dx, mean, rstd = _flat(g, n), _flat(x, n), _flat(dx, n), _flat(mean), _flat(rstd)
    total_w.fill(0)
    total_b.fill(0)
    step = max(len(normalized), 1)
    for a in range(0, len(x), step):
        b = min(a + step, len(x))
        h, d, p, r = normalized[: b - a], wide_g[: b - a], product[: b - a], row[: b - a]
        np.copyto(h, x[a:b], casting="unsafe")
        np.copyto(d, g[a:b], casting="unsafe")
        np.subtract(h, mean[a:b, None], h)
        np.multiply(h, rstd[a:b, None], h)
        _add_columns(total_b, d, column, sums)
        np.multiply(d, h, p)
        _add_columns(total_w, p, column, sums)
        np.multiply(d, weight, d)
        np.multiply(d, h, p)
        np.divide(np.add.reduce(p, axis=-1, out=r), n, r)
        np.multiply(h, r[:, None], h)
        np.divide(np.add.reduce(d, axis=-1, out=r), n, r)
        np.subtract(d, r[:, None], d)
        np.subtract(d, h, d)
        np.multiply(d, rstd[a:b, None], d)
        np.copyto(dx[a:b], d, casting="unsafe")
    np.copyto(dweight, total_w, casting="unsafe")
    np.copyto(dbias, total_b, casting="unsafe")


@kernel("rms_norm", layouts=("dense", "any"), scratch=lambda call: row_blocks(call, 2))
def rms_norm(x, weight, out, rstd, wide, squares, *, eps):
    n = x.shape[-1]
    x, out, rstd = _flat(x, n), _flat(out, n), _flat(rstd)
    step = max(len(wide), 1)
    for a in range(0, len(x), step):
        b = min(a + step, len(x))
        w, s = wide[: b - a], squares[: b - a]
        np.copyto(w, x[a:b], casting="unsafe")
        np.multiply(w, w, s)
        np.add.reduce(s, axis=-1, out=rstd[a:b])
        np.divide(rstd[a:b], n, rstd[a:b])
        np.add(rstd[a:b], eps, rstd[a:b])
        np.sqrt(rstd[a:b], rstd[a:b])
        np.divide(1, rstd[a:b], rstd[a:b])
        np.multiply(w, rstd[a:b, None], w)
        np.multiply(w, weight, w)
        np.copyto(out[a:b], w, casting="unsafe")
    if not _in_range(rstd):
        well = (rstd > 0) & (rstd < LARGEST[rstd.itemsize])
        _do_again(np.flatnonzero(~well), x, weight, None, out, None, rstd, wide, squares, eps)


def _rms_gradient_scratch(call):
    parts = row_blocks(call, 3, operand=1)
    (rows, _), dtype = parts[0]
    return [*parts, *_sums(call, 1), ((rows,), dtype)]


@kernel("rms_norm_gradient", layouts=("dense", "dense", "any", "any"), scratch=_rms_gradient_scratch)
def rms_norm_gradient(g, x, weight, rstd, dx, dweight, normalized, wide_g, product, total, column, sums, row, *, eps):
    """With h = x rstd, d = g weight: dx = rstd (d - h mean(d h)), dweight: sum g h."""
    n = x.shape[-1]
    g, x, dx, rstd = _flat(g, n), _flat(x, n), _flat(dx, n), _flat(rstd)
    total.fill(0)
    step = max(len(normalized), 1)
    for a in range(0, len(x), step):
        b = min(a + step, len(x))
        h, d, p, r = normalized[: b - a], wide_g[: b - a], product[: b - a], row[: b - a]
        np.copyto(h, x[a:b], casting="unsafe")
        np.copyto(d, g[a:b], casting="unsafe")
        np.multiply(h, rstd[a:b, None], h)
        np.multiply(d, h, p)
        _add_columns(total, p, column, sums)
        np.multiply(d, weight, d)
        np.multiply(d, h, p)
        np.divide(np.add.reduce(p, axis=-1, out=r), n, r)
        np.multiply(h, r[:, None], h)
        np.subtract(d, h, d)
        np.multiply(d, rstd[a:b, None], d)
        np.copyto(dx[a:b], d, casting="unsafe")
    np.copyto(dweight, total, casting="unsafe")
