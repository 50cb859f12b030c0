"""Cross-entropy of logits, and what losses of classes share. Floor 1."""

from __future__ import annotations

import math

from .. import dtypes
from ..errors import ArgumentError, DtypeError, ShapeError, describe
from ..tensor import Tensor, require_tensors
from ..transforms import vjp
from ..views import Shape
from . import row, scalar
from .elementwise import astype, where
from .elementwise_primitive import elementwise
from .index import take
from .primitive import Bounds, Primitive, apply
from .reduce import mean, sum
from .rowwise import Rowwise
from .shape import expand_dims, reshape
from .softmax import log_softmax, logsumexp


def _infer_cross_entropy(shapes, types, *, ignore_index):
    kept = types[0].compute
    return [(shapes[1], kept), (shapes[1], kept)]


def _of_class(x, target, *, ignore_index):
    largest = row.stop(row.max(x))
    lse = scalar.log(row.sum(scalar.exp(x - largest)))
    loss = scalar.where(scalar.equal(target, ignore_index), 0, lse - row.at(x - largest, target))
    return loss, scalar.where(scalar.make("isinf", largest), largest, lse + largest)


_loss_of_class = Rowwise("loss_of_class", _of_class, ("x", "target"), ("loss", "lse"), derived=True)


@_loss_of_class.gradient
def _loss_of_class_gradient(g, g_lse, x, target, lse, *, ignore_index):  # by hand: one pass over a row
    share = scalar.exp(x - lse)
    is_class = scalar.where(scalar.equal(row.index, target), 1, 0)
    return scalar.where(scalar.equal(target, ignore_index), 0, g * (share - is_class)) + g_lse * share, None


def _cross_entropy_composite(logits, targets, *, ignore_index):
    wide = astype(logits, logits.dtype.compute, copy=False)
    found = _loss_of_class(wide, expand_dims(targets, -1), ignore_index=ignore_index)
    return tuple(reshape(x, targets.shape) for x in found)


_cross_entropy = Primitive(
    "cross_entropy",
    _infer_cross_entropy,
    inputs=("logits", "targets"),
    outputs=("loss", "lse"),
    composite=_cross_entropy_composite,
    follows_composite=True,
    bounds=lambda shapes, params: Bounds(1, 0, shapes[0][-1], params["ignore_index"], "target"),
)


def _cross_entropy_gradient_composite(g, logits, targets, lse, *, ignore_index):
    _, pull = vjp(lambda x: _cross_entropy_composite(x, targets, ignore_index=ignore_index)[0], logits)
    return pull(g)[0]


_cross_entropy_gradient = Primitive(
    "cross_entropy_gradient",
    lambda shapes, types, *, ignore_index: [(shapes[1], types[1])],
    inputs=("g", "logits", "targets", "lse"),
    composite=_cross_entropy_gradient_composite,
    overwrites=1,
    bounds=lambda shapes, params: Bounds(2, 0, shapes[1][-1], params["ignore_index"], "target"),
)


@_cross_entropy.gradient
def _cross_entropy_backward(gs, logits, targets, lse, *, ignore_index):
    return apply(_cross_entropy_gradient, gs[0], logits, targets, lse, ignore_index=ignore_index), None


def cross_entropy(
    logits: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """-log softmax(logits)[target], in nats. logits (..., V) floating, targets (...) integers in [0, V).

    A class counts as often as `weight` (V,) says, else once, and targets equal to `ignore_index` for nothing.
    reduction: 'mean' over what the targets count, 'sum', or 'none' (a loss each). With `label_smoothing` that share of
    each target is spread evenly over the classes. The loss is float32 for half and float32 logits, float64 for
    float64. Raises OutOfBounds for any other target outside [0, V).
    Source of the smoothing: Szegedy et al. 2016, "Rethinking the Inception architecture", section 7.
    """
    rows, flat = rows_and_targets("cross_entropy", "logits", logits, targets)
    if not 0 <= label_smoothing <= 1:
        raise ArgumentError(f"cross_entropy: label_smoothing is {label_smoothing}: it must lie in [0, 1]")
    losses = apply(_cross_entropy, rows, flat, ignore_index=ignore_index)[0]
    counts = None if weight is None else counts_of("cross_entropy", weight, flat, rows, ignore_index)
    losses = losses if counts is None else losses * counts
    if label_smoothing:
        wide = astype(rows, losses.dtype, copy=False)
        if weight is None:
            spread = logsumexp(rows, axis=-1) - mean(wide, axis=-1)
        else:
            spread = -mean(log_softmax(wide) * weight, axis=-1)
        spread = where(flat == ignore_index, 0, spread)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    return over_targets("cross_entropy", losses, flat, targets.shape, ignore_index, reduction, counts)


def rows_and_targets(operation: str, name: str, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """x as rows (N, V) and the targets as (N,) int64."""
    require_tensors(operation, **{name: x, "targets": targets})
    if x.ndim == 0 or x.shape[:-1] != targets.shape:
        raise ShapeError(
            f"{operation}: {describe(name, x)}, {describe('targets', targets)}: "
            f"{name} must have one more axis than targets, the last, over the classes"
        )
    if targets.dtype.kind not in ("signed", "unsigned") or not x.dtype.is_float:
        raise DtypeError(
            f"{operation}: {describe(name, x)}, {describe('targets', targets)}: "
            f"{name} must be floating and targets integers"
        )
    flat = astype(reshape(targets, (targets.size,)), dtypes.int64, copy=False)  # unsigned ones can't hold -100
    return reshape(x, (targets.size, x.shape[-1])), flat


def counts_of(operation: str, weight: Tensor, targets: Tensor, rows: Tensor, ignore_index: int) -> Tensor:
    """Returns how often each target counts: the weight of its class, 0 for `ignore_index`."""
    require_tensors(operation, weight=weight)
    if weight.shape != rows.shape[-1:] or not weight.dtype.is_float:
        raise ShapeError(f"{operation}: {describe('weight', weight)}: it must be floating, of shape {rows.shape[-1:]}")
    is_counted = targets != ignore_index
    counts = take(weight, where(is_counted, targets, 0), axis=0)
    return where(is_counted, astype(counts, rows.dtype.compute, copy=False), 0)


@elementwise
def _mean_of_counted(total, count):
    return scalar.where(count > 0, total / scalar.maximum(count, 1), math.nan)


def mean_of_counted(total: Tensor, targets: Tensor, ignore_index: int) -> Tensor:
    """The sum of losses over the number of targets that count; NaN for none, but its gradient is 0 then."""
    return _mean_of_counted(total, sum(astype(targets != ignore_index, total.dtype)))


def over_targets(
    operation: str,
    losses: Tensor,
    targets: Tensor,
    shape: Shape,
    ignore_index: int,
    reduction: str,
    counts: Tensor | None,
) -> Tensor:
    if reduction == "mean" and counts is not None:
        return _mean_of_counted(sum(losses), sum(counts))
    if reduction == "mean":
        return mean_of_counted(sum(losses), targets, ignore_index)
    return reduced(operation, reshape(losses, shape), reduction)


def reduced(operation: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ArgumentError(f"{operation}: reduction is {reduction!r}: use 'mean', 'sum' or 'none'")
    return losses if reduction == "none" else sum(losses) if reduction == "sum" else mean(losses)
