"""Scaled dot-product attention, as a primitive: for the gradient it keeps a number a row, not the weights. Floor 1."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

from .. import dtypes, views
from ..device import Device
from ..dtypes import Dtype
from ..errors import DtypeError, ShapeError
from ..tensor import Tensor, require_tensors
from ..transforms import checkpoint
from ..views import Shape
from . import scalar
from .create import arange, contiguous, ones
from .elementwise import astype, greater, log, logical_and, where
from .elementwise_primitive import elementwise
from .fused import fused
from .matmul import matmul
from .random import dropout
from .reduce import any
from .reduce import max as largest_of
from .shape import broadcast_to, concat, expand_dims, matrix_transpose, reshape, split
from .softmax import softmax


def _scores(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """(B, G, H/G, T, S): a row for each query head of the G groups that share a head of k."""
    (B, H, T, D), G = q.shape, k.shape[1]
    grouped = reshape(astype(q, q.dtype.compute, copy=False), (B, G, H // max(G, 1), T, D))
    return matmul(grouped, expand_dims(matrix_transpose(astype(k, k.dtype.compute, copy=False)), 2)) * scale


def _weighted(weights: Tensor, v: Tensor, dtype: Dtype) -> Tensor:
    """(B, H, T, Dv): the values averaged with the weights (B, G, H/G, T, S)."""
    B, G, R, T, _ = weights.shape
    out = matmul(weights, expand_dims(astype(v, v.dtype.compute, copy=False), 2))
    return astype(reshape(out, (B, G * R, T, v.shape[-1])), dtype, copy=False)


def _visible(T: int, S: int, device: Device) -> Tensor:
    """(T, S) bool: which keys a query sees where the queries are the last T of S positions."""
    return expand_dims(arange(S - T, S, device=device), -1) >= arange(S, device=device)


@elementwise
def power(score, largest):
    return scalar.exp(score - largest)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, visible: Tensor | None) -> tuple[Tensor, Tensor]:
    """The results (..., T, Dv), and the logarithms (..., T) of the sums of powers, of any number of heads.

    A column of ones beside the values makes the product give the sums of powers too.
    """
    scores = matmul(q, matrix_transpose(k))
    scores = scores if visible is None else where(visible, scores, -math.inf)
    largest = largest_of(scores.detach(), axis=-1, keepdims=True)
    column = ones((*v.shape[:-1], 1), dtype=v.dtype, device=v.device)
    out, total = split(matmul(power(scores, largest), concat([v, column], axis=-1)), (v.shape[-1], 1), axis=-1)
    return out / total, reshape(log(total) + largest, q.shape[:-1])


def _in_blocks(attend: Callable, most: int, *qkv: Tensor) -> Sequence[Tensor]:
    """`attend(*qkv)` for some of the heads (..., T, D) at a time, so that about `most` of their weights are held."""
    q, k, _ = qkv
    held = math.prod(q.shape[:-1]) * k.shape[-2]
    axis = next((axis for axis in range(3) if q.shape[axis] > 1), None)
    if held <= most or axis is None:
        return attend(*qkv)
    pieces = [split(x, max(most * x.shape[axis] // held, 1), axis=axis) for x in qkv]
    made = [_in_blocks(attend, most, *piece) for piece in zip(*pieces, strict=True)]
    return [concat(parts, axis=axis) for parts in zip(*made, strict=True)]


@fused(outputs=("out", "lse"), saved=("q", "k", "v", "out", "lse"))
def _scaled_dot_product_attention(q, k, v, *, causal, scale):
    """Attention block by block: of more than one, backward computes each block of weights again, so few are held."""
    (B, H, T, _), (_, G, S, _), dtype = q.shape, k.shape, q.dtype
    R, most = H // max(G, 1), q.device.backend.block // 8
    q, k, v = (astype(x, dtype.compute, copy=False) for x in (q, k, v))
    k = contiguous(k)  # a BLAS adds up by strides; v and q are copied below
    k, v = (broadcast_to(expand_dims(x, 2), (B, G, R, *x.shape[2:])) for x in (k, v))
    attend = functools.partial(_attend, visible=_visible(T, S, q.device) if causal and T > 1 else None)
    weights = B * H * T * S
    if weights > most:
        attend = functools.partial(checkpoint, attend)
    out, lse = _in_blocks(attend, most, reshape(q * scale, (B, G, R, *q.shape[2:])), k, v)
    return astype(reshape(out, (B, H, T, v.shape[-1])), dtype, copy=False), reshape(lse, (B, H, T))


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(query @ key.mT * scale) @ value: (..., H, T, Dv).

    query (..., H, T, D), key (..., H, S, D), value (..., H, S, Dv), of one floating dtype. With `enable_gqa` key and
    value may have G heads, each shared by H / G heads of query in a row. scale is 1/sqrt(D) unless given.
    With `is_causal` the queries are the last T of the S positions, and each sees those up to its own. attn_mask
    broadcasts to (..., H, T, S): bool, True where a query sees a key (a query that sees none gets NaN), or floating,
    added to the scaled products. A weight is dropped with probability `dropout_p` (see dropout). Mask and dropout hold
    all weights in memory. Softmax and sums are in float32 for half types.
    Source: Vaswani et al. 2017, "Attention is all you need", eq. 1; groups: Ainslie et al. 2023, "GQA"; gradient as
    by Dao et al. 2022, "FlashAttention".
    """
    _check(query, key, value, attn_mask, is_causal, enable_gqa)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    *lead, T, Dv = (*query.shape[:-1], value.shape[-1])
    q, k, v = (reshape(x, _batched(x.shape)) for x in (query, key, value))
    if attn_mask is None and not dropout_p:
        out = _scaled_dot_product_attention(q, k, v, causal=is_causal, scale=scale)[0]
    else:
        mask = ones((), dtype=dtypes.bool, device=q.device) if attn_mask is None else attn_mask
        out = _masked_attention(q, k, v, mask, lead, is_causal, scale, dropout_p)
    return reshape(out, (*lead, T, Dv))


