"""Reductions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import SAMPLES, SIDE, Case, Operand, Sample, cases_of, distinct, exact, refused
from tinyarr import zeros
from tinyarr.dtypes import (
    ALL,
    bool,
    int64,
    uint64,
)
from tinyarr.errors import OutOfBounds, ShapeError
from tinyarr.testing import shapes


def reduction_cases(draw, ties: bool = True) -> Case:
    """Any axes; without ties, for an extremum, none that is empty."""
    shape = draw(shapes(max_side=SIDE))
    choices = [a for a, n in enumerate(shape) if n or ties]
    axes = draw(st.lists(st.sampled_from(choices), unique=True)) if choices else []
    axis = axes[0] - len(shape) if len(axes) == 1 else tuple(axes)
    if len(choices) == len(shape):
        axis = draw(st.sampled_from((axis, None)))
    x = Operand(shape) if ties else Operand(shape, distinct, repeats=False)
    return Case((x,), {"axis": axis, "keepdims": draw(st.booleans())})


def extremum_cases(draw) -> Case:
    return reduction_cases(draw, ties=False)


def arg_cases(draw) -> Case:
    shape = draw(shapes(max_side=SIDE))
    choices = [a for a, n in enumerate(shape) if n] + [None] * (0 not in shape)
    if not choices:
        shape, choices = (2,), [0]
    return Case((Operand(shape),), {"axis": draw(st.sampled_from(choices)), "keepdims": draw(st.booleans())})


SAMPLES["sum"] = Sample(
    tinyarr.sum,
    np.sum,
    cases_of(reduction_cases),
    takes=ALL,
    gives=lambda dtype, **_: dtype if dtype.is_float else uint64 if dtype.kind == "unsigned" else int64,
    roundings=lambda x, **_: x.size,
    errors=(
        refused(lambda: zeros((2, 3)).sum(axis=2), OutOfBounds, "sum", "axis is 2", "2 dimensions"),
        refused(lambda: zeros((2, 3)).sum(axis=(0, -2)), ShapeError, "sum", "(0, -2)", "twice"),
    ),
)


SAMPLES["prod"] = Sample(
    tinyarr.prod,
    np.prod,
    cases_of(reduction_cases),
    takes=ALL,
    gives=lambda dtype, **_: dtype if dtype.is_float else uint64 if dtype.kind == "unsigned" else int64,
    roundings=lambda x, **_: x.size,
    errors=(refused(lambda: zeros((2, 3)).prod(axis=2), OutOfBounds, "prod", "axis is 2", "2 dimensions"),),
)


def extremum(function: Callable, reference: Callable, build: Callable, **more) -> Sample:
    errors = (
        refused(lambda: function(zeros((2, 0)), axis=1), ShapeError, function.__name__, "(2, 0)", "empty"),
        refused(lambda: function(zeros(2), axis=1), OutOfBounds, function.__name__, "axis is 1"),
    )
    return Sample(function, reference, cases_of(build), takes=ALL, roundings=exact, errors=errors, **more)


SAMPLES["max"] = extremum(tinyarr.max, np.max, extremum_cases)
SAMPLES["min"] = extremum(tinyarr.min, np.min, extremum_cases)
SAMPLES["argmax"] = extremum(tinyarr.argmax, np.argmax, arg_cases, gives=lambda dtype, **_: int64)
SAMPLES["argmin"] = extremum(tinyarr.argmin, np.argmin, arg_cases, gives=lambda dtype, **_: int64)
