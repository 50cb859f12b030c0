"""Softmax and what belongs to it, without overflow; half types are computed in float32."""

from __future__ import annotations

import math

from .. import views
from ..tensor import Tensor, method
from .elementwise import equal, exp, log, where
from .reduce import Axis, computed_wide, extremum, reduced_shape, sum
from .shape import reshape


def _largest(operation: str, x: Tensor, axis: Axis) -> Tensor:
    """The largest element along axes that are kept; subtracted from x it changes no result, so it has no gradient."""
    return extremum(operation, "max", x.detach(), axis, keepdims=True)


@method()
@computed_wide
def logsumexp(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """log(sum(exp(x))) over axes, without overflow."""
    largest = _largest("logsumexp", x, axis)
    shift = where(equal(abs(largest), math.inf), 0, largest)
    total = log(sum(exp(x - shift), axis=axis, keepdims=True)) + shift
    axes = views.normalize_axes("logsumexp", axis, x.ndim)
    return total if keepdims else reshape(total, reduced_shape(x.shape, axes, keepdims=False))


@method()
@computed_wide
def softmax(x: Tensor, /, axis: int = -1) -> Tensor:
    """exp(x) / sum(exp(x)) along an axis, without overflow."""
    e = exp(x - _largest("softmax", x, axis))
    return e / sum(e, axis=axis, keepdims=True)


@method()
@computed_wide
def log_softmax(x: Tensor, /, axis: int = -1) -> Tensor:
    """log(softmax(x)) along an axis, exact where softmax underflows."""
    shifted = x - _largest("log_softmax", x, axis)
    return shifted - log(sum(exp(shifted), axis=axis, keepdims=True))
