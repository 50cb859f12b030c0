"""Sorting and searching."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import SAMPLES, SIDE, Case, Operand, Sample, cases_of, exact, refused
from tinyarr import Tensor, zeros
from tinyarr.dtypes import ALL, int64
from tinyarr.errors import OutOfBounds, ShapeError
from tinyarr.testing import shapes


def argsort_cases(draw) -> Case:
    shape = draw(shapes(min_ndim=1, max_side=2 * SIDE))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return Case((Operand(shape, integers=(-2, 3)),), {"axis": axis, "descending": draw(st.booleans())})


def argsort(x, axis, descending):
    """Equal elements keep their order: the rank of a larger one is the lower, whichever way is sorted."""
    keys = x.astype(float)
    return np.argsort(-keys if descending else keys, axis=axis, kind="stable")


SAMPLES["argsort"] = Sample(
    tinyarr.argsort,
    argsort,
    cases_of(argsort_cases),
    takes=ALL,
    gives=lambda dtype, **_: int64,
    roundings=exact,
    errors=(refused(lambda: tinyarr.argsort(zeros(2), axis=1), OutOfBounds, "argsort", "axis is 1"),),
)
SAMPLES["nonzero"] = Sample(
    tinyarr.nonzero,
    np.nonzero,
    shapes(min_ndim=1).map(lambda s: Case((Operand(s, lambda rng, shape: rng.integers(-1, 2, shape), (-1, 2)),))),
    takes=ALL,
    gives=lambda dtype, **_: int64,
    roundings=exact,
    errors=(refused(lambda: tinyarr.nonzero(Tensor(1.0)), ShapeError, "nonzero", "0-d"),),
)
