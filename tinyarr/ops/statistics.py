"""Mean, variance and standard deviation over axes; half types are computed in float32."""

from __future__ import annotations

import math

from .. import views
from ..tensor import Tensor, method
from .create import full
from .elementwise import sqrt, square
from .reduce import Axis, computed_wide, sum


def _count(operation: str, x: Tensor, axis: Axis) -> int:
    return math.prod(x.shape[a] for a in views.normalize_axes(operation, axis, x.ndim))


@method()
@computed_wide
def mean(x: Tensor, /, axis: Axis = None, *, keepdims: bool = False) -> Tensor:
    """The arithmetic mean over axes; of integers in float32. NaN over an empty axis."""
    count = _count("mean", x, axis)
    total = sum(x, axis=axis, keepdims=keepdims)
    return total / count if count else full(total.shape, math.nan, dtype=x.dtype, device=x.device)


@method()
@computed_wide
def var(x: Tensor, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The mean squared distance from the mean; divided by n - correction (1 for the unbiased estimate)."""
    divisor = _count("var", x, axis) - correction
    squares = sum(square(x - mean(x, axis=axis, keepdims=True)), axis=axis, keepdims=keepdims)
    return squares / divisor if divisor > 0 else full(squares.shape, math.nan, dtype=x.dtype, device=x.device)


@method()
@computed_wide
def std(x: Tensor, /, axis: Axis = None, *, correction: float = 0.0, keepdims: bool = False) -> Tensor:
    """The square root of `var`."""
    axis = views.normalize_axes("std", axis, x.ndim)
    return sqrt(var(x, axis=axis, correction=correction, keepdims=keepdims))
