"""Normalization over the last axis, as primitives with their own kernels."""

from __future__ import annotations

import math
from collections.abc import Callable

from .. import dtypes
from ..errors import ShapeError, describe
from ..tensor import Tensor, require_tensors
from ..transforms import vjp
from .create import ones, zeros, zeros_like
from .elementwise import abs, astype, maximum, rsqrt, square
from .primitive import Primitive, apply
from .reduce import max
from .statistics import SMALLEST, mean, scale_of

# A kernel takes a row's statistics for good where 0 < rstd < LARGEST (statistics.py), so that no square was lost, and
# |mean| <= STEEPEST standard deviations, so that the rounding of the mean doesn't count.
STEEPEST = 64


def _infer_layer_norm(shapes, types, *, eps):
    x = shapes[0]
    kept = types[0].compute
    return [(x, types[0]), (x[:-1], kept), (x[:-1], kept)]


def _scale(wide: Tensor, eps: float) -> Tensor:
    """Returns the factor of a row and of sqrt(eps) by which no square is lost; without a gradient."""
    return scale_of(maximum(max(abs(wide.detach()), axis=-1, keepdims=True), math.sqrt(eps)))


def _scaled_eps(eps: float, scale: Tensor) -> Tensor:
    """Returns the eps of a scaled variance, not 0 unless eps is: so a row of equal elements gives 0."""
    return maximum(square(math.sqrt(eps) * scale), SMALLEST[scale.dtype.itemsize] if eps else 0.0)


def _layer_norm_composite(x, weight, bias, *, eps):
    wide = astype(x, x.dtype.compute, copy=False)
    scale = _scale(wide, eps)
    scaled = wide * scale
    average = mean(scaled, axis=-1, keepdims=True)
    average = average + mean(scaled - average, axis=-1, keepdims=True)  # exact where all elements are equal
    rest = mean(scaled - average, axis=-1, keepdims=True)
    centered = scaled - average - rest
    rstd = rsqrt(mean(square(centered), axis=-1, keepdims=True) + _scaled_eps(eps, scale))
    weight, bias = (astype(w, wide.dtype, copy=False) for w in (weight, bias))
    out = astype(centered * rstd * weight + bias, x.dtype, copy=False)
    return out, ((average + rest) / scale).squeeze(-1), (rstd * scale).squeeze(-1)


_layer_norm = Primitive(
    "layer_norm",
    _infer_layer_norm,
    inputs=("x", "weight", "bias"),
    outputs=("out", "mean", "rstd"),
    composite=_layer_norm_composite,
    follows_composite=True,
    reads="runs",
    overwrites=0,
    cheap=True,
)


def _layer_norm_gradient_composite(g, x, weight, mean, rstd, *, eps):
    _, pull = vjp(lambda *inputs: _layer_norm_composite(*inputs, eps=eps)[0], x, weight, zeros_like(weight))
    return pull(g)


_layer_norm_gradient = Primitive(
    "layer_norm_gradient",
    lambda shapes, types, *, eps: [(shapes[1], types[1]), (shapes[2], types[2]), (shapes[2], types[2])],
    inputs=("g", "x", "weight", "mean", "rstd"),
    outputs=("dx", "dweight", "dbias"),
    composite=_layer_norm_gradient_composite,
)


@_layer_norm.gradient
def _layer_norm_backward(gs, x, weight, mean, rstd, *, eps):
    return apply(_layer_norm_gradient, gs[0], x, weight, mean, rstd, eps=eps)


def _infer_rms_norm(shapes, types, *, eps):
    x = shapes[0]
    return [(x, types[0]), (x[:-1], types[0].compute)]


def _rms_norm_composite(x, weight, *, eps):
    wide = astype(x, x.dtype.compute, copy=False)
    scale = _scale(wide, eps)
    scaled = wide * scale
    rstd = rsqrt(mean(square(scaled), axis=-1, keepdims=True) + _scaled_eps(eps, scale))
    weight = astype(weight, wide.dtype, copy=False)
    return astype(scaled * rstd * weight, x.dtype, copy=False), (rstd * scale).squeeze(-1)


_rms_norm = Primitive(
    "rms_norm",
    _infer_rms_norm,
    inputs=("x", "weight"),
    outputs=("out", "rstd"),
    composite=_rms_norm_composite,
    follows_composite=True,
    reads="runs",
    overwrites=0,
    cheap=True,
)


def _rms_norm_gradient_composite(g, x, weight, rstd, *, eps):
    _, pull = vjp(lambda *inputs: _rms_norm_composite(*inputs, eps=eps)[0], x, weight)
    return pull(g)


_rms_norm_gradient = Primitive(
    "rms_norm_gradient",
    lambda shapes, types, *, eps: [(shapes[1], types[1]), (shapes[2], types[2])],
    inputs=("g", "x", "weight", "rstd"),
    outputs=("dx", "dweight"),
    composite=_rms_norm_gradient_composite,
)


@_rms_norm.gradient
def _rms_norm_backward(gs, x, weight, rstd, *, eps):
    return apply(_rms_norm_gradient, gs[0], x, weight, rstd, eps=eps)


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
    return apply(_layer_norm, x, weight, bias, eps=eps)[0]


def rms_norm(x: Tensor, weight: Tensor | None = None, *, eps: float | None = None) -> Tensor:
    """x / sqrt(mean(x**2) + eps) * weight over the last axis, computed in float32 for half types.

    x (..., C), weight (C,) or None for ones, cast to x's dtype: (..., C). eps is the distance from 1 to the next
    number of the dtype in which is computed, unless given.
    Source: Zhang & Sennrich 2019, "Root mean square layer normalization", eq. 4.
    """
    x = _checked("rms_norm", x, weight=weight)
    eps = (2.0**-52 if x.dtype is dtypes.float64 else 2.0**-23) if eps is None else eps
    return apply(_rms_norm, x, _like(x, weight, ones), eps=eps)[0]
