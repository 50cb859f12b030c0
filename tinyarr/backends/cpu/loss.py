"""Cross-entropy, in blocks of rows; with the linear layer before it, whose logits are held a block at a time."""

from __future__ import annotations

import numpy as np

from ...errors import OutOfBounds
from .registry import kernel


def _check_targets(operation: str, targets: np.ndarray, first: int, classes: int, ignore_index: int) -> np.ndarray:
    """Which targets count. Raises OutOfBounds for one that is neither a class nor ignored."""
    counted = targets != ignore_index
    bad = counted & ((targets < 0) | (targets >= classes))
    if bad.any():
        at = int(np.argmax(bad))
        raise OutOfBounds(
            f"{operation}: target {first + at} is {int(targets[at])}, there are {classes} classes: "
            f"use 0 to {classes - 1}, or ignore_index ({ignore_index})"
        )
    return counted


BLOCK = 32768  # elements


def row_blocks(call, count: int, operand: int = 0):
    """Scratch: `count` blocks of rows of an operand, in the dtype that it is computed in."""
    shape, dtype = call.in_shapes[operand], call.in_dtypes[operand]
    rows = min(max(BLOCK // max(shape[-1], 1), 1), int(np.prod(shape[:-1], dtype=np.int64)))
    return [((rows, shape[-1]), dtype.compute.numpy)] * count


@kernel("cross_entropy", layouts=("rows", "any"), scratch=lambda call: row_blocks(call, 1))
def cross_entropy(logits, targets, loss, lse, block, *, ignore_index):
    step = max(len(block), 1)
    for a in range(0, len(logits), step):
        b = min(a + step, len(logits))
        e, total, t = block[: b - a], lse[a:b], targets[a:b]
        counted = _check_targets("cross_entropy", t, a, logits.shape[-1], ignore_index)
        np.copyto(e, logits[a:b], casting="unsafe")
        np.maximum.reduce(e, axis=-1, out=total)
        loss[a:b] = -e[np.arange(b - a), np.where(counted, t, 0)]
        shift = total.copy()
        np.subtract(e, shift[:, None], e)
        np.exp(e, e)
        np.add.reduce(e, axis=-1, out=total)
        np.log(total, total)
        np.add(total, shift, total)
        np.add(loss[a:b], total, loss[a:b])
        loss[a:b][~counted] = 0


@kernel(
    "cross_entropy_gradient", layouts=("any", "rows", "any", "any"), scratch=lambda call: row_blocks(call, 1, operand=1)
)
def cross_entropy_gradient(g, logits, targets, lse, out, block, *, ignore_index):
    """g (softmax(logits) - onehot(target)); 0 where the target is ignored.

    Dividing by their own sum, 1 but for rounding, frees the weights of the rounding of lse.
    """
    step = max(len(block), 1)
    for a in range(0, len(logits), step):
        b = min(a + step, len(logits))
        e, t = block[: b - a], targets[a:b]
        np.copyto(e, logits[a:b], casting="unsafe")
        np.subtract(e, lse[a:b, None], e)
        np.exp(e, e)
        np.divide(e, np.add.reduce(e, axis=-1, keepdims=True), e)
        counted = t != ignore_index
        e[np.arange(b - a), np.where(counted, t, 0)] -= 1
        np.multiply(e, np.where(counted, g[a:b], 0)[:, None], e)
        np.copyto(out[a:b], e, casting="unsafe")


LOGITS = 1 << 24  # held at once: so many that the products of a block are worth their overhead
ROWS = 1024  # in a block at most


def _logits(call, dtype):
    rows, classes = call.in_shapes[0][0], call.in_shapes[1][0]
    return ((min(max(LOGITS // max(classes, 1), 1), ROWS, rows), classes), dtype)


def _linear_scratch(call):
    dtype = call.in_dtypes[0].compute
    logits = _logits(call, dtype.numpy)
    rows, (classes, channels) = logits[0][0], call.in_shapes[1]
    narrow = dtype is not call.in_dtypes[0]  # then the operands of the products are copied into float32
    wide = [((rows, channels), dtype.numpy), ((classes, channels), dtype.numpy)] if narrow else []
    return [logits, ((rows,), dtype.numpy), ((rows,), dtype.numpy), *wide]


def _linear_gradient_scratch(call):
    specs = _linear_scratch(call)
    weight = (call.in_shapes[1], call.in_dtypes[0].compute.numpy)
    return [*specs[:3], weight, weight, *specs[3:]]


def _block_losses(x, weight, targets, logits, row, lse, first, ignore_index):
    """The logits of a block, made softmax's numerators; their sums in lse, the largest subtracted. Returns the loss."""
    np.matmul(x, weight.T, out=logits)
    counted = _check_targets("linear_cross_entropy", targets, first, logits.shape[-1], ignore_index)
    np.maximum.reduce(logits, axis=-1, out=row)
    np.subtract(logits, row[:, None], logits)
    picked = logits[np.arange(len(logits)), np.where(counted, targets, 0)]
    np.exp(logits, logits)
    np.add.reduce(logits, axis=-1, out=lse)
    return np.where(counted, np.log(lse) - picked, 0).sum(), counted


@kernel("linear_cross_entropy", layouts=("dense", "dense", "any"), scratch=_linear_scratch)
def linear_cross_entropy(x, weight, targets, loss, logits, row, lse, wide_x=None, wide_weight=None, *, ignore_index):
    total = 0.0
    w = _widened(weight, wide_weight)
    step = max(len(logits), 1)
    for a in range(0, len(x), step):
        b = min(a + step, len(x))
        block = _widened(x[a:b], wide_x)
        total += _block_losses(block, w, targets[a:b], logits[: b - a], row[: b - a], lse[: b - a], a, ignore_index)[0]
    loss[...] = total


@kernel("linear_cross_entropy_with_gradients", layouts=("dense", "dense", "any"), scratch=_linear_gradient_scratch)
def linear_cross_entropy_with_gradients(
    x, weight, targets, loss, dx, dweight, logits, row, lse, total_w, more_w, wide_x=None, wide_weight=None,
    *, ignore_index
):
    """With P = softmax(x W^T) - onehot(targets): dx = P W, dW = P^T x."""
    total = 0.0
    total_w.fill(0)
    w = _widened(weight, wide_weight)
    step = max(len(logits), 1)
    for a in range(0, len(x), step):
        b = min(a + step, len(x))
        p, t, s = logits[: b - a], targets[a:b], lse[: b - a]
        block = _widened(x[a:b], wide_x)
        part, counted = _block_losses(block, w, t, p, row[: b - a], s, a, ignore_index)
        total += part
        np.divide(p, s[:, None], p)
        p[np.arange(b - a), np.where(counted, t, 0)] -= 1
        p[~counted] = 0
        np.add(total_w, np.matmul(p.T, block, out=more_w), total_w)
        np.copyto(dx[a:b], np.matmul(p, w, out=block if wide_x is not None else dx[a:b]), casting="unsafe")
    loss[...] = total
    np.copyto(dweight, total_w, casting="unsafe")


def _widened(x: np.ndarray, buffer: np.ndarray | None) -> np.ndarray:
    """x itself, or a float32 copy of it in scratch."""
    if buffer is None:
        return x
    np.copyto(buffer[: len(x)], x, casting="unsafe")
    return buffer[: len(x)]
