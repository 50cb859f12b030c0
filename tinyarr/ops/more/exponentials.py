"""Sums of exponentials. Floor 5."""

from __future__ import annotations

from ... import dtypes
from ...tensor import Tensor, require_tensors
from .. import scalar
from ..elementwise import astype, elementwise


@elementwise
def _logaddexp(x, y):
    difference = scalar.where(scalar.equal(x, y), 0.0, -abs(x - y))  # inf - inf is no number
    return scalar.maximum(x, y) + scalar.log1p(scalar.exp(difference))


@_logaddexp.gradient
def _logaddexp_gradient(g, x, y):
    d = scalar.where(scalar.equal(x, y), 0.0, x - y)  # the share of x is sigmoid(d)
    e = scalar.exp(-abs(d))
    larger, smaller = g / (1 + e), g * e / (1 + e)
    return scalar.where(d >= 0, larger, smaller), scalar.where(d >= 0, smaller, larger)


def logaddexp(x1: Tensor | float, x2: Tensor | float, /) -> Tensor:
    """log(exp(x1) + exp(x2)), without overflow; of integers in float32. One of the two may be a Python number."""
    given = [x for x in (x1, x2) if isinstance(x, Tensor)]
    if not given:
        require_tensors("logaddexp", x1=x1)
    dtype = dtypes.result_type(*given)
    dtype = dtype if dtype.is_float else dtypes.float32
    return _logaddexp(*(astype(x, dtype, copy=False) if isinstance(x, Tensor) else x for x in (x1, x2)))
