"""Losses besides cross_entropy: of log-probabilities, of differences, of yes and no. Floor 5."""

from __future__ import annotations

from ...errors import ArgumentError, DtypeError, ShapeError, describe
from ...tensor import Tensor, require_tensors
from .. import scalar
from ..activation import softplus
from ..elementwise import abs, astype, minimum, square, where
from ..elementwise_primitive import elementwise
from ..index import take_along_axis
from ..loss import counts_of, over_targets, reduced, rows_and_targets
from ..shape import expand_dims, reshape


def nll_loss(
    log_probabilities: Tensor,
    targets: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """-log_probabilities[target]. log_probabilities (..., V) floating, targets (...) integers in [0, V).

    weight, ignore_index, reduction, dtypes and OutOfBounds as for cross_entropy.
    """
    rows, flat = rows_and_targets("nll_loss", "log_probabilities", log_probabilities, targets)
    counted = flat != ignore_index
    classes = where(counted, where(flat < 0, rows.shape[-1], flat), 0)  # a negative index would count from the end
    picked = take_along_axis(rows, expand_dims(classes, -1))
    losses = where(counted, -astype(reshape(picked, (flat.size,)), rows.dtype.compute, copy=False), 0)
    counts = None if weight is None else counts_of("nll_loss", weight, flat, rows, ignore_index)
    losses = losses if counts is None else losses * counts
    return over_targets("nll_loss", losses, flat, targets.shape, ignore_index, reduction, counts)


def mse_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """(x - target)**2, for equal shapes; float32 for half types. reduction: 'mean', 'sum', or 'none' (elementwise)."""
    x, target = _wide("mse_loss", x, target)
    return reduced("mse_loss", square(x - target), reduction)


def l1_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """|x - target|, gradient 0 where they are equal; shapes, dtypes and reduction as for mse_loss."""
    x, target = _wide("l1_loss", x, target)
    return reduced("l1_loss", abs(x - target), reduction)


def huber_loss(x: Tensor, target: Tensor, *, reduction: str = "mean", delta: float = 1.0) -> Tensor:
    """d**2 / 2 with d = |x - target| up to delta, from there delta (d - delta / 2); else as mse_loss.

    Source: Huber 1964, "Robust estimation of a location parameter", section 5.
    """
    if not delta > 0:
        raise ArgumentError(f"huber_loss: delta is {delta}: it must be positive")
    x, target = _wide("huber_loss", x, target)
    d = abs(x - target)
    inside = minimum(d, delta)
    return reduced("huber_loss", inside * (d - 0.5 * inside), reduction)


def smooth_l1_loss(x: Tensor, target: Tensor, *, reduction: str = "mean", beta: float = 1.0) -> Tensor:
    """huber_loss with delta=beta, over beta: d**2 / (2 beta) up to beta, from there d - beta / 2; l1_loss for beta 0.

    Source: Girshick 2015, "Fast R-CNN", eq. 3.
    """
    if not beta >= 0:
        raise ArgumentError(f"smooth_l1_loss: beta is {beta}: it must be 0 or more")
    x, target = _wide("smooth_l1_loss", x, target)
    d = abs(x - target)
    inside = minimum(d, beta)
    return reduced("smooth_l1_loss", d - inside + square(inside) * (0.5 / beta) if beta else d, reduction)


@elementwise
def _binary_cross_entropy(p, target):
    # log 0 counts as -100, as in PyTorch: a certain mistake is dear, but no infinity that spoils a mean.
    yes, no = scalar.maximum(scalar.log(p), -100), scalar.maximum(scalar.log1p(-p), -100)
    return (target - 1) * no - target * yes


@_binary_cross_entropy.gradient
def _binary_cross_entropy_gradient(g, p, target):
    # The derived one is 0 / 0 at 0 and 1. The bound is PyTorch's too.
    yes, no = scalar.maximum(scalar.log(p), -100), scalar.maximum(scalar.log1p(-p), -100)
    return g * (p - target) / scalar.maximum(p * (1 - p), 1e-12), g * (no - yes)


def binary_cross_entropy(
    p: Tensor, target: Tensor, weight: Tensor | None = None, *, reduction: str = "mean"
) -> Tensor:
    """-(t log p + (1 - t) log(1 - p)) w, for probabilities p in [0, 1] and targets t of p's shape, usually 0 or 1.

    A logarithm below -100 counts as -100, and the gradient's denominator p (1 - p) as 1e-12 at least, so both are
    finite. The loss is NaN where p is no probability.
    w is `weight`, which broadcasts and is 1 if not given. dtypes and reduction as for mse_loss. Where p is
    sigmoid(x), binary_cross_entropy_with_logits(x, target) is exact for large x too.
    """
    p, target = _wide("binary_cross_entropy", p, target)
    losses = _binary_cross_entropy(p, target)
    return reduced("binary_cross_entropy", losses if weight is None else losses * weight, reduction)


@elementwise
def _binary_cross_entropy_with_logits(x, target, positive_weight):
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
    x, target = _wide("binary_cross_entropy_with_logits", x, target)
    p = 1.0 if pos_weight is None else astype(pos_weight, x.dtype, copy=False)
    losses = _binary_cross_entropy_with_logits(x, astype(target, x.dtype, copy=False), p)
    return reduced("binary_cross_entropy_with_logits", losses if weight is None else losses * weight, reduction)


def _wide(operation: str, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32 where they are half types. Raises for unequal shapes, and for what is not floating."""
    require_tensors(operation, x=x, target=target)
    if x.shape != target.shape:
        raise ShapeError(f"{operation}: {describe('x', x)}, {describe('target', target)}: they must have equal shapes")
    if not (x.dtype.is_float and target.dtype.is_float):
        raise DtypeError(f"{operation}: {describe('x', x)}, {describe('target', target)}: they must be floating")
    return astype(x, x.dtype.compute, copy=False), astype(target, target.dtype.compute, copy=False)
