"""The rotary position embedding."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import SAMPLES, SIDE, Case, Operand, Sample, cases_of, product_of_largest, refused
from tinyarr import zeros
from tinyarr.errors import ShapeError
from tinyarr.testing import shapes


def rotary_embedding(x, cos, sin):
    """As products of complex numbers."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)
    return np.concatenate([turned.real, turned.imag], axis=-1)


def rotary_cases(draw) -> Case:
    lead, half = draw(shapes(min_ndim=1, max_ndim=3, max_side=SIDE)), draw(st.integers(0, 2))
    angles = Operand((*lead[draw(st.integers(0, len(lead))) :], half))
    return Case((Operand((*lead, 2 * half)), angles, angles))


SAMPLES["rotate"] = Sample(
    tinyarr.rotary_embedding,
    rotary_embedding,
    cases_of(rotary_cases),
    roundings=lambda x, cos, sin: 3,
    scale=product_of_largest,
    errors=(
        refused(lambda: tinyarr.rotary_embedding(zeros((2, 3)), zeros(1), zeros(1)), ShapeError, "(2, 3)", "D even"),
        refused(lambda: tinyarr.rotary_embedding(zeros((2, 4)), zeros(2), zeros(1)), ShapeError, "sin", "(1,)"),
        refused(lambda: tinyarr.rotary_embedding(zeros(4), zeros((3, 2)), zeros((3, 2))), ShapeError, "(3, 2)"),
    ),
)
