"""The rotary position embedding. Floor 5."""

from __future__ import annotations

from ...errors import DtypeError, ShapeError, describe
from ...tensor import Tensor, require_tensors
from .. import scalar
from ..elementwise_primitive import elementwise
from ..shape import concat, split


@elementwise(outputs=("first", "second"))
def _rotate(x, y, cos, sin, *, dtype):
    return scalar.cast(x * cos - y * sin, dtype), scalar.cast(y * cos + x * sin, dtype)


def rotary_embedding(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair of channels (x[..., i], x[..., i + D/2]) by an angle of which cos and sin are given.

    x (..., T, D), cos and sin (..., T, D/2), which broadcast to x's halves and may be wider than x: x's shape and
    dtype. Pairs are halves apart, as in Hugging Face's files, not neighbours as in Meta's.
    Source: Su et al. 2021, "RoFormer", eq. 34.
    """
    require_tensors("rotary_embedding", x=x, cos=cos, sin=sin)
    if not (x.dtype.is_float and cos.dtype.is_float and sin.dtype.is_float):
        raise DtypeError(
            f"rotary_embedding: {describe('x', x)}, {describe('cos', cos)}, {describe('sin', sin)}: "
            "they must be floating"
        )
    half = x.shape[-1] // 2 if x.ndim else 0
    if not x.ndim or x.shape[-1] % 2 or cos.shape != sin.shape or cos.shape[-1:] != (half,) or cos.ndim > x.ndim:
        raise ShapeError(
            f"rotary_embedding: {describe('x', x)}, {describe('cos', cos)}, {describe('sin', sin)}: "
            "x must be (..., T, D) with D even, cos and sin (..., T, D/2)"
        )
    first, second = split(x, [half, half], axis=-1)
    return concat(_rotate(first, second, cos, sin, dtype=x.dtype), axis=-1)
