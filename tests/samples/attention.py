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
)
from tinyarr.errors import DtypeError, ShapeError


def attention_weights(q, k, is_causal, scale) -> tuple[np.ndarray, float]:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.swapaxes(-1, -2) * scale
    return softmax(np.where(np.tri(*scores.shape[-2:]), scores, -np.inf) if is_causal else scores), scale


def attention(q, k, v, is_causal=False, scale=None):
    return attention_weights(q, k, is_causal, scale)[0] @ v


def attention_gradient(g, q, k, v, is_causal=False, scale=None):
    p, scale = attention_weights(q, k, is_causal, scale)
    slope = g @ v.swapaxes(-1, -2)
    ds = p * (slope - (slope * p).sum(axis=-1, keepdims=True)) * scale
    return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g


def attention_cases(draw) -> Case:
    b, h, t = (draw(st.integers(0, 2)) for _ in range(3))
    s, d, e = (draw(st.integers(1, SIDE)) for _ in range(3))
    causal = draw(st.booleans())
    t, s = (max(t, 1), max(t, 1)) if causal else (t, s)
    operands = tuple(Operand((b, h, *last)) for last in ((t, d), (s, d), (s, e)))
    return Case(operands, {"is_causal": causal, "scale": draw(st.sampled_from((None, 0.5)))})


LARGE_HEADS = tuple(Operand((1, 2, 48, 16)) for _ in range(3))


def attention_error(shapes, kind: type[Exception], *fragments: str, dtypes=(float32,) * 3, **params) -> Error:
    def call():
        return tinyarr.scaled_dot_product_attention(*map(lambda s, d: zeros(s, dtype=d), shapes, dtypes), **params)

    return refused(call, kind, "scaled_dot_product_attention", *fragments)


LAST_AXES = (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 5)
MORE_KEYS = (1, 1, 2, 3), (1, 1, 4, 3), (1, 1, 4, 3)
MIXED = (float32, float64, float32)
ATTENTION_ERRORS = (
    attention_error(LAST_AXES, ShapeError, "(1, 2, 3, 4)", "(1, 2, 3, 5)", "last axes"),
    attention_error([(2, 3)] * 3, ShapeError, "(2, 3)", "(B, H, T, D)"),
    attention_error([(1, 1, 0, 3)] * 3, ShapeError, "(1, 1, 0, 3)", "at least one key"),
    attention_error(MORE_KEYS, ShapeError, "causal", "equally long", is_causal=True),
    attention_error([(1, 1, 2, 2)] * 3, DtypeError, "k float64", "one floating dtype", dtypes=MIXED),
)
SAMPLES["scaled_dot_product_attention"] = Sample(
    tinyarr.scaled_dot_product_attention,
    attention,
    cases_of(attention_cases),
    roundings=lambda q, k, v, **_: q.shape[-1] + k.shape[-2] + 12,
    scale=product_of_largest,
    errors=ATTENTION_ERRORS,
    large=Case(LARGE_HEADS, {"is_causal": True}),
)
SAMPLES["scaled_dot_product_attention_gradient"] = Sample(
    gradient_of(tinyarr.scaled_dot_product_attention, 3),
    attention_gradient,
    with_cotangent(cases_of(attention_cases), lambda q, k, v: q.shape[:-1] + v.shape[-1:]),
    precision=same,  # the output is an operand, as it was rounded when it was stored
    roundings=lambda g, q, k, v, **_: sum(q.shape) + sum(k.shape) + sum(v.shape) + 12,
    scale=product_of_largest,
    large=Case((LARGE_HEADS[0], *LARGE_HEADS), {"is_causal": True}),
)
