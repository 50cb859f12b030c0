"""Activation functions, elementwise. Where one has a kink, its docstring says which gradient is chosen. Floor 1."""

from __future__ import annotations

import math

from .. import dtypes
from ..errors import ArgumentError
from ..tensor import Tensor, require_tensors
from . import scalar
from .elementwise import abs, astype, erf, tanh
from .elementwise_primitive import elementwise


@elementwise
def relu(x):
    """max(x, 0), NaN for NaN. Gradient 0 at 0."""
    return scalar.where(x <= 0, 0, x)


@elementwise
def _leaky_relu(x, slope):
    return scalar.where(x > 0, x, x * slope)


def leaky_relu(x: Tensor, negative_slope: float = 0.01) -> Tensor:
    """x where it is positive, else x times `negative_slope`, which is the gradient at 0 too.

    Source: Maas et al. 2013, "Rectifier nonlinearities improve neural network acoustic models", eq. 3.
    """
    require_tensors("leaky_relu", x=x)
    return _leaky_relu(x, negative_slope)


@elementwise
def sigmoid(x):
    """1 / (1 + exp(-x)), without overflow."""
    e = scalar.exp(-abs(1.0 * x))  # in floating point: -|x| of an unsigned integer wraps
    return scalar.where(x >= 0, 1, e) / (1 + e)


@sigmoid.gradient
def _sigmoid_gradient(g, out):
    # The derived gradient would go through |x|, whose derivative is 0 at 0.
    return g * (out * (1 - out))


@elementwise
def silu(x):
    """x * sigmoid(x) (Elfwing et al. 2017, "Sigmoid-weighted linear units", eq. 1; also called swish)."""
    return x * sigmoid(x)


@silu.gradient
def _silu_gradient(g, x):
    s = sigmoid(x)
    finite = scalar.where(abs(x) == math.inf, 0, x)  # inf * 0 is no number; the limits are 1 and 0
    return g * (s * (1 + finite * (1 - s)))


@elementwise
def softplus(x):
    """log(1 + exp(x)), without overflow."""
    return scalar.maximum(x, 0) + scalar.log1p(scalar.exp(-abs(1.0 * x)))


@softplus.gradient
def _softplus_gradient(g, x):
    return g * sigmoid(x)


SQRT_2_OVER_PI = math.sqrt(2 / math.pi)


@elementwise
def _gelu_tanh(x):
    return 0.5 * x * (1 + tanh(SQRT_2_OVER_PI * (x + 0.044715 * x**3)))


@elementwise
def _gelu_erf(x):
    return 0.5 * x * (1 + erf(x * math.sqrt(0.5)))


def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """Gaussian error linear unit, x times the normal distribution function at x.

    approximate: 'none' for the exact form with erf, 'tanh' for 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    Source: Hendrycks & Gimpel 2016, eq. 1 and 2.
    """
    if approximate not in ("none", "tanh"):
        raise ArgumentError(f"gelu: approximate is {approximate!r}: use 'none' or 'tanh'")
    require_tensors("gelu", x=x)
    x = x if x.dtype.is_float else astype(x, dtypes.float32)  # where x**3 does not wrap
    return (_gelu_tanh if approximate == "tanh" else _gelu_erf)(x)
