"""Cross-entropy, in blocks of rows that stay in cache."""

from __future__ import annotations

import numpy as np

from ...errors import OutOfBounds
from .norm import row_blocks
from .registry import kernel


def _check_targets(targets: np.ndarray, first: int, classes: int, ignore_index: int) -> np.ndarray:
    """Which targets count. Raises OutOfBounds for one that is neither a class nor ignored."""
    counted = targets != ignore_index
    bad = counted & ((targets < 0) | (targets >= classes))
    if bad.any():
        at = int(np.argmax(bad))
        raise OutOfBounds(
            f"cross_entropy: target {first + at} is {int(targets[at])}, there are {classes} classes: "
            f"use 0 to {classes - 1}, or ignore_index ({ignore_index})"
        )
    return counted


@kernel("cross_entropy", layouts=("rows", "any"), scratch=lambda call: row_blocks(call, 1))
def cross_entropy(logits, targets, loss, lse, block, *, ignore_index):
    step = max(len(block), 1)
    for a in range(0, len(logits), step):
        b = min(a + step, len(logits))
        e, total, t = block[: b - a], lse[a:b], targets[a:b]
        counted = _check_targets(t, a, logits.shape[-1], ignore_index)
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
