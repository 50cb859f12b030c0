"""Softmax and what belongs to it, without overflow; half types are computed in float32. Floor 1."""

from __future__ import annotations

import math

from .. import dtypes, views
from ..tensor import Tensor, require_tensors
from . import row, scalar
from .create import copy
from .elementwise import astype, equal, exp, log, where
from .primitive import Primitive, apply
from .reduce import Axis, computed_wide, extremum, reduced_shape, sum
from .rowwise import rowwise
from .shape import moveaxis, reshape


@computed_wide
def logsumexp(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes, without overflow; -inf over an empty axis."""
    axes = views.normalize_axes("logsumexp", axis, x.ndim)
    if 0 in [x.shape[a] for a in axes]:
        return sum(x, axis=axes, keepdims=keepdims) - math.inf
    largest = extremum("logsumexp", "max", x.detach(), axes, keepdims=True)  # it changes no result: no gradient
    shift = where(equal(abs(largest), math.inf), 0, largest)
    total = log(sum(exp(x - shift), axis=axes, keepdims=True)) + shift
    return total if keepdims else reshape(total, reduced_shape(x.shape, axes, keepdims=False))


@rowwise
def _softmax(x):
    e = scalar.exp(x - row.stop(row.max(x)))
    return e / row.sum(e)


@_softmax.gradient
def _softmax_gradient(g, out):  # by hand: of the quotient alone
    return out * (g - row.sum(g * out))


@rowwise
def _log_softmax(x):
    shifted = x - row.stop(row.max(x))
    return shifted - scalar.log(row.sum(scalar.exp(shifted)))


@_log_softmax.gradient
def _log_softmax_gradient(g, out):
    return g - scalar.exp(out) * row.sum(g)


def _along(primitive: Primitive, x: Tensor, axis: int) -> Tensor:
    """A primitive over the last axis, run over another."""
    require_tensors(primitive.name, x=x)
    axis = views.normalize_axis(primitive.name, axis, x.ndim)
    if not x.dtype.is_float:
        x = astype(x, dtypes.float32)
    if not x.shape[axis]:
        return copy(x)
    if axis == x.ndim - 1:
        return apply(primitive, x)
    return moveaxis(apply(primitive, moveaxis(x, axis, -1)), -1, axis)


def softmax(x: Tensor, /, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis, without overflow."""
    return _along(_softmax, x, axis)


def log_softmax(x: Tensor, /, axis: int = -1) -> Tensor:
    """log(softmax(x)) along an axis, exact where softmax underflows."""
    return _along(_log_softmax, x, axis)
