"""Normalisation and its gradient."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import (
    SAMPLES,
    SIDE,
    Case,
    Operand,
    Sample,
    cases_of,
    floating,
    gradient_of,
    product_of_largest,
    refused,
    with_cotangent,
)
from tinyarr import Tensor, zeros
from tinyarr.dtypes import (
    ALL,
)
from tinyarr.errors import ShapeError
from tinyarr.testing import shapes


def layer_norm(x, weight, bias, eps):
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def layer_norm_gradient(g, x, weight, bias, eps):
    h = layer_norm(x, 1, 0, eps)
    rstd = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    d = g * weight
    dx = rstd * (d - d.mean(axis=-1, keepdims=True) - h * (d * h).mean(axis=-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return dx, (g * h).sum(axis=rows), g.sum(axis=rows)


def layer_norm_cases(draw) -> Case:
    shape = (*draw(shapes(max_ndim=2, max_side=SIDE)), draw(st.integers(1, 5)))
    return Case((Operand(shape), Operand(shape[-1:]), Operand(shape[-1:])), {"eps": draw(st.sampled_from((1e-2, 0.5)))})


LARGE_NORM = (Operand((32, 96)), Operand((96,)), Operand((96,)))
SAMPLES["layer_norm"] = Sample(
    tinyarr.layer_norm,
    layer_norm,
    cases_of(layer_norm_cases),
    takes=ALL,
    gives=floating,
    roundings=lambda x, weight, bias, **_: 2 * x.shape[-1] + 12,
    scale=product_of_largest,
    errors=(
        refused(
            lambda: tinyarr.layer_norm(zeros((2, 3)), zeros(2), zeros(3)),
            ShapeError,
            "layer_norm",
            "(2, 3)",
            "weight has shape (2,)",
            "last axis",
        ),
        refused(
            lambda: tinyarr.layer_norm(Tensor(1.0), zeros(1), zeros(1)),
            ShapeError,
            "layer_norm",
            "x has shape ()",
        ),
    ),
    large=Case(LARGE_NORM, {"eps": 1e-5}),
)
SAMPLES["layer_norm_gradient"] = Sample(
    gradient_of(tinyarr.layer_norm, 3),
    layer_norm_gradient,
    with_cotangent(cases_of(layer_norm_cases), lambda x, weight, bias: x.shape),
    roundings=lambda g, x, weight, bias, **_: 2 * x.shape[-1] + x.size + 12,
    scale=product_of_largest,
    large=Case((LARGE_NORM[0], *LARGE_NORM), {"eps": 1e-5}),
)


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def rms_norm_gradient(g, x, weight, eps):
    h, rstd = rms_norm(x, 1, eps), 1 / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps)
    d = g * weight
    return rstd * (d - h * (d * h).mean(axis=-1, keepdims=True)), (g * h).sum(axis=tuple(range(x.ndim - 1)))


rms_norm_cases = cases_of(layer_norm_cases).map(lambda case: Case(case.operands[:2], case.params))
SAMPLES["rms_norm"] = Sample(
    tinyarr.rms_norm,
    rms_norm,
    rms_norm_cases,
    takes=ALL,
    gives=floating,
    roundings=lambda x, weight, **_: x.shape[-1] + 8,
    scale=product_of_largest,
    errors=(
        refused(lambda: tinyarr.rms_norm(zeros((2, 3)), zeros(2)), ShapeError, "rms_norm", "(2, 3)", "weight", "(2,)"),
        refused(lambda: tinyarr.rms_norm(zeros((2, 0))), ShapeError, "rms_norm", "(2, 0)", "at least one element"),
    ),
    large=Case(LARGE_NORM[:2], {"eps": 1e-5}),
)
SAMPLES["rms_norm_gradient"] = Sample(
    gradient_of(tinyarr.rms_norm, 2),
    rms_norm_gradient,
    with_cotangent(rms_norm_cases, lambda x, weight: x.shape),
    roundings=lambda g, x, weight, **_: x.shape[-1] + x.size + 8,
    scale=product_of_largest,
    large=Case((LARGE_NORM[0], *LARGE_NORM[:2]), {"eps": 1e-5}),
)
