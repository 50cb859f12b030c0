"""Creation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import SAMPLES, Case, Sample, exact, refused
from tinyarr.dtypes import (
    ALL,
    uint8,
)
from tinyarr.errors import ArgumentError, DtypeError, ShapeError
from tinyarr.testing import shapes


def creation(function: Callable, reference: Callable, params: st.SearchStrategy, **more) -> Sample:
    def made(dtype, **given):
        return np.asarray(reference(**given)).astype(dtype.numpy)

    with_dtype = st.builds(lambda given, dtype: Case((), given | {"dtype": dtype}), params, st.sampled_from(ALL))
    return Sample(function, made, with_dtype, (), gives=lambda _, dtype, **rest: dtype, roundings=exact, **more)


SAMPLES["full"] = creation(
    lambda shape, value, dtype: tinyarr.full(shape, value, dtype=dtype),
    lambda shape, value: np.full(shape, value),
    st.fixed_dictionaries({"shape": shapes(), "value": st.sampled_from((0, 1, 3, 1.5, True))}),
    errors=(
        refused(lambda: tinyarr.full((2, -1), 0), ShapeError, "full", "(2, -1)", "0 or more"),
        refused(lambda: tinyarr.full(2, "x"), ArgumentError, "full", "fill_value", "'x'"),
        refused(lambda: tinyarr.full(2, 300, dtype=uint8), DtypeError, "300", "uint8"),
    ),
)
SAMPLES["arange"] = creation(
    lambda start, stop, step, dtype: tinyarr.arange(start, stop, step, dtype=dtype),
    np.arange,
    st.fixed_dictionaries(
        {"start": st.integers(0, 5), "stop": st.integers(0, 9), "step": st.sampled_from((1, 2, 0.5, -1, -0.25))}
    ),
    errors=(refused(lambda: tinyarr.arange(1, 2, 0), ArgumentError, "arange", "step is 0"),),
)
SAMPLES["eye"] = creation(
    lambda n, m, k, dtype: tinyarr.eye(n, m, k=k, dtype=dtype),
    lambda n, m, k: np.eye(n, m, k),
    st.fixed_dictionaries({"n": st.integers(0, 4), "m": st.none() | st.integers(0, 4), "k": st.integers(-3, 3)}),
    errors=(refused(lambda: tinyarr.eye(-1), ShapeError, "eye", "(-1, -1)"),),
)


def linspace(start, stop, num, endpoint):
    return np.linspace(start, stop, num, endpoint=endpoint)


SAMPLES["linspace"] = creation(
    lambda start, stop, num, endpoint, dtype: tinyarr.linspace(start, stop, num, endpoint=endpoint, dtype=dtype),
    linspace,
    st.fixed_dictionaries(
        {"start": st.integers(0, 4), "stop": st.integers(0, 4), "num": st.integers(0, 5), "endpoint": st.booleans()}
    ),
    errors=(refused(lambda: tinyarr.linspace(0, 1, -1), ShapeError, "linspace", "(-1,)", "0 or more"),),
)
