"""The head of a language model: a linear layer and the cross-entropy of logits never held whole. Floor 1."""

from __future__ import annotations

import itertools
import operator
from typing import Any

from .. import dtypes
from ..errors import ArgumentError, DtypeError, ShapeError, describe
from ..tape import recording
from ..tensor import Tensor, require_tensors
from ..transforms import custom_gradient
from .attention import power
from .create import arange, contiguous, zeros
from .elementwise import astype, log, where
from .fused import fused
from .index import _take_gradient, take
from .loss import mean_of_counted
from .matmul import linear, matmul, matmul_add, matmul_wide
from .primitive import Bounds, apply
from .reduce import max as largest_of
from .reduce import sum
from .shape import concat, expand_dims, matrix_transpose, reshape, split

MOST_BLOCKS = 32  # each is a few operations of a program


def _bounds(shapes, params):
    return Bounds(1, 0, params["classes"], params["ignore_index"], "target", params["first"])


def _losses(logits, targets, ignore_index):
    """The losses (n,), and of what the gradient is made: powers (n, V), their sums, which count, where the targets are.

    Powers are of the logits less the largest in their row; targets are positions (n,) among all logits.
    """
    n, V = logits.shape
    largest = largest_of(logits.detach(), axis=-1, keepdims=True)
    powers = power(logits, largest)
    total = sum(powers, axis=-1, keepdims=True)
    counts = targets != ignore_index
    at = arange(n, device=logits.device) * V + where(counts, targets, 0)
    below = reshape(largest, (n,)) - take(reshape(logits, (n * V,)), at)
    return where(counts, log(reshape(total, (n,))) + below, 0), powers, total, counts, at


@fused(variables=(), bounds=_bounds)
def _linear_cross_entropy(logits, targets, *, classes, ignore_index, first):
    """The loss of each row of logits (n, P), of which the first `classes` count; targets (n,) from number `first`."""
    return _losses(astype(logits[:, :classes], logits.dtype.compute, copy=False), targets, ignore_index)[0]


@fused(outputs=("dlogits", "loss"), variables=(), overwrites=0, bounds=_bounds)
def _linear_cross_entropy_with_gradients(logits, targets, *, classes, ignore_index, first):
    """The losses, and the gradient of their sum: softmax(logits) - onehot(target), 0 in what pads the rows."""
    wide = astype(logits[:, :classes], logits.dtype.compute, copy=False)
    loss, powers, total, counts, at = _losses(wide, targets, ignore_index)
    counts = astype(counts, wide.dtype)
    slope = reshape(powers * (expand_dims(counts, -1) / total), (wide.size,))
    slope = slope + apply(_take_gradient, -counts, at, axis=0, size=wide.size, wrap=False)
    slope = astype(reshape(slope, wide.shape), logits.dtype, copy=False)
    padding = logits.shape[1] - classes
    if padding:
        slope = concat([slope, zeros((len(logits), padding), dtype=slope.dtype, device=slope.device)], axis=1)
    return slope, loss


def _block(rows: int, classes: int, most: int) -> int:
    """Rows of about equal blocks with at most so many logits, in multiples of 128, but no more than MOST_BLOCKS."""
    blocks = min(max(-(-rows * classes // most), 1), MOST_BLOCKS)
    return max(min(-(-rows // (blocks * 128)) * 128, rows), 1)


def _in_blocks(x: Tensor, weight: Tensor, targets: Tensor):
    """Blocks of x and targets, with the number of their first row; and the weight with an even number of rows."""
    backend = x.device.backend
    padding = -len(weight) % backend.even
    if padding:
        weight = concat([weight, zeros((padding, weight.shape[1]), dtype=weight.dtype, device=weight.device)])
    block = _block(len(x), len(weight), backend.block)
    return zip(itertools.count(0, block), split(x, block), split(targets, block), strict=False), weight


def _summed(x, weight, targets, classes, ignore_index):
    blocks, padded = _in_blocks(x, weight, targets)
    given = {"classes": classes, "ignore_index": ignore_index}
    return sum(concat([_linear_cross_entropy(linear(part, padded), t, first=i, **given) for i, part, t in blocks]))


@custom_gradient
def _summed_with_gradients(x, weight, targets, classes, ignore_index):
    """The loss is one number, so its gradient is a number times what is known already when the logits are at hand."""
    blocks, padded = _in_blocks(x, weight, targets)
    given = {"classes": classes, "ignore_index": ignore_index}
    losses: list[Tensor] = []
    pieces: list[Tensor] = []
    total: Any = None
    for first, part, labels in blocks:
        slope, loss = _linear_cross_entropy_with_gradients(linear(part, padded), labels, first=first, **given)
        turned = matrix_transpose(slope)
        total = apply(matmul_wide, turned, part) if total is None else apply(matmul_add, total, turned, part)
        losses.append(loss)
        pieces.append(matmul(slope, padded))
    dx, dweight = concat(pieces), astype(total[: len(weight)], weight.dtype, copy=False)

    def backward(g):
        return *(astype(g * astype(d, g.dtype, copy=False), d.dtype, copy=False) for d in (dx, dweight)), None

    return sum(concat(losses)), backward


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, classes: int | None = None, ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """cross_entropy(linear(x, weight), targets), a block of rows at a time.

    x (..., C), weight (V, C) of x's dtype, targets (...) integers in [0, V). classes: how many rows of the weight, the
    first ones, count; the others pad it, and the targets are in [0, classes). reduction: 'mean' over the targets that
    are not `ignore_index`, or 'sum'. Where a gradient is wanted it is computed along with the loss.
    """
    require_tensors("linear_cross_entropy", x=x, weight=weight, targets=targets)
    shapes = f"linear_cross_entropy: {describe('x', x)}, {describe('weight', weight)}, {describe('targets', targets)}"
    if x.ndim == 0 or weight.ndim != 2 or x.shape[-1] != weight.shape[1] or x.shape[:-1] != targets.shape:
        raise ShapeError(f"{shapes}: they must be (..., C), (V, C) and (...)")
    integers = targets.dtype.kind in ("signed", "unsigned")
    if not (x.dtype.is_float and x.dtype is weight.dtype and integers):
        raise DtypeError(f"{shapes}: x and weight must be of one floating dtype, targets integers")
    if reduction not in ("mean", "sum"):
        raise ArgumentError(f"linear_cross_entropy: reduction is {reduction!r}: use 'mean' or 'sum'")
    classes = len(weight) if classes is None else operator.index(classes)
    if not 1 <= classes <= len(weight):
        raise ArgumentError(f"linear_cross_entropy: classes is {classes}: the weight has {len(weight)} rows, use some")
    rows = reshape(x, (targets.size, x.shape[-1]))
    flat = astype(reshape(targets, (targets.size,)), dtypes.int64, copy=False)
    wanted = recording.get() and (x.requires_grad or weight.requires_grad)
    summed = _summed_with_gradients if wanted else _summed
    loss = summed(contiguous(rows), contiguous(weight), flat, classes, ignore_index)
    return loss if reduction == "sum" else mean_of_counted(loss, flat, ignore_index)
