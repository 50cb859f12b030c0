"""Losses and their gradients."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import (
    FLOATS,
    SAMPLES,
    SIDE,
    Case,
    Operand,
    Sample,
    between,
    cases_of,
    gradient_of,
    product_of_largest,
    refused,
    same,
    softmax,
    with_cotangent,
)
from tinyarr import Tensor, ones, vjp, zeros
from tinyarr.dtypes import (
    FLOAT8,
    float32,
    float64,
    int64,
    uint8,
)
from tinyarr.errors import ArgumentError, DtypeError, OutOfBounds, ShapeError
from tinyarr.testing import shapes


def cross_entropy(logits, targets, reduction, ignore_index):
    counted = targets != ignore_index
    picked = np.take_along_axis(np.log(softmax(logits)), np.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    losses = np.where(counted, -picked, 0)
    return losses if reduction == "none" else losses.sum() / (counted.sum() if reduction == "mean" else 1)


def cross_entropy_gradient(g, logits, targets, reduction, ignore_index):
    hit = targets[..., None] == np.arange(logits.shape[-1])
    return np.where((targets != ignore_index)[..., None], g[..., None] * (softmax(logits) - hit), 0)


def cross_entropy_cases(draw, reductions=("none", "sum", "mean")) -> Case:
    reduction = draw(st.sampled_from(reductions))
    rows = draw(shapes(max_ndim=2, max_side=SIDE, min_side=reduction == "mean"))
    classes = draw(st.integers(2, 5))
    ignored = -100 if reduction == "mean" else draw(st.sampled_from((-100, 0)))
    targets = Operand(rows, integers=(0, classes), dtype=draw(st.sampled_from((int64, uint8))))
    return Case((Operand((*rows, classes)), targets), {"reduction": reduction, "ignore_index": ignored})


def losses_cases(draw) -> Case:
    return cross_entropy_cases(draw, ("none",))


LARGE_LOGITS = (Operand((64, 100), between(-6, 6)), Operand((64,), integers=(0, 100), dtype=int64))
LOSSES = {"reduction": "none", "ignore_index": 7}
SAMPLES["cross_entropy"] = Sample(
    tinyarr.cross_entropy,
    cross_entropy,
    cases_of(cross_entropy_cases),
    gives=lambda dtype, **_: dtype.compute,
    roundings=lambda logits, targets, **_: logits.size + 12,
    scale=product_of_largest,
    errors=(
        refused(
            lambda: tinyarr.cross_entropy(zeros((2, 3)), Tensor([0, 3])),
            OutOfBounds,
            "cross_entropy",
            "target 1 is 3",
            "0 to 2",
        ),
        refused(
            lambda: tinyarr.cross_entropy(zeros((2, 3)), Tensor([0])),
            ShapeError,
            "cross_entropy",
            "(2, 3)",
            "(1,)",
        ),
        refused(
            lambda: tinyarr.cross_entropy(zeros((2, 3)), zeros(2)),
            DtypeError,
            "cross_entropy",
            "targets",
            "integers",
        ),
        refused(
            lambda: tinyarr.cross_entropy(zeros((2, 3)), Tensor([0, 1]), reduction="max"),
            ArgumentError,
            "cross_entropy",
            "reduction",
            "'max'",
        ),
    ),
    large=Case(LARGE_LOGITS, LOSSES),
)
SAMPLES["cross_entropy_gradient"] = Sample(
    gradient_of(tinyarr.cross_entropy, 1),
    cross_entropy_gradient,
    with_cotangent(cases_of(losses_cases), lambda logits, targets: targets.shape),
    takes=(float32, float64),
    refuses=(),  # the loss of half types is float32, and g with it
    roundings=lambda g, logits, targets, **_: logits.shape[-1] + 12,
    scale=product_of_largest,
    large=Case((Operand((64,), dtype=float32), *LARGE_LOGITS), LOSSES),
)


def binary_cross_entropy_with_logits(x, target, weight):
    p = 1 / (1 + np.exp(-x))
    return -(weight * target * np.log(p) + (1 - target) * np.log(1 - p))


def binary_cases(draw) -> Case:
    shape = draw(shapes(max_side=SIDE))
    return Case((Operand(shape), Operand(shape, between(0, 1)), Operand(shape, between(0.5, 2))))


SAMPLES["binary_cross_entropy_with_logits"] = Sample(
    lambda x, target, weight: tinyarr.binary_cross_entropy_with_logits(x, target, reduction="none", pos_weight=weight),
    binary_cross_entropy_with_logits,
    cases_of(binary_cases),
    gives=lambda dtype, **_: dtype.compute,
    roundings=lambda *_: 20,
    scale=lambda x, target, weight: np.max(np.abs(x), initial=1) * 4,
    errors=(
        refused(
            lambda: tinyarr.binary_cross_entropy_with_logits(zeros(2), zeros(3)), ShapeError, "(2,)", "(3,)", "equal"
        ),
        refused(
            lambda: tinyarr.binary_cross_entropy_with_logits(zeros(2), Tensor([0, 1])), DtypeError, "int64", "floating"
        ),
    ),
)


def probability_cases(draw) -> Case:
    shape = draw(shapes(max_side=SIDE))
    return Case((Operand(shape, between(0.1, 0.9)), Operand(shape, between(0, 1))))


SAMPLES["binary_cross_entropy"] = Sample(
    lambda p, target: tinyarr.binary_cross_entropy(p, target, reduction="none"),
    lambda p, target: -(target * np.log(p) + (1 - target) * np.log(1 - p)),
    cases_of(probability_cases),
    gives=lambda dtype, **_: dtype.compute,
    roundings=lambda *_: 14,  # 4 a logarithm, and one an operation
    scale=lambda *_: 3,  # the logarithm of 0.1 is above -2.31
    errors=(
        refused(lambda: tinyarr.binary_cross_entropy(zeros(2), zeros(3)), ShapeError, "(2,)", "(3,)", "equal"),
        refused(lambda: tinyarr.binary_cross_entropy(zeros(2), Tensor([0, 1])), DtypeError, "int64", "floating"),
    ),
)


def linear_cross_entropy(x, weight, targets, reduction, ignore_index):
    return cross_entropy(x @ weight.T, targets, reduction, ignore_index)


def linear_cross_entropy_gradients(x, weight, targets, reduction, ignore_index):
    counted = targets != ignore_index
    g = counted / (counted.sum() if reduction == "mean" else 1)
    p = cross_entropy_gradient(g, x @ weight.T, targets, reduction, ignore_index)
    dx = p @ weight
    dweight = p.reshape(-1, p.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    return linear_cross_entropy(x, weight, targets, reduction, ignore_index), dx, dweight


def with_gradients(x: Tensor, weight: Tensor, targets: Tensor, **params):
    loss, pull = vjp(lambda x, weight: tinyarr.linear_cross_entropy(x, weight, targets, **params), x, weight)
    return loss, *pull(ones((), dtype=loss.dtype))


def reduced_cases(draw) -> Case:
    return cross_entropy_cases(draw, ("sum", "mean"))


def head_cases(draw) -> Case:
    case = draw(cases_of(reduced_cases))
    (rows, classes), targets = (case.operands[0].shape[:-1], case.operands[0].shape[-1]), case.operands[1]
    channels = draw(st.integers(1, SIDE))
    return Case((Operand((*rows, channels)), Operand((classes, channels)), targets), case.params)


LARGE_HEAD = (Operand((64, 16)), Operand((100, 16)), Operand((64,), integers=(0, 100), dtype=int64))
HEAD_ERRORS = (
    refused(
        lambda: tinyarr.linear_cross_entropy(zeros((2, 3)), zeros((5, 4)), Tensor([0, 1])),
        ShapeError, "linear_cross_entropy", "(2, 3)", "(5, 4)", "(V, C)",
    ),
    refused(
        lambda: tinyarr.linear_cross_entropy(zeros((2, 3)), zeros((5, 3)), Tensor([0, 5])),
        OutOfBounds, "linear_cross_entropy", "target 1 is 5", "0 to 4",
    ),
    refused(
        lambda: tinyarr.linear_cross_entropy(zeros((2, 3)), zeros((5, 3), dtype=float64), Tensor([0, 1])),
        DtypeError, "float64", "one floating dtype",
    ),
    refused(
        lambda: tinyarr.linear_cross_entropy(zeros((2, 3)), zeros((5, 3)), Tensor([0, 1]), reduction="none"),
        ArgumentError, "'none'", "'mean' or 'sum'",
    ),
)  # fmt: skip
SAMPLES["linear_cross_entropy"] = Sample(
    tinyarr.linear_cross_entropy,
    linear_cross_entropy,
    cases_of(head_cases),
    gives=lambda dtype, **_: dtype.compute,
    roundings=lambda x, weight, targets, **_: x.size + weight.size + targets.size * len(weight) + 12,
    scale=lambda *arrays: product_of_largest(*arrays) * 9 * SIDE,
    errors=HEAD_ERRORS,
    large=Case(LARGE_HEAD, {"reduction": "sum", "ignore_index": 7}),
)
SAMPLES["linear_cross_entropy_with_gradients"] = Sample(
    with_gradients,
    linear_cross_entropy_gradients,
    cases_of(head_cases),
    takes=tuple(d for d in FLOATS if d not in FLOAT8),  # in which the bound below says nothing
    refuses=(),
    gives=lambda dtype, **_: (dtype.compute, dtype, dtype),
    precision=same,  # the gradients are rounded when they are stored, then scaled
    roundings=lambda x, weight, targets, **_: x.size + weight.size + targets.size * len(weight) + 12,
    scale=lambda *arrays: product_of_largest(*arrays) * 9 * SIDE,
    large=Case(LARGE_HEAD, {"reduction": "sum", "ignore_index": 7}),
)
