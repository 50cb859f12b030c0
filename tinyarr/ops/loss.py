"""Losses. Floor 1."""

from __future__ import annotations

import math

from .. import dtypes
from ..errors import ArgumentError, DtypeError, ShapeError, describe
from ..tensor import Tensor, require_tensors
from ..transforms import vjp
from ..views import Shape
from . import row, scalar
from .activation import softplus
from .create import arange
from .elementwise import abs, astype, minimum, square, where
from .elementwise_primitive import elementwise
from .index import take, take_along_axis
from .primitive import Bounds, Primitive, apply
from .reduce import mean, sum
from .rowwise import rowwise
from .shape import expand_dims, reshape
from .softmax import log_softmax, logsumexp


def _infer_cross_entropy(shapes, types, *, ignore_index):
    kept = types[0].compute
    return [(shapes[1], kept), (shapes[1], kept)]


@rowwise(outputs=("loss", "lse"))
def _loss_of_class(x, target, *, ignore_index):
    largest = row.stop(row.max(x))
    lse = scalar.log(row.sum(scalar.exp(x - largest)))
    loss = scalar.where(scalar.equal(target, ignore_index), 0, lse - row.at(x - largest, target))
    return loss, scalar.where(scalar.make("isinf", largest), largest, lse + largest)


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
    rows, flat = _rows("cross_entropy", "logits", logits, targets)
    if not 0 <= label_smoothing <= 1:
        raise ArgumentError(f"cross_entropy: label_smoothing is {label_smoothing}: it must lie in [0, 1]")
    losses = apply(_cross_entropy, rows, flat, ignore_index=ignore_index)[0]
    counts = None if weight is None else _counts("cross_entropy", weight, flat, rows, ignore_index)
    losses = losses if counts is None else losses * counts
    if label_smoothing:
        wide = astype(rows, losses.dtype, copy=False)
        if weight is None:
            spread = logsumexp(rows, axis=-1) - mean(wide, axis=-1)
        else:
            spread = -mean(log_softmax(wide) * weight, axis=-1)
        spread = where(flat == ignore_index, 0, spread)
        losses = (1 - label_smoothing) * losses + label_smoothing * spread
    return _over_targets("cross_entropy", losses, flat, targets.shape, ignore_index, reduction, counts)


def nll_loss(
    log_probabilities: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-log_probabilities[target]. log_probabilities (..., V) floating, targets (...) integers in [0, V).

    weight, ignore_index, reduction and dtypes as for cross_entropy.
    """
    rows, flat = _rows("nll_loss", "log_probabilities", log_probabilities, targets)
    counted = flat != ignore_index
    picked = take_along_axis(rows, expand_dims(where(counted, flat, 0), -1))
    losses = where(counted, -astype(reshape(picked, (flat.size,)), rows.dtype.compute, copy=False), 0)
    counts = None if weight is None else _counts("nll_loss", weight, flat, rows, ignore_index)
    losses = losses if counts is None else losses * counts
    return _over_targets("nll_loss", losses, flat, targets.shape, ignore_index, reduction, counts)


def _rows(operation: str, name: str, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
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


def _counts(operation: str, weight: Tensor, targets: Tensor, rows: Tensor, ignore_index: int) -> Tensor:
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


def _over_targets(
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
    return _reduce(operation, reshape(losses, shape), reduction)


def mse_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """(x - target)**2, for equal shapes; float32 for half types. reduction: 'mean', 'sum', or 'none' (elementwise)."""
    return _reduce("mse_loss", square(_difference("mse_loss", x, target)), reduction)


def l1_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """|x - target|, gradient 0 where they are equal; shapes, dtypes and reduction as for mse_loss."""
    return _reduce("l1_loss", abs(_difference("l1_loss", x, target)), reduction)


def huber_loss(x: Tensor, target: Tensor, *, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d**2 / 2 with d = |x - target| up to delta, from there delta (d - delta / 2); else as mse_loss.

    Source: Huber 1964, "Robust estimation of a location parameter", section 5.
    """
    if not delta > 0:
        raise ArgumentError(f"huber_loss: delta is {delta}: it must be positive")
    d = abs(_difference("huber_loss", x, target))
    inside = minimum(d, delta)
    return _reduce("huber_loss", 0.5 * square(inside) + delta * (d - inside), reduction)


@elementwise
def _binary_cross_entropy(x, target, positive_weight):
    # log(1 + exp(-x)) without overflow, whose derivative is taken as that of softplus.
    return (1 - target) * x + (1 + (positive_weight - 1) * target) * softplus(-x)


def binary_cross_entropy_with_logits(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: str = "mean",
    pos_weight: Tensor | None = None,
) -> Tensor:
    """-(p t log s + (1 - t) log(1 - s)) w, with s = sigmoid(x), for targets t of x's shape, usually 0 or 1.

    w is `weight`, p is `pos_weight`; both broadcast and are 1 if not given. dtypes and reduction as for mse_loss.
    """
    _difference("binary_cross_entropy_with_logits", x, target)
    wide = x.dtype.compute
    p = 1.0 if pos_weight is None else astype(pos_weight, wide, copy=False)
    losses = _binary_cross_entropy(astype(x, wide, copy=False), astype(target, wide, copy=False), p)
    return _reduce("binary_cross_entropy_with_logits", losses if weight is None else losses * weight, reduction)


def _difference(operation: str, x: Tensor, target: Tensor) -> Tensor:
    """x - target, in float32 for half types."""
    require_tensors(operation, x=x, target=target)
    if x.shape != target.shape:
        raise ShapeError(f"{operation}: {describe('x', x)}, {describe('target', target)}: they must have equal shapes")
    if not (x.dtype.is_float and target.dtype.is_float):
        raise DtypeError(f"{operation}: {describe('x', x)}, {describe('target', target)}: they must be floating")
    return astype(x, x.dtype.compute, copy=False) - astype(target, target.dtype.compute, copy=False)


def _reduce(operation: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ArgumentError(f"{operation}: reduction is {reduction!r}: use 'mean', 'sum' or 'none'")
    return losses if reduction == "none" else sum(losses) if reduction == "sum" else mean(losses)
