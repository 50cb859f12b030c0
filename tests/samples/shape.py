"""Arrangement of elements."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

import tinyarr
from tests.samples.record import SAMPLES, SIDE, Case, Error, Operand, Sample, cases_of, exact, refused
from tinyarr import vjp, zeros
from tinyarr.dtypes import (
    ALL,
)
from tinyarr.errors import OutOfBounds, ShapeError
from tinyarr.ops.shape import slice_axes
from tinyarr.testing import broadcastable_shapes, shapes


def reshape_cases(draw) -> Case:
    shape = draw(shapes(max_side=SIDE))
    size = math.prod(shape)
    targets = [shape[::-1], (1, *shape), (size,), shape[:1] + (math.prod(shape[1:]),)] + [(-1,), (1, -1)] * (size > 0)
    return Case((Operand(shape),), {"shape": draw(st.sampled_from(targets))})


def permute_cases(draw) -> Case:
    shape = draw(shapes(max_ndim=4, max_side=SIDE))
    axes = draw(st.permutations(range(len(shape))))
    return Case((Operand(shape),), {"axes": tuple(a - draw(st.sampled_from((0, len(shape)))) for a in axes)})


def broadcast_cases(draw) -> Case:
    x, y = draw(broadcastable_shapes(2, max_side=SIDE))
    lead = draw(st.sampled_from([(), (1,), (3,)]))
    return Case((Operand(x),), {"shape": (*lead, *np.broadcast_shapes(x, y))})


def slice_cases(draw) -> Case:
    shape = draw(shapes(max_side=5))
    return Case((Operand(shape),), {"key": tuple(draw(st.slices(n)) for n in shape)})


def index_cases(draw) -> Case:
    shape = draw(shapes(max_side=5))
    return Case((Operand(shape),), {"key": draw(basic_indices(shape, allow_newaxis=True))})


def unslice_cases(draw) -> Case:
    (x,), params = draw(cases_of(index_cases))
    return Case((Operand(np.empty(x.shape)[params["key"]].shape),), params | {"shape": x.shape})


def in_zeros(g: np.ndarray, key, shape) -> np.ndarray:
    result = np.zeros(shape, g.dtype)
    result[key] = g
    return result


def concat_cases(draw) -> Case:
    shape = draw(shapes(min_ndim=1, max_side=SIDE))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    parts = [list(shape) for _ in range(draw(st.integers(1, 3)))]
    for part in parts:
        part[axis] = draw(st.integers(0, SIDE))
    return Case(tuple(Operand(tuple(part)) for part in parts), {"axis": draw(st.sampled_from((axis, None)))})


def split_cases(draw) -> Case:
    shape = draw(shapes(min_ndim=1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    cut = draw(st.integers(0, shape[axis]))
    return Case((Operand(shape),), {"sizes": draw(st.sampled_from(([cut, shape[axis] - cut], cut + 1))), "axis": axis})


def split_reference(x: np.ndarray, sizes, axis: int) -> tuple[np.ndarray, ...]:
    ends = np.cumsum(sizes) if isinstance(sizes, list) else np.arange(sizes, x.shape[axis], sizes)
    return tuple(np.split(x, ends[:-1] if isinstance(sizes, list) else ends, axis=axis))


def arrangement(function: Callable, reference: Callable, build: Callable, *errors: Error) -> Sample:
    return Sample(function, reference, cases_of(build), takes=ALL, roundings=exact, errors=errors)


SAMPLES["reshape"] = arrangement(
    tinyarr.reshape,
    np.reshape,
    reshape_cases,
    refused(lambda: zeros((2, 3)).reshape((4, 2)), ShapeError, "reshape", "(2, 3)", "(4, 2)", "equally many"),
    refused(lambda: zeros((2, 3)).reshape((4, -1)), ShapeError, "reshape", "(2, 3)", "(4, -1)"),
)
SAMPLES["permute_dims"] = arrangement(
    tinyarr.permute_dims,
    np.transpose,
    permute_cases,
    refused(lambda: zeros((2, 3)).permute_dims((0, 0)), ShapeError, "permute_dims", "(0, 0)", "once"),
    refused(lambda: zeros((2, 3)).permute_dims((0, 2)), OutOfBounds, "permute_dims", "axis is 2", "-2 to 1"),
)
SAMPLES["broadcast_to"] = arrangement(
    tinyarr.broadcast_to,
    np.broadcast_to,
    broadcast_cases,
    refused(lambda: zeros((2, 3)).broadcast_to((4, 3)), ShapeError, "broadcast_to", "(2, 3)", "(4, 3)"),
    refused(lambda: zeros((2, 3)).broadcast_to((3,)), ShapeError, "broadcast_to", "(2, 3)", "(3,)"),
)
SAMPLES["slice"] = arrangement(
    lambda x, key: slice_axes(x, key),
    lambda x, key: x[key],
    slice_cases,
)
SAMPLES["index"] = arrangement(
    lambda x, key: x[key],
    lambda x, key: x[key],
    index_cases,
    refused(lambda: zeros((2, 3))[2], OutOfBounds, "index", "2", "axis 0", "size 2", "-2 to 1"),
    refused(lambda: zeros((2, 3))[0, 0, 0], OutOfBounds, "index", "3 indices", "(2, 3)"),
)
SAMPLES["unslice"] = Sample(
    lambda g, key, shape: vjp(lambda x: x[key], zeros(shape, dtype=g.dtype))[1](g)[0],
    in_zeros,
    cases_of(unslice_cases),
    roundings=exact,
)
SAMPLES["concat"] = arrangement(
    lambda *parts, axis: tinyarr.concat(parts, axis=axis),
    lambda *parts, axis: np.concatenate(parts, axis=axis),
    concat_cases,
    refused(lambda: tinyarr.concat([]), ShapeError, "concat", "at least one"),
    refused(
        lambda: tinyarr.concat([zeros((2, 3)), zeros((2, 4))]),
        ShapeError,
        "concat",
        "tensor 1",
        "(2, 4)",
        "axes but 0",
    ),
    refused(lambda: tinyarr.concat([zeros(2)], axis=1), OutOfBounds, "concat", "axis is 1"),
)
SAMPLES["split"] = arrangement(
    tinyarr.split,
    split_reference,
    split_cases,
    refused(lambda: zeros(5).split([2, 2]), ShapeError, "split", "(5,)", "(2, 2)", "sum to 5"),
    refused(lambda: zeros(5).split(0), ShapeError, "split", "sizes is 0"),
)
SAMPLES["unstack"] = arrangement(
    lambda x, axis: tinyarr.unstack(x, axis=axis),
    lambda x, axis: tuple(np.moveaxis(x, axis, 0)),
    lambda draw: Case((Operand(draw(shapes(min_ndim=1, min_side=1))),), {"axis": draw(st.sampled_from((0, -1)))}),
    refused(lambda: tinyarr.unstack(zeros((2, 3)), axis=2), OutOfBounds, "unstack", "axis is 2"),
)
