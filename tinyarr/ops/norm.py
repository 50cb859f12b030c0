"""Normalization over the last axis, as row expressions. Floor 1."""

from __future__ import annotations

import math
from collections.abc import Callable

from .. import dtypes
from ..errors import ShapeError, describe
from ..tensor import Tensor, require_tensors
from . import row
from .create import ones, zeros
from .elementwise import abs, astype, maximum, square
from .rowwise import rowwise
from .scalar import sqrt, where

LARGEST = {4: 2.0**50, 8: 2.0**500}
"""By the bytes of a dtype: numbers up to this, and down to 1 over this, are squared as they are."""

SCALE = {4: 2.0**80, 8: 2.0**700}
"""What smaller ones are multiplied by first, and larger ones divided by."""

SMALLEST = {4: 2.0**-126, 8: 2.0**-1022}
"""The smallest normal numbers."""

# A row's statistics are taken for good where 0 < rstd < largest (statistics.py), so that no square was lost, and
# |mean| <= STEEPEST standard deviations, so that the rounding of the mean doesn't count.
STEEPEST = 64


def _normalized(x, eps: float, limits: tuple[float, float, float], *, centered: bool):
    """(x - mean) * rstd, the mean and rstd = 1 / sqrt(variance + eps) of a row.

    A row whose statistics are lost to rounding or overflow is done again. It and sqrt(eps) are scaled by a power of 2,
    so one of 1e30 gives what one of 1 gives. The mean is subtracted in steps: first one that is exact for equal
    elements, which so give 0, then what its rounding has left.
    """
    largest, factor, smallest = limits
    mean = row.mean(x) if centered else 0.0
    var = row.mean(square(x - mean))
    rstd = 1 / sqrt(var + eps)
    well = (rstd > 0) & (rstd < largest)
    if centered:
        well = well & (mean * mean <= var * STEEPEST**2)

    root = math.sqrt(eps)
    top = maximum(row.max(abs(x)), root)
    scale = where(top >= largest, 1 / factor, where(top <= 1 / largest, factor, 1.0))
    about = row.mean(x * scale) if centered else 0.0
    about = about + row.mean(x * scale - about) if centered else 0.0
    rest = row.mean(x * scale - about) if centered else 0.0
    scaled_eps = maximum(square(root * scale), smallest if eps else 0.0)
    scaled_rstd = 1 / sqrt(row.mean(square(x * scale - about - rest)) + scaled_eps)

    def kept(good, again):
        return where(well, good, again)

    scaled = x * kept(1.0, scale)
    if centered:
        scaled = scaled - kept(mean, about) - kept(0.0, rest)
    return scaled * kept(rstd, scaled_rstd), kept(mean, (about + rest) / scale), kept(rstd, scaled_rstd * scale)


@rowwise(outputs=("out", "mean", "rstd"))
def _layer_norm(x, weight, bias, *, eps, limits):
    out, mean, rstd = _normalized(x, eps, limits, centered=True)
    return out * weight + bias, mean, rstd


@_layer_norm.gradient
def _layer_norm_gradient(g, g_mean, g_rstd, x, weight, mean, rstd):
    """Gradient by hand: no power of rstd overflows, and one pass over a row finds all of its sums."""
    out, d = (x - mean) * rstd, g * weight
    dx = (d - row.mean(d) - out * row.mean(d * out)) * rstd
    return dx + (g_mean - g_rstd * rstd * rstd * out) / row.size, g * out, g


@rowwise(outputs=("out", "rstd"))
def _rms_norm(x, weight, *, eps, limits):
    out, _, rstd = _normalized(x, eps, limits, centered=False)
    return out * weight, rstd


@_rms_norm.gradient
def _rms_norm_gradient(g, g_rstd, x, weight, rstd):
    out, d = x * rstd, g * weight
    return (d - out * row.mean(d * out)) * rstd - g_rstd * rstd * rstd * out / row.size, g * out


def _checked(operation: str, x: Tensor, **given: Tensor | None) -> Tensor:
    """x as a floating tensor, once it and the weights that were given fit each other."""
    weights = {name: t for name, t in given.items() if t is not None}
    require_tensors(operation, x=x, **weights)
    for name, t in weights.items():
        if t.shape != x.shape[-1:] or x.ndim == 0:
            raise ShapeError(
                f"{operation}: {describe('x', x)}, {describe(name, t)}: {name} must have the shape of x's last axis"
            )
    if x.shape[-1:] in ((), (0,)):
        raise ShapeError(f"{operation}: {describe('x', x)}: it must have a last axis with at least one element")
    if not x.dtype.is_float:
        x = astype(x, dtypes.float32)
    return x


def _limits(x: Tensor) -> tuple[float, float, float]:
    size = x.dtype.compute.itemsize
    return LARGEST[size], SCALE[size], SMALLEST[size]


def _like(x: Tensor, weight: Tensor | None, fill: Callable[..., Tensor]) -> Tensor:
    """The weight in x's dtype, or a constant one where there is none."""
    if weight is None:
        return fill(x.shape[-1:], dtype=x.dtype, device=x.device)
    return astype(weight, x.dtype, copy=False)


def layer_norm(x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, computed in float32 for half types.

    x (..., C), weight (C,) or None for ones, bias (C,) or None for zeros, both cast to x's dtype: (..., C). The
    variance is the biased one.
    Source: Ba et al. 2016, "Layer normalization", eq. 3 and 4.
    """
    x = _checked("layer_norm", x, weight=weight, bias=bias)
    weight, bias = _like(x, weight, ones), _like(x, bias, zeros)
    return _layer_norm(x, weight, bias, eps=eps, limits=_limits(x))[0]


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float | None = None) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over the last axis, computed in float32 for half types.

    x (..., C), weight (C,) or None for ones, cast to x's dtype: (..., C). eps is the distance from 1 to the next
    number of the dtype in which is computed, unless given.
    Source: Zhang & Sennrich 2019, "Root mean square layer normalization", eq. 4.
    """
    x = _checked("rms_norm", x, weight=weight)
    eps = (2.0**-52 if x.dtype is dtypes.float64 else 2.0**-23) if eps is None else eps
    return _rms_norm(x, _like(x, weight, ones), eps=eps, limits=_limits(x))[0]
