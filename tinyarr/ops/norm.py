"""Normalization over the last axis, as primitives with their own kernels."""

from __future__ import annotations

from .. import dtypes
from ..errors import ShapeError, describe
from ..tensor import Tensor, require_tensors
from ..transforms import vjp
from .create import zeros_like
from .elementwise import astype, rsqrt, square
from .primitive import Primitive, apply
from .reduce import mean


def _infer_layer_norm(shapes, types, *, eps):
    x = shapes[0]
    kept = types[0].compute
    return [(x, types[0]), (x[:-1], kept), (x[:-1], kept)]


def _layer_norm_composite(x, weight, bias, *, eps):
    wide = astype(x, x.dtype.compute, copy=False)
    average = mean(wide, axis=-1, keepdims=True)
    centered = wide - average
    rstd = rsqrt(mean(square(centered), axis=-1, keepdims=True) + eps)
    out = astype(centered * rstd * weight + bias, x.dtype, copy=False)
    return out, average.squeeze(-1), rstd.squeeze(-1)


_layer_norm = Primitive(
    "layer_norm",
    _infer_layer_norm,
    inputs=("x", "weight", "bias"),
    outputs=("out", "mean", "rstd"),
    composite=_layer_norm_composite,
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


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, *, eps: float = 1e-5) -> Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis, computed in float32 for half types.

    x (..., C), weight (C,), bias (C,), both cast to x's dtype: (..., C). The variance is the biased one.
    Source: Ba et al. 2016, "Layer normalization", eq. 3 and 4.
    """
    require_tensors("layer_norm", x=x, weight=weight, bias=bias)
    if x.ndim == 0 or weight.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ShapeError(
            f"layer_norm: {describe('x', x)}, {describe('weight', weight)}, {describe('bias', bias)}: "
            "weight and bias must have the shape of x's last axis"
        )
    if x.shape[-1] == 0:
        raise ShapeError(f"layer_norm: {describe('x', x)}: the last axis must have at least one element")
    if not x.dtype.is_float:
        x = astype(x, dtypes.float32)
    return apply(_layer_norm, x, astype(weight, x.dtype, copy=False), astype(bias, x.dtype, copy=False), eps=eps)[0]
