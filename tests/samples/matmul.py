"""Matrix products."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import NUMBERS, SAMPLES, SIDE, Case, Operand, Sample, cases_of, refused
from tinyarr import Tensor, zeros
from tinyarr.errors import ShapeError
from tinyarr.testing import broadcastable_shapes


def matmul_cases(draw) -> Case:
    m, k, n = (draw(st.integers(0, SIDE)) for _ in range(3))
    x, y = draw(broadcastable_shapes(2, max_ndim=2, max_side=2))
    x, y = draw(st.sampled_from([(x + (m, k), y + (k, n)), ((k,), y + (k, n)), (x + (m, k), (k,)), ((k,), (k,))]))
    return Case((Operand(x), Operand(y)))


SAMPLES["matmul"] = Sample(
    tinyarr.matmul,
    np.matmul,
    cases_of(matmul_cases),
    takes=NUMBERS,
    roundings=lambda x, y: x.shape[-1] + 1,
    errors=(
        refused(
            lambda: zeros((3, 4)) @ zeros((5, 6)),
            ShapeError,
            "matmul",
            "(3, 4)",
            "(5, 6)",
            "last axis (4)",
            "(5)",
        ),
        refused(lambda: zeros((2, 3, 4)) @ zeros((3, 4, 5)), ShapeError, "matmul", "(2,)", "(3,)"),
        refused(lambda: Tensor(1.0) @ zeros(2), ShapeError, "matmul", "x is 0-d", "at least 1 dimension"),
        refused(lambda: tinyarr.matmul(zeros(2), 3.0), TypeError, "matmul", "y is float", "make it a tensor"),
    ),
)
