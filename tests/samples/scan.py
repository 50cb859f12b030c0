"""Scans along an axis."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import SAMPLES, SIDE, Case, Operand, Sample, cases_of, refused
from tinyarr import zeros
from tinyarr.dtypes import ALL, int64, uint64
from tinyarr.errors import OutOfBounds, ShapeError
from tinyarr.testing import shapes


def scan_cases(draw) -> Case:
    shape = draw(shapes(min_ndim=1, max_side=SIDE + 1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    return Case((Operand(shape),), {"axis": axis, "include_initial": draw(st.booleans())})


def with_initial(scan: Callable, initial: int) -> Callable:
    def reference(x, axis, include_initial):
        scanned = scan(x, axis=axis)
        ones = np.full_like(np.take(scanned, [0] * min(x.shape[axis], 1), axis=axis), initial)
        first = ones if x.shape[axis] else np.full(x.shape[:axis] + (1,) + x.shape[axis:][1:], initial, scanned.dtype)
        return np.concatenate([first, scanned], axis=axis) if include_initial else scanned

    return reference


for _name, _scan, _initial in (("cumulative_sum", np.cumsum, 0), ("cumulative_prod", np.cumprod, 1)):
    SAMPLES[_name] = Sample(
        getattr(tinyarr, _name),
        with_initial(_scan, _initial),
        cases_of(scan_cases),
        takes=ALL,
        gives=lambda dtype, **_: dtype if dtype.is_float else uint64 if dtype.kind == "unsigned" else int64,
        roundings=lambda x, **_: x.size,
        scale=lambda x: np.abs(x).sum(),  # a running total may be smaller than what was added up
        errors=(
            refused(lambda name=_name: getattr(tinyarr, name)(zeros((2, 3))), ShapeError, _name, "(2, 3)", "axis"),
            refused(lambda name=_name: getattr(tinyarr, name)(zeros(2), axis=1), OutOfBounds, _name, "axis is 1"),
        ),
    )
