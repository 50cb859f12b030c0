"""Softmax and what belongs to it, without overflow; half types are computed in float32."""

from __future__ import annotations

import math

from .. import dtypes, views
from ..tensor import Tensor, require_tensors
from .create import copy
from .elementwise import astype, equal, exp, log, where
from .primitive import Primitive, apply
from .reduce import Axis, computed_wide, extremum, reduced_shape, sum
from .shape import moveaxis, reshape


def _largest(operation: str, x: Tensor, axis: Axis) -> Tensor:
    """The largest element along axes that are kept; subtracted from x it changes no result, so it has no gradient."""
    return extremum(operation, "max", x.detach(), axis, keepdims=True)


@computed_wide
def logsumexp(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes, without overflow; -inf over an empty axis."""
    axes = views.normalize_axes("logsumexp", axis, x.ndim)
    if 0 in [x.shape[a] for a in axes]:
        return sum(x, axis=axes, keepdims=keepdims) - math.inf
    largest = _largest("logsumexp", x, axes)
    shift = where(equal(abs(largest), math.inf), 0, largest)
    total = log(sum(exp(x - shift), axis=axes, keepdims=True)) + shift
    return total if keepdims else reshape(total, reduced_shape(x.shape, axes, keepdims=False))


@computed_wide
def _softmax_composite(x):
    e = exp(x - _largest("softmax", x, -1))
    return e / sum(e, axis=-1, keepdims=True)


@computed_wide
def _log_softmax_composite(x):
    shifted = x - _largest("log_softmax", x, -1)
    return shifted - log(sum(exp(shifted), axis=-1, keepdims=True))


def _softmax_gradient_composite(g, out):
    wide_g, wide = (astype(t, t.dtype.compute, copy=False) for t in (g, out))
    return astype(wide * (wide_g - sum(wide_g * wide, axis=-1, keepdims=True)), out.dtype, copy=False)


def _log_softmax_gradient_composite(g, out):
    wide_g, wide = (astype(t, t.dtype.compute, copy=False) for t in (g, out))
    return astype(wide_g - exp(wide) * sum(wide_g, axis=-1, keepdims=True), out.dtype, copy=False)


def _infer(shapes, types):
    return [(shapes[-1], types[-1])]


_softmax = Primitive("softmax", _infer, composite=_softmax_composite, reads="runs", overwrites=0)
_log_softmax = Primitive("log_softmax", _infer, composite=_log_softmax_composite, reads="runs", overwrites=0)
_softmax_gradient = Primitive(
    "softmax_gradient",
    _infer,
    inputs=("g", "out"),
    outputs=("dx",),
    composite=_softmax_gradient_composite,
    overwrites=0,
)
_log_softmax_gradient = Primitive(
    "log_softmax_gradient",
    _infer,
    inputs=("g", "out"),
    outputs=("dx",),
    composite=_log_softmax_gradient_composite,
    overwrites=0,
)


@_softmax.gradient
def _softmax_backward(g, out):
    return apply(_softmax_gradient, g, out)


@_log_softmax.gradient
def _log_softmax_backward(g, out):
    return apply(_log_softmax_gradient, g, out)


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
