"""The head of a language model: a linear layer and the cross-entropy of its logits, which are never held as a whole."""

from __future__ import annotations

from .. import dtypes
from ..errors import ArgumentError, DtypeError, ShapeError, describe
from ..tape import recording
from ..tensor import Tensor, require_tensors
from ..transforms import vjp
from .create import ones
from .elementwise import astype
from .loss import cross_entropy, mean_of_counted
from .matmul import linear
from .primitive import Bounds, Primitive, apply
from .shape import reshape


def _composite(x, weight, targets, *, ignore_index):
    return cross_entropy(linear(x, weight), targets, ignore_index=ignore_index, reduction="sum")


def _bounds(shapes, params):
    return Bounds(2, 0, shapes[1][0], params["ignore_index"])


_loss = Primitive(
    "linear_cross_entropy",
    lambda shapes, types, *, ignore_index: [((), types[0].compute)],
    inputs=("x", "weight", "targets"),
    composite=_composite,
    bounds=_bounds,
)


def _composite_with_gradients(x, weight, targets, *, ignore_index):
    loss, pull = vjp(lambda x, weight: _composite(x, weight, targets, ignore_index=ignore_index), x, weight)
    dx, dweight = pull(ones((), dtype=loss.dtype, device=loss.device))
    return loss, dx, dweight


# The loss is one number, so its gradient is a number times what is known already when the logits are at hand.
_loss_with_gradients = Primitive(
    "linear_cross_entropy_with_gradients",
    lambda shapes, types, *, ignore_index: [((), types[0].compute), (shapes[0], types[0]), (shapes[1], types[1])],
    inputs=("x", "weight", "targets"),
    outputs=("loss", "dx", "dweight"),
    composite=_composite_with_gradients,
    bounds=_bounds,
)


@_loss_with_gradients.gradient
def _backward(gs, x, weight, targets, dx, dweight):
    """The inputs are saved for a gradient of this gradient alone, which needs the composite."""
    return *(astype(gs[0] * astype(d, gs[0].dtype, copy=False), d.dtype, copy=False) for d in (dx, dweight)), None


def linear_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, *, ignore_index: int = -100, reduction: str = "mean"
) -> Tensor:
    """cross_entropy(linear(x, weight), targets), a block of rows at a time.

    x (..., C), weight (V, C) of x's dtype, targets (...) integers in [0, V). reduction: 'mean' over the targets that
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
    rows = reshape(x, (targets.size, x.shape[-1]))
    flat = astype(reshape(targets, (targets.size,)), dtypes.int64, copy=False)
    wanted = recording.get() and (x.requires_grad or weight.requires_grad)
    found = apply(_loss_with_gradients if wanted else _loss, rows, weight, flat, ignore_index=ignore_index)
    loss = found[0] if wanted else found
    return loss if reduction == "sum" else mean_of_counted(loss, flat, ignore_index)
