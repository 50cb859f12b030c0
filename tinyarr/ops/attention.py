"""Scaled dot-product attention, as a primitive: for the gradient it keeps a number a row, not the weights."""

from __future__ import annotations

import math

from ..errors import DtypeError, ShapeError
from ..tensor import Tensor, require_tensors
from ..transforms import vjp
from .create import arange
from .elementwise import astype, where
from .matmul import matmul
from .primitive import Primitive, apply
from .reduce import logsumexp, softmax
from .shape import expand_dims, matrix_transpose


def _infer_attention(shapes, types, *, causal, scale):
    q, _, v = shapes
    return [(q[:-1] + v[-1:], types[0]), (q[:-1], types[0].compute)]


def _attention_composite(q, k, v, *, causal, scale):
    wide = q.dtype.compute
    scores = matmul(astype(q, wide, copy=False), matrix_transpose(astype(k, wide, copy=False))) * scale
    if causal:
        positions = arange(k.shape[-2], device=q.device)
        scores = where(expand_dims(positions[: q.shape[-2]], -1) >= positions, scores, -math.inf)
    out = matmul(softmax(scores), astype(v, wide, copy=False))
    return astype(out, q.dtype, copy=False), logsumexp(scores, axis=-1)


_attention = Primitive(
    "scaled_dot_product_attention",
    _infer_attention,
    inputs=("q", "k", "v"),
    outputs=("out", "lse"),
    composite=_attention_composite,
)


def _attention_gradient_composite(g, q, k, v, out, lse, *, causal, scale):
    _, pull = vjp(lambda *inputs: _attention_composite(*inputs, causal=causal, scale=scale)[0], q, k, v)
    return pull(g)


_attention_gradient = Primitive(
    "scaled_dot_product_attention_gradient",
    lambda shapes, types, *, causal, scale: [(shapes[i], types[i]) for i in (1, 2, 3)],
    inputs=("g", "q", "k", "v", "out", "lse"),
    outputs=("dq", "dk", "dv"),
    composite=_attention_gradient_composite,
)


@_attention.gradient
def _attention_backward(gs, q, k, v, out, lse, *, causal, scale):
    return apply(_attention_gradient, gs[0], q, k, v, out, lse, causal=causal, scale=scale)


def scaled_dot_product_attention(
    q: Tensor, k: Tensor, v: Tensor, *, is_causal: bool = False, scale: float | None = None
) -> Tensor:
    """softmax(q @ k.mT * scale) @ v. q, k (B, H, T, D), v (B, H, T, Dv), of one floating dtype: (B, H, T, Dv).

    With `is_causal`, position t attends to positions 0..t; q and k must then be equally long. scale is 1/sqrt(D)
    unless given. Softmax and sums are computed in float32 for half types.
    Source: Vaswani et al. 2017, "Attention is all you need", eq. 1; gradient as by Dao et al. 2022, "FlashAttention".
    """
    require_tensors("scaled_dot_product_attention", q=q, k=k, v=v)
    shapes = f"q has shape {q.shape}, k has shape {k.shape}, v has shape {v.shape}"
    if not q.ndim == k.ndim == v.ndim == 4 or k.shape[:-1] != v.shape[:-1] or q.shape[:2] != k.shape[:2]:
        raise ShapeError(f"scaled_dot_product_attention: {shapes}: they must be (B, H, T, D) with equal B, H")
    if q.shape[-1] != k.shape[-1]:
        raise ShapeError(f"scaled_dot_product_attention: {shapes}: q and k must have equal last axes")
    if 0 in (q.shape[-1], k.shape[-2]):
        raise ShapeError(f"scaled_dot_product_attention: {shapes}: there must be at least one key, of size 1 or more")
    if not (q.dtype is k.dtype is v.dtype and q.dtype.is_float):
        types = f"q {q.dtype.name}, k {k.dtype.name}, v {v.dtype.name}"
        raise DtypeError(f"scaled_dot_product_attention: dtypes are {types}: they must be one floating dtype")
    if is_causal and q.shape[-2] != k.shape[-2]:
        raise ShapeError(f"scaled_dot_product_attention: {shapes}: causal attention needs q and k equally long")
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    return apply(_attention, q, k, v, causal=is_causal, scale=scale)[0]
