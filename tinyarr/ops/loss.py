"""Losses."""

from __future__ import annotations

from .. import dtypes
from ..errors import ArgumentError, DtypeError, ShapeError, describe
from ..tensor import Tensor, require_tensors
from ..transforms import vjp
from .create import arange
from .elementwise import astype, equal, square, where
from .primitive import Primitive, apply
from .reduce import sum
from .shape import expand_dims, reshape
from .softmax import log_softmax, logsumexp
from .statistics import mean


def _infer_cross_entropy(shapes, types, *, ignore_index):
    kept = types[0].compute
    return [(shapes[1], kept), (shapes[1], kept)]


def _cross_entropy_composite(logits, targets, *, ignore_index):
    # ignore_index is no class, so nothing is hit and the loss is 0; where it is one, it is moved outside.
    targets = where(targets == ignore_index, -1, targets)
    wide = astype(logits, logits.dtype.compute, copy=False)
    hit = equal(arange(wide.shape[-1], device=wide.device), expand_dims(targets, -1))
    return -sum(where(hit, log_softmax(wide), 0), axis=-1), logsumexp(wide, axis=-1)


_cross_entropy = Primitive(
    "cross_entropy",
    _infer_cross_entropy,
    inputs=("logits", "targets"),
    outputs=("loss", "lse"),
    composite=_cross_entropy_composite,
)


def _cross_entropy_gradient_composite(g, logits, targets, lse, *, ignore_index):
    _, pull = vjp(lambda x: _cross_entropy_composite(x, targets, ignore_index=ignore_index)[0], logits)
    return pull(g)[0]


_cross_entropy_gradient = Primitive(
    "cross_entropy_gradient",
    lambda shapes, types, *, ignore_index: [(shapes[1], types[1])],
    inputs=("g", "logits", "targets", "lse"),
    composite=_cross_entropy_gradient_composite,
)


@_cross_entropy.gradient
def _cross_entropy_backward(gs, logits, targets, lse, *, ignore_index):
    return apply(_cross_entropy_gradient, gs[0], logits, targets, lse, ignore_index=ignore_index), None


def cross_entropy(logits: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean") -> Tensor:
    """-log softmax(logits)[target], in nats. logits (..., V) floating, targets (...) integers in [0, V).

    Targets equal to `ignore_index` count for nothing. reduction: 'mean' over the targets that count, 'sum', or 'none'
    (a loss each). The loss is float32 for half and float32 logits, float64 for float64.
    Raises OutOfBounds for any other target outside [0, V).
    """
    require_tensors("cross_entropy", logits=logits, targets=targets)
    if logits.ndim == 0 or logits.shape[:-1] != targets.shape:
        raise ShapeError(
            f"cross_entropy: {describe('logits', logits)}, {describe('targets', targets)}: "
            "logits must have one more axis than targets, the last, over the classes"
        )
    if targets.dtype.kind not in ("signed", "unsigned") or not logits.dtype.is_float:
        raise DtypeError(
            f"cross_entropy: {describe('logits', logits)}, {describe('targets', targets)}: "
            "logits must be floating and targets integers"
        )
    rows = reshape(logits, (targets.size, logits.shape[-1]))
    flat = astype(reshape(targets, (targets.size,)), dtypes.int64, copy=False)  # unsigned ones can't hold -100
    losses = apply(_cross_entropy, rows, flat, ignore_index=ignore_index)[0]
    if reduction == "mean":
        return sum(losses) / sum(astype(flat != ignore_index, losses.dtype))
    return _reduce("cross_entropy", reshape(losses, targets.shape), reduction)


def mse_loss(x: Tensor, target: Tensor, *, reduction: str = "mean") -> Tensor:
    """(x - target)**2, for equal shapes; float32 for half types. reduction: 'mean', 'sum', or 'none' (elementwise)."""
    require_tensors("mse_loss", x=x, target=target)
    if x.shape != target.shape:
        raise ShapeError(f"mse_loss: {describe('x', x)}, {describe('target', target)}: they must have equal shapes")
    difference = astype(x, x.dtype.compute, copy=False) - astype(target, target.dtype.compute, copy=False)
    return _reduce("mse_loss", square(difference), reduction)


def _reduce(operation: str, losses: Tensor, reduction: str) -> Tensor:
    if reduction not in ("mean", "sum", "none"):
        raise ArgumentError(f"{operation}: reduction is {reduction!r}: use 'mean', 'sum' or 'none'")
    return losses if reduction == "none" else sum(losses) if reduction == "sum" else mean(losses)
