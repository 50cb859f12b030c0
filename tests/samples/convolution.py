"""Windows unfolded, and their sum folded back."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import SAMPLES, Case, Operand, Sample, cases_of, exact, refused
from tinyarr import zeros
from tinyarr.dtypes import ALL, int32
from tinyarr.errors import ArgumentError, DtypeError, ShapeError


def geometry(draw, axes: int) -> tuple[tuple[int, ...], dict]:
    """Sizes of so many axes, and windows of which at least one fits in. A window may lie in the padding alone."""
    drawn = [[draw(st.integers(*ends)) for ends in ((1, 3), (1, 2), (0, 2), (1, 3))] for _ in range(axes)]
    least = [max((k - 1) * d + 1 - 2 * p, 1) for k, d, p, _ in drawn]
    sizes = tuple(draw(st.integers(n, n + 3)) for n in least)
    names = "kernel_size", "dilation", "padding", "stride"
    return sizes, {name: tuple(window[i] for window in drawn) for i, name in enumerate(names)}


def unfold_cases(draw) -> Case:
    sizes, params = geometry(draw, draw(st.integers(1, 3)))
    return Case((Operand((draw(st.integers(0, 2)), draw(st.integers(1, 2)), *sizes)),), params)


def fold_cases(draw) -> Case:
    sizes, params = geometry(draw, draw(st.integers(1, 3)))
    batch, channels = draw(st.integers(0, 2)), draw(st.integers(1, 2))
    shape = unfolded(np.empty((batch, channels, *sizes)), **params).shape
    return Case((Operand(shape),), {"output_size": sizes, **params})


def windows_of(padded: np.ndarray, kernel_size, dilation, stride):
    """The windows of an array (B, C, ...), views of it."""
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_size, dilation)]
    for at in np.ndindex(*((n - r) // s + 1 for n, r, s in zip(padded.shape[2:], reach, stride))):
        yield padded[(..., *(slice(i * s, i * s + r, d) for i, s, r, d in zip(at, stride, reach, dilation)))]


def unfolded(x: np.ndarray, kernel_size, dilation, padding, stride) -> np.ndarray:
    padded = np.pad(x, [(0, 0)] * 2 + [(p, p) for p in padding])
    shape = x.shape[0], x.shape[1] * math.prod(kernel_size)
    return np.stack([w.reshape(shape) for w in windows_of(padded, kernel_size, dilation, stride)], axis=-1)


def folded(columns: np.ndarray, output_size, kernel_size, dilation, padding, stride) -> np.ndarray:
    channels = columns.shape[1] // math.prod(kernel_size)
    padded = np.zeros((columns.shape[0], channels, *(n + 2 * p for n, p in zip(output_size, padding))), columns.dtype)
    for i, window in enumerate(windows_of(padded, kernel_size, dilation, stride)):
        window += columns[..., i].reshape(window.shape)
    return padded[(..., *(slice(p, p + n) for p, n in zip(padding, output_size)))]


LARGE = {"kernel_size": (3, 3), "dilation": (1, 1), "padding": (1, 1), "stride": (1, 1)}

SAMPLES["unfold"] = Sample(
    tinyarr.unfold,
    unfolded,
    cases_of(unfold_cases),
    takes=ALL,
    roundings=exact,
    errors=(
        refused(lambda: tinyarr.unfold(zeros((2, 3)), 2), ShapeError, "unfold", "(2, 3)", "(B, C, ...)"),
        refused(lambda: tinyarr.unfold(zeros((1, 1, 2)), 3), ShapeError, "unfold", "(2,)", "reaches over (3,)"),
        refused(lambda: tinyarr.unfold(zeros((1, 1, 4)), 0), ArgumentError, "unfold", "kernel_size is 0"),
        refused(lambda: tinyarr.unfold(zeros((1, 1, 4)), (2, 2)), ArgumentError, "unfold", "(2, 2)", "1 axes"),
        refused(lambda: tinyarr.unfold(zeros((1, 1, 4)), 2, 1, -1), ArgumentError, "unfold", "padding is -1"),
    ),
    large=Case((Operand((2, 8, 32, 32)),), LARGE),
)
SAMPLES["fold"] = Sample(
    tinyarr.fold,
    folded,
    cases_of(fold_cases),
    roundings=lambda x, kernel_size, **_: math.prod(kernel_size),
    errors=(
        refused(lambda: tinyarr.fold(zeros((1, 4, 2)), (4,), 2), ShapeError, "fold", "(1, 4, 2)", "(B, C * 2, 3)"),
        refused(lambda: tinyarr.fold(zeros((1, 3, 3)), (4,), 2), ShapeError, "fold", "(1, 3, 3)", "(B, C * 2, 3)"),
        refused(lambda: tinyarr.fold(zeros((1, 2, 3), dtype=int32), (4,), 2), DtypeError, "fold", "int32", "floating"),
    ),
    large=Case((Operand((2, 72, 1024)),), {"output_size": (32, 32), **LARGE}),
)
