"""Gathering and scattering by index."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import SAMPLES, SIDE, Case, Operand, Sample, cases_of, exact, refused
from tinyarr import Tensor, vjp, zeros
from tinyarr.dtypes import (
    ALL,
    int32,
    int64,
    uint8,
)
from tinyarr.errors import DtypeError, OutOfBounds, ShapeError
from tinyarr.ops.index import index_add
from tinyarr.ops.more.slice_at import Span, slice_at
from tinyarr.ops.primitive import apply
from tinyarr.testing import shapes


def take_cases(draw, min_side: int = 0) -> Case:
    shape = draw(shapes(min_ndim=1, min_side=min_side, max_side=SIDE))
    axis = draw(st.sampled_from((None, *range(-len(shape), len(shape)))))
    n = math.prod(shape) if axis is None else shape[axis]
    picked = draw(shapes(max_ndim=2, max_side=SIDE)) if n else (0,)
    dtype = draw(st.sampled_from((int64, int32, uint8)))
    low = 0 if dtype is uint8 else -n
    return Case((Operand(shape), Operand(picked, integers=(low, max(n, 1)), dtype=dtype)), {"axis": axis})


def take_gradient_cases(draw) -> Case:
    (x, indices), params = take_cases(draw, min_side=1)
    taken = np.take(np.empty(x.shape), np.zeros(indices.shape, int), **params)
    return Case((Operand(taken.shape), indices), params | {"shape": x.shape})


def added_at(g: np.ndarray, indices: np.ndarray, axis, shape) -> np.ndarray:
    result = np.zeros(shape)
    number = np.arange(result.size).reshape(shape)
    np.add.at(result.reshape(-1), np.take(number, indices, axis=axis), g)
    return result


SAMPLES["take"] = Sample(
    tinyarr.take,
    np.take,
    cases_of(take_cases),
    takes=ALL,
    roundings=exact,
    errors=(
        refused(lambda: zeros((2, 3)).take(Tensor([0, 3]), axis=1), OutOfBounds, "take", "indices[1] is 3", "size 3"),
        refused(lambda: zeros(2).take(Tensor([-3])), OutOfBounds, "take", "indices[0] is -3", "size 2"),
        refused(lambda: zeros(2).take(Tensor([0.0])), DtypeError, "take", "float32", "integer"),
        refused(lambda: zeros(2).take(Tensor([0]), axis=1), OutOfBounds, "take", "axis is 1"),
    ),
)
SAMPLES["take_gradient"] = Sample(
    lambda g, indices, axis, shape: vjp(lambda x: x.take(indices, axis=axis), zeros(shape, dtype=g.dtype))[1](g)[0],
    added_at,
    cases_of(take_gradient_cases),
    roundings=lambda g, indices, **_: indices.size,
)


def index_add_cases(draw) -> Case:
    n, *row = draw(shapes(min_ndim=2, min_side=1, max_side=SIDE))
    picked = draw(shapes(max_ndim=2, max_side=SIDE))
    size = draw(st.integers(1, n))
    indices = Operand(picked, integers=(0, size), dtype=draw(st.sampled_from((int64, int32, uint8))))
    params = {"start": draw(st.integers(0, n - size)), "size": size}
    return Case((Operand((n, *row)), Operand((*picked, *row)), indices), params)


def rows_added(x: np.ndarray, g: np.ndarray, indices: np.ndarray, start: int, size: int) -> np.ndarray:
    result = np.zeros(x.shape)
    np.add.at(result, start + indices.astype(int), g)
    return x + result


SAMPLES["index_add"] = Sample(
    lambda x, g, indices, **params: apply(index_add, x.detach(), g.detach(), indices, **params),
    rows_added,
    cases_of(index_add_cases),
    roundings=lambda x, g, indices, **_: indices.size + 1,
    precision=lambda dtype: dtype,
    refuses=(),
    large=Case(
        (Operand((64, 32)), Operand((500, 32)), Operand((500,), integers=(0, 50), dtype=int64)),
        {"start": 7, "size": 50},
    ),
)


def slice_at_cases(draw) -> Case:
    shape = draw(shapes(min_ndim=1, min_side=1, max_side=SIDE))
    axis = draw(st.integers(0, len(shape) - 1))
    size = draw(st.integers(1, shape[axis]))
    start = Operand((), integers=(0, shape[axis] - size + 1), dtype=draw(st.sampled_from((int64, int32))))
    return Case((Operand(shape), start), {"axis": axis, "size": size})


SAMPLES["slice_at"] = Sample(
    lambda x, start, axis, size: slice_at(x, [Span(axis, start, size)]),
    lambda x, start, axis, size: np.take(x, np.arange(start, start + size), axis=axis),
    cases_of(slice_at_cases),
    takes=ALL,
    roundings=exact,
    errors=(
        refused(lambda: slice_at(zeros((2, 3)), [Span(1, Tensor(2), 2)]), OutOfBounds, "take", "is 3", "size 3"),
        refused(lambda: slice_at(zeros(3), [Span(0, Tensor(-1), 1)]), OutOfBounds, "take", "is -1", "size 3"),
    ),
)


def scatter_cases(draw) -> Case:
    shape = draw(shapes(min_ndim=1, max_ndim=1, min_side=1, max_side=SIDE))
    picked = draw(st.integers(0, 4))
    return Case((Operand(shape), Operand((picked,), integers=(0, shape[0]), dtype=int64), Operand((picked,))))


def written(x: np.ndarray, indices: np.ndarray, values: np.ndarray) -> np.ndarray:
    result = x.copy()
    for i, value in zip(indices, values):
        result[i] = value
    return result


def write(x: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    result = tinyarr.copy(x.detach())
    result[indices] = values.detach()
    return result


SAMPLES["scatter"] = Sample(
    write,
    written,
    cases_of(scatter_cases),
    takes=ALL,
    roundings=exact,
    errors=(
        refused(lambda: write(zeros(2), Tensor([0, 2]), zeros(2)), OutOfBounds, "indices[1] is 2", "size 2"),
        refused(lambda: write(zeros(2), Tensor([0, 1]), zeros(3)), ShapeError, "(3,)", "(2,)"),
        refused(lambda: write(zeros(2), Tensor([0.5]), zeros(1)), DtypeError, "index", "float32", "integer"),
    ),
)
