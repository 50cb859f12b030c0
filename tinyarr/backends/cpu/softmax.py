"""Softmax and its logarithm over the last axis, and their gradients, in blocks of rows that stay in cache."""

from __future__ import annotations

import numpy as np

from .norm import row_blocks
from .registry import kernel


def _with_totals(count: int, operand: int = 0):
    """Scratch: blocks of rows, and a number for each row of a block."""

    def scratch(call):
        blocks = row_blocks(call, count, operand)
        (rows, _), dtype = blocks[0]
        return [*blocks, ((rows, 1), dtype)]

    return scratch


def _blocks(step: int, *arrays: np.ndarray):
    """The same rows of each array, `step` at a time."""
    rows = [x.reshape(-1, x.shape[-1]) for x in arrays]
    for a in range(0, len(rows[0]), max(step, 1)):
        yield [x[a : a + step] for x in rows]


@kernel("softmax", layouts="dense", scratch=_with_totals(1))
def softmax(x, out, block, totals):
    for rows, to in _blocks(len(block), x, out):
        e, total = block[: len(rows)], totals[: len(rows)]
        np.copyto(e, rows, casting="unsafe")
        np.subtract(e, np.maximum.reduce(e, axis=-1, keepdims=True, out=total), e)
        np.exp(e, e)
        np.divide(e, np.add.reduce(e, axis=-1, keepdims=True, out=total), e)
        np.copyto(to, e, casting="unsafe")


@kernel("log_softmax", layouts="dense", scratch=_with_totals(2))
def log_softmax(x, out, block, exponentials, totals):
    for rows, to in _blocks(len(block), x, out):
        shifted, e, total = block[: len(rows)], exponentials[: len(rows)], totals[: len(rows)]
        np.copyto(shifted, rows, casting="unsafe")
        np.subtract(shifted, np.maximum.reduce(shifted, axis=-1, keepdims=True, out=total), shifted)
        np.exp(shifted, e)
        np.log(np.add.reduce(e, axis=-1, keepdims=True, out=total), total)
        np.subtract(shifted, total, shifted)
        np.copyto(to, shifted, casting="unsafe")


@kernel("softmax_gradient", layouts="dense", scratch=_with_totals(3))
def softmax_gradient(g, out, dx, wide_g, wide, product, totals):
    """dx = out (g - sum(g out))."""
    for g_rows, rows, to in _blocks(len(wide), g, out, dx):
        d, p, dp, total = (x[: len(rows)] for x in (wide_g, wide, product, totals))
        np.copyto(d, g_rows, casting="unsafe")
        np.copyto(p, rows, casting="unsafe")
        np.multiply(d, p, dp)
        np.subtract(d, np.add.reduce(dp, axis=-1, keepdims=True, out=total), d)
        np.multiply(p, d, d)
        np.copyto(to, d, casting="unsafe")


@kernel("log_softmax_gradient", layouts="dense", scratch=_with_totals(2))
def log_softmax_gradient(g, out, dx, wide_g, wide, totals):
    """dx = g - exp(out) sum(g)."""
    for g_rows, rows, to in _blocks(len(wide), g, out, dx):
        d, p, total = (x[: len(rows)] for x in (wide_g, wide, totals))
        np.copyto(d, g_rows, casting="unsafe")
        np.copyto(p, rows, casting="unsafe")
        np.exp(p, p)
        np.multiply(p, np.add.reduce(d, axis=-1, keepdims=True, out=total), p)
        np.subtract(d, p, d)
        np.copyto(to, d, casting="unsafe")
