"""Softmax, its logarithm, and their gradients."""

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
    between,
    cases_of,
    floating,
    gradient_of,
    refused,
    same,
    with_cotangent,
)
from tests.samples.record import softmax as softmax_of_rows
from tinyarr import zeros
from tinyarr.dtypes import ALL
from tinyarr.errors import OutOfBounds
from tinyarr.testing import shapes


def softmax(x, axis):
    return np.moveaxis(softmax_of_rows(np.moveaxis(x, axis, -1)), -1, axis)


def log_softmax(x, axis):
    shifted = x - x.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def softmax_gradient(g, x, axis):
    p = softmax(x, axis)
    return p * (g - (g * p).sum(axis=axis, keepdims=True))


def log_softmax_gradient(g, x, axis):
    return g - softmax(x, axis) * g.sum(axis=axis, keepdims=True)


def softmax_cases(draw) -> Case:
    shape = draw(shapes(min_ndim=1, max_ndim=3, max_side=SIDE))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    shape = (*shape[:axis], draw(st.integers(1, 5)), *shape[axis:][1:])
    return Case((Operand(shape),), {"axis": axis})


def magnitude(*arrays) -> float:
    """That of a logarithm of a softmax, the power of which is then summed with the cotangent, if there is one."""
    *cotangent, x = arrays
    weight = max(1, float(np.abs(cotangent).sum(axis=-1).max(initial=0))) if cotangent else 1
    return weight * (2 * float(np.max(np.abs(x), initial=0)) + 2)


ROWS = Operand((32, 96), between(-6, 6))
for name, reference, gradient in (
    ("softmax", softmax, softmax_gradient),
    ("log_softmax", log_softmax, log_softmax_gradient),
):
    function = getattr(tinyarr, name)
    SAMPLES[name] = Sample(
        function,
        reference,
        cases_of(softmax_cases),
        takes=ALL,
        gives=floating,
        roundings=lambda x, axis: x.shape[axis] + 12,
        scale=magnitude,
        errors=(refused(lambda function=function: function(zeros((2, 3)), axis=2), OutOfBounds, name, "2"),),
        large=Case((ROWS,), {"axis": -1}),
    )
    SAMPLES[f"{name}_gradient"] = Sample(
        gradient_of(function, 1),
        gradient,
        with_cotangent(cases_of(softmax_cases), lambda x: x.shape),
        precision=same,  # the output is an operand, as it was rounded when it was stored
        roundings=lambda g, x, axis: x.shape[axis] + 12,
        scale=magnitude,
        large=Case((ROWS, ROWS), {"axis": -1}),
    )