def _batched(shape: Shape) -> Shape:
    """(B, H, T, D) for any number of leading axes."""
    lead = (1,) * (4 - len(shape)) + shape[:-2]
    return (math.prod(lead[:-1]), lead[-1], *shape[-2:])


def _masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, lead: Sequence[int], causal: bool, scale: float, dropout_p: float
) -> Tensor:
    """A query that sees no key is let see all of them, so that its NaN is in no gradient; its result is made NaN."""
    scores, T, S = _scores(q, k, scale), q.shape[2], k.shape[2]
    mask = mask if mask.ndim else reshape(mask, (1,))
    visible = mask if mask.dtype is dtypes.bool else greater(mask, -math.inf)
    if causal:
        visible = logical_and(visible, _visible(T, S, q.device))
    sees = any(visible, axis=-1, keepdims=True)

    def of_scores(x: Tensor, keys: int) -> Tensor:
        return reshape(broadcast_to(x, (*lead, T, keys)), (*scores.shape[:-1], keys))

    if causal or mask.dtype is dtypes.bool:
        scores = where(of_scores(visible, S), scores, of_scores(where(sees, -math.inf, 0.0), 1))
    if mask.dtype is not dtypes.bool:
        scores = scores + of_scores(where(sees, mask, 0), S)
    out = _weighted(dropout(softmax(scores), dropout_p), v, q.dtype)
    return where(reshape(broadcast_to(sees, (*lead, T, 1)), (*out.shape[:-1], 1)), out, math.nan)


def _check(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool, grouped: bool) -> None:
    """Raises ShapeError or DtypeError for operands of attention that do not fit."""
    operation = "scaled_dot_product_attention"
    require_tensors(operation, query=q, key=k, value=v)
    shapes = f"{operation}: query has shape {q.shape}, key has shape {k.shape}, value has shape {v.shape}"
    if not q.ndim == k.ndim == v.ndim >= 2 or k.shape[:-1] != v.shape[:-1] or q.shape[:-3] != k.shape[:-3]:
        raise ShapeError(f"{shapes}: they must be (..., H, T, D), (..., H, S, D) and (..., H, S, Dv)")
    if q.shape[-1] != k.shape[-1]:
        raise ShapeError(f"{shapes}: query and key must have equal last axes")
    if 0 in (q.shape[-1], k.shape[-2]):
        raise ShapeError(f"{shapes}: there must be at least one key, of size 1 or more")
    H, G = q.shape[-3:-2], k.shape[-3:-2]
    if H != G and not (grouped and G[0] and H[0] % G[0] == 0):
        what = "be a multiple of key's" if grouped else "equal key's, or pass enable_gqa=True"
        raise ShapeError(f"{shapes}: query's heads (axis -3) must {what}")
    if not (q.dtype is k.dtype is v.dtype and q.dtype.is_float):
        types = f"query {q.dtype.name}, key {k.dtype.name}, value {v.dtype.name}"
        raise DtypeError(f"{operation}: dtypes are {types}: they must be one floating dtype")
    if causal and q.shape[-2] > k.shape[-2]:
        raise ShapeError(f"{shapes}: causal attention needs at least as many keys as queries")
    if mask is not None:
        require_tensors(operation, attn_mask=mask)
        weights = (*q.shape[:-1], k.shape[-2])
        if views.broadcast_shapes(operation, mask.shape, weights) != weights:
            raise ShapeError(f"{operation}: attn_mask has shape {mask.shape}: it must broadcast to {weights}")
        if not (mask.dtype.is_float or mask.dtype is dtypes.bool):
            raise DtypeError(f"{operation}: attn_mask is {mask.dtype.name}: it must be bool or floating")
