"""Normalization over the last axis, in blocks of rows that stay in cache."""

from __future__ import annotations

import numpy as np

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


@kernel("layer_norm", layouts=("dense", "any", "any"), scratch=lambda call: row_blocks(call, 2))
def layer_norm(x, weight, bias, out, mean, rstd, centered, squares, *, eps):
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
        np.divide(rstd[a:b], n, rstd[a:b])
        np.add(rstd[a:b], eps, rstd[a:b])
        np.sqrt(rstd[a:b], rstd[a:b])
        np.divide(1, rstd[a:b], rstd[a:b])
        np.multiply(c, rstd[a:b, None], c)
        np.multiply(c, weight, c)
        np.add(c, bias, c)
        np.copyto(out[a:b], c, casting="unsafe")


def _gradient_scratch(call):
    blocks = row_blocks(call, 3, operand=1)
    (rows, columns), dtype = blocks[0]
    return [*blocks, *[((columns,), dtype)] * 3, ((rows,), dtype)]


@kernel("layer_norm_gradient", layouts=("dense", "dense", "any", "any", "any"), scratch=_gradient_scratch)
def layer_norm_gradient(
    g, x, weight, mean, rstd, dx, dweight, dbias, normalized, wide_g, product, total_w, total_b, column, row, *, eps
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
        np.add(total_b, np.add.reduce(d, axis=0, out=column), total_b)
        np.multiply(d, h, p)
        np.add(total_w, np.add.reduce(p, axis=0, out=column), total_w)
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


def _rms_gradient_scratch(call):
    blocks = row_blocks(call, 3, operand=1)
    (rows, columns), dtype = blocks[0]
    return [*blocks, *[((columns,), dtype)] * 2, ((rows,), dtype)]


@kernel("rms_norm_gradient", layouts=("dense", "dense", "any", "any"), scratch=_rms_gradient_scratch)
def rms_norm_gradient(g, x, weight, rstd, dx, dweight, normalized, wide_g, product, total, column, row, *, eps):
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
        np.add(total, np.add.reduce(p, axis=0, out=column), total)
        np.multiply(d, weight, d)
        np.multiply(d, h, p)
        np.divide(np.add.reduce(p, axis=-1, out=r), n, r)
        np.multiply(h, r[:, None], h)
        np.subtract(d, h, d)
        np.multiply(d, rstd[a:b, None], d)
        np.copyto(dx[a:b], d, casting="unsafe")
    np.copyto(dweight, total, casting="unsafe")
