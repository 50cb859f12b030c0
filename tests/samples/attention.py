"""Attention and its gradient."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import (
    SAMPLES,
    SIDE,
    Case,
    Error,
    Operand,
    Sample,
    cases_of,
    gradient_of,
    product_of_largest,
    refused,
    same,
    softmax,
    with_cotangent,
)
from tinyarr import zeros
from tinyarr.dtypes import (
    float32,
    float64,
    int64,
)
from tinyarr.errors import DtypeError, ShapeError


def attention_weights(q, k, is_causal, scale) -> tuple[np.ndarray, float]:
    """The queries are the last of the positions."""
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.swapaxes(-1, -2) * scale
    T, S = scores.shape[-2:]
    return softmax(np.where(np.tri(T, S, S - T), scores, -np.inf) if is_causal else scores), scale


def repeated(x: np.ndarray, q: np.ndarray) -> np.ndarray:
    """A head for each of q's, those in a row the same."""
    return np.repeat(x, q.shape[-3] // x.shape[-3], axis=-3) if x.shape[-3] else x


def summed(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The gradient of what `repeated` repeats."""
    return x.reshape(*k.shape[:-2], -1, *x.shape[-2:]).sum(axis=-3) if x.size else np.zeros(k.shape[:-1] + x.shape[-1:])


def attention(q, k, v, is_causal=False, scale=None, enable_gqa=True):
    return attention_weights(q, repeated(k, q), is_causal, scale)[0] @ repeated(v, q)


def attention_gradient(g, q, k, v, is_causal=False, scale=None, enable_gqa=True):
    many_k, many_v = repeated(k, q), repeated(v, q)
    p, scale = attention_weights(q, many_k, is_causal, scale)
    slope = g @ many_v.swapaxes(-1, -2)
    ds = p * (slope - (slope * p).sum(axis=-1, keepdims=True)) * scale
    return ds @ many_k, summed(ds.swapaxes(-1, -2) @ q, k), summed(p.swapaxes(-1, -2) @ g, v)


def attention_cases(draw) -> Case:
    """Any number of leading axes, grouped heads, and, where causal, no more queries than keys."""
    lead = draw(st.sampled_from(((), (0,), (2,), (1, 2))))
    groups, shared, t = (draw(st.integers(0, 2)) for _ in range(3))
    s, d, e = (draw(st.integers(1, SIDE)) for _ in range(3))
    causal = draw(st.booleans())
    s = t + s - 1 if causal and t else s
    k, v = ((*lead, groups, s, last) for last in (d, e))
    q = (*lead, groups * (shared + 1), t, d)
    given = {"is_causal": causal, "scale": draw(st.sampled_from((None, 0.5))), "enable_gqa": True}
    return Case((Operand(q), Operand(k), Operand(v)), given)


LARGE_HEADS = tuple(Operand((1, heads, 48, 16)) for heads in (4, 2, 2))


def attention_error(shapes, kind: type[Exception], *fragments: str, dtypes=(float32,) * 3, **params) -> Error:
    def call():
        return tinyarr.scaled_dot_product_attention(*map(lambda s, d: zeros(s, dtype=d), shapes, dtypes), **params)

    return refused(call, kind, "scaled_dot_product_attention", *fragments)


LAST_AXES = (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 5)
MORE_QUERIES = (1, 1, 4, 3), (1, 1, 2, 3), (1, 1, 2, 3)
HEADS = (1, 3, 2, 3), (1, 2, 2, 3), (1, 2, 2, 3)
MIXED = (float32, float64, float32)
ATTENTION_ERRORS = (
    attention_error(LAST_AXES, ShapeError, "query has shape (1, 2, 3, 4)", "(1, 2, 3, 5)", "last axes"),
    attention_error([(3,)] * 3, ShapeError, "(3,)", "(..., H, T, D)"),
    attention_error(HEADS, ShapeError, "(1, 3, 2, 3)", "heads (axis -3)", "enable_gqa=True"),
    attention_error(HEADS, ShapeError, "(1, 3, 2, 3)", "a multiple of key's", enable_gqa=True),
    attention_error([(1, 2, 2, 3)] * 3, ShapeError, "(3, 2)", "do not broadcast", attn_mask=zeros((3, 2))),
    attention_error([(1, 2, 2, 3)] * 3, DtypeError, "attn_mask is int64", attn_mask=zeros((2, 2), dtype=int64)),
    attention_error([(1, 1, 0, 3)] * 3, ShapeError, "(1, 1, 0, 3)", "at least one key"),
    attention_error(MORE_QUERIES, ShapeError, "causal", "as many keys", is_causal=True),
    attention_error([(1, 1, 2, 2)] * 3, DtypeError, "key float64", "one floating dtype", dtypes=MIXED),
)
SAMPLES["scaled_dot_product_attention"] = Sample(
    tinyarr.scaled_dot_product_attention,
    attention,
    cases_of(attention_cases),
    roundings=lambda q, k, v, **_: q.shape[-1] + k.shape[-2] + 12,
    scale=product_of_largest,
    errors=ATTENTION_ERRORS,
    large=Case(LARGE_HEADS, {"is_causal": True, "enable_gqa": True}),
)
SAMPLES["scaled_dot_product_attention_gradient"] = Sample(
    gradient_of(tinyarr.scaled_dot_product_attention, 3),
    attention_gradient,
    with_cotangent(cases_of(attention_cases), lambda q, k, v: q.shape[:-1] + v.shape[-1:]),
    precision=same,  # the output is an operand, as it was rounded when it was stored
    roundings=lambda g, q, k, v, **_: sum(q.shape) + sum(k.shape) + sum(v.shape) + 12,
    scale=product_of_largest,
    large=Case((LARGE_HEADS[0], *LARGE_HEADS), {"is_causal": True, "enable_gqa": True}),
)
