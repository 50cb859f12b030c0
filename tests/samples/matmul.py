"""Matrix products."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import NUMBERS, SAMPLES, SIDE, Case, Operand, Sample, cases_of, refused
from tinyarr import Tensor, zeros
from tinyarr.dtypes import FLOAT8, bfloat16, float8_e4m3fn, float16, float32
from tinyarr.errors import DtypeError, ShapeError
from tinyarr.ops.epilogue import matmul_bias, matmul_bias_gelu, matmul_gelu_gradient
from tinyarr.ops.matmul import matmul_add, matmul_wide
from tinyarr.ops.primitive import apply
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


def wide_cases(draw) -> Case:
    (m, k, n), batch = (draw(st.integers(0, SIDE)) for _ in range(3)), draw(st.sampled_from([(), (2,)]))
    return Case((Operand((*batch, m, k)), Operand((*batch, k, n))))


def add_cases(draw) -> Case:
    x, y = wide_cases(draw).operands
    return Case((Operand((*x.shape[:-1], y.shape[-1])), x, y))


SAMPLES["matmul_wide"] = Sample(
    lambda x, y: apply(matmul_wide, x, y),
    np.matmul,
    cases_of(wide_cases),
    takes=(float16, bfloat16),
    refuses=(),
    gives=lambda dtype, **_: float32,
    roundings=lambda x, y: x.shape[-1],
    large=Case((Operand((48, 64)), Operand((64, 32)))),
)
SAMPLES["matmul_add"] = Sample(
    lambda c, x, y: apply(matmul_add, c.astype(x.dtype.compute), x, y),
    lambda c, x, y: c + x @ y,
    cases_of(add_cases),
    takes=(float16, bfloat16),
    refuses=(),
    gives=lambda dtype, **_: dtype.compute,
    roundings=lambda c, x, y: x.shape[-1] + 1,
    large=Case((Operand((48, 32)), Operand((48, 64)), Operand((64, 32)))),
)


def scaled_cases(draw) -> Case:
    m, k, n = (draw(st.integers(0, SIDE)) for _ in range(3))
    scale = Operand((), dtype=float32)
    return Case((Operand((m, k)), Operand((n, k)), scale, scale))


SCALED = (Operand((48, 64)), Operand((32, 64)), Operand((), dtype=float32), Operand((), dtype=float32))
one, eight = zeros((), dtype=float32), zeros((2, 3), dtype=float8_e4m3fn)
SAMPLES["scaled_matmul"] = Sample(
    tinyarr.scaled_matmul,
    lambda x, w, scale_x, scale_w: (x * scale_x) @ (w * scale_w).T,
    cases_of(scaled_cases),
    takes=FLOAT8,
    gives=lambda dtype, **_: bfloat16,
    roundings=lambda x, *_: x.shape[-1] + 3,
    large=Case(SCALED),
    errors=(
        refused(lambda: tinyarr.scaled_matmul(eight, eight.mT, one, one), ShapeError, "scaled_matmul", "(3, 2)"),
        refused(lambda: tinyarr.scaled_matmul(eight, eight, eight, one), DtypeError, "scale_x", "0-d float32"),
    ),
)


def epilogue_cases(more) -> st.SearchStrategy:
    def case(draw) -> Case:
        m, k, n = (draw(st.integers(0, SIDE)) for _ in range(3))
        return Case((Operand((m, k)), Operand((k, n)), Operand(more(m, n))))

    return cases_of(case)


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def gelu_slope(x: np.ndarray) -> np.ndarray:
    t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))
    return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * np.sqrt(2 / np.pi) * (1 + 3 * 0.044715 * x**2)


FLOATS = tuple(d for d in NUMBERS if d.is_float)
for primitive, reference, more in (
    (matmul_bias, lambda x, y, bias: x @ y + bias, lambda m, n: (n,)),
    (matmul_bias_gelu, lambda x, y, bias: (x @ y + bias, gelu(x @ y + bias)), lambda m, n: (n,)),
    (matmul_gelu_gradient, lambda x, y, before: (x @ y) * gelu_slope(before), lambda m, n: (m, n)),
):
    SAMPLES[primitive.name] = Sample(
        lambda x, y, z, primitive=primitive: apply(primitive, x.detach(), y.detach(), z.detach()),
        reference,
        epilogue_cases(more),
        takes=FLOATS,
        roundings=lambda x, *_: x.shape[-1] + 12,
        scale=lambda x, y, z: 1.2 * (np.abs(x) @ np.abs(y)) + np.abs(z),  # no slope of GELU is larger
        precision=lambda dtype: dtype,
        refuses=(),
        large=Case((Operand((64, 128)), Operand((128, 96)), Operand(more(64, 96)))),
    )
