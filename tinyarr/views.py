"""Shapes, strides, broadcasting, and what a view is: pure functions on tuples of ints. Floor 1.

A View maps a tensor to its storage: element (i, j, ...) is at offset + i * strides[0] + j * strides[1]
+ ..., counted in elements. The same functions serve eager mode, where a view is made at once, and the compiler, where
it is a node without a kernel.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from .errors import OutOfBounds, ShapeError, whole_number

Shape = tuple[int, ...]


class View(NamedTuple):
    """Shape, strides and offset in elements. A stride of 0 repeats, a negative one walks backwards."""

    shape: Shape
    strides: Shape
    offset: int = 0


def size(shape: Shape) -> int:
    """Number of elements; 1 for a 0-d shape."""
    return math.prod(shape)


def contiguous_strides(shape: Shape) -> Shape:
    """Returns the strides of a densely packed row-major tensor.

    >>> from tinyarr.views import contiguous_strides
    >>> contiguous_strides((2, 3, 4))
    (12, 4, 1)
    """
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= max(n, 1)
    return tuple(reversed(strides))


def contiguous(shape: Shape) -> View:
    """The row-major view at offset 0."""
    return View(shape, contiguous_strides(shape), 0)


def merge_axes(shape: Shape, strides: Sequence[Shape]) -> tuple[Shape, list[Shape]]:
    """Drops axes of size 1 and merges neighbours along which every operand walks on evenly; at least one axis is left.

    strides: those of each operand along the axes of `shape`.

    Of two dense operands (2, 3, 4) one axis is left; where the second is broadcast along the first axis, two are:

    >>> from tinyarr.views import merge_axes
    >>> merge_axes((2, 3, 4), [(12, 4, 1), (12, 4, 1)])
    ((24,), [(1,), (1,)])
    >>> merge_axes((2, 3, 4), [(12, 4, 1), (0, 4, 1)])
    ((2, 12), [(12, 1), (0, 1)])
    """
    axes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for axis, n in enumerate(shape):
        here = [by[axis] for by in strides]
        if n == 1:
            continue
        if axes and all(by[-1] == s * n for by, s in zip(merged, here, strict=True)):
            axes[-1] *= n
            for by, s in zip(merged, here, strict=True):
                by[-1] = s
        else:
            axes.append(n)
            for by, s in zip(merged, here, strict=True):
                by.append(s)
    return tuple(axes) or (1,), [tuple(by) or (1,) for by in merged]


def is_contiguous(view: View) -> bool:
    """Returns whether the elements are densely packed in row-major order (at any offset)."""
    step = 1
    for n, stride in zip(reversed(view.shape), reversed(view.strides), strict=True):
        if n == 0:
            return True
        if n != 1 and stride != step:
            return False
        step *= n
    return True


def extent(view: View) -> tuple[int, int]:
    """Returns the first element of the storage that the view touches and the one after the last; (0, 0) if empty.

    >>> from tinyarr.views import View, extent
    >>> extent(View((3,), (2,), 10)), extent(View((3,), (-2,), 10))
    ((10, 15), (6, 11))
    """
    if 0 in view.shape:
        return 0, 0
    reach = [(n - 1) * stride for n, stride in zip(view.shape, view.strides, strict=True)]
    return view.offset + sum(r for r in reach if r < 0), view.offset + sum(r for r in reach if r > 0) + 1


def normalize_shape(operation: str, shape: int | Iterable[int], *more: int) -> Shape:
    """`shape`, given as an iterable or as ints, as a tuple of non-negative ints. Raises TypeError for anything else."""
    sizes: Any = shape if isinstance(shape, (tuple, Iterable)) and not more else (shape, *more)
    try:
        result = tuple(map(operator.index, sizes))
    except TypeError:
        came = (shape, *more) if more else shape
        raise TypeError(f"{operation}: shape is {came!r}: give ints, or a tuple of them") from None
    if any(n < 0 for n in result):
        raise ShapeError(f"{operation}: shape is {result}: every size must be 0 or more")
    return result


def normalize_axis(operation: str, axis: int, ndim: int) -> int:
    """`axis` counted from the front. Raises OutOfBounds outside [-ndim, ndim)."""
    result = whole_number(operation, "axis", axis)
    if not -ndim <= result < ndim:
        where = f"axes go from {-ndim} to {ndim - 1}" if ndim else "a 0-d tensor has no axes"
        raise OutOfBounds(f"{operation}: axis is {axis}, the tensor has {ndim} dimensions: {where}")
    return result % ndim


def normalize_axes(operation: str, axes: int | Sequence[int] | None, ndim: int) -> Shape:
    """`axes` counted from the front, sorted; None means all of them. Raises ShapeError for one named twice."""
    if axes is None:
        return tuple(range(ndim))
    if not isinstance(axes, Sequence):
        axes = (axes,)
    result = tuple(sorted(normalize_axis(operation, a, ndim) for a in axes))
    if len(set(result)) < len(result):
        raise ShapeError(f"{operation}: axis is {tuple(axes)}: an axis is named twice")
    return result


def broadcast_shapes(operation: str, *shapes: Shape) -> Shape:
    """The shape that all of `shapes` broadcast to (the standard's rule: aligned at the end, size 1 repeats)."""
    if len(set(shapes)) == 1:
        return shapes[0]
    result = [1] * max(map(len, shapes), default=0)
    for shape in shapes:
        for i, n in enumerate(reversed(shape), 1):
            if result[-i] == 1:
                result[-i] = n
            elif n not in (1, result[-i]):
                listed = " and ".join(map(str, shapes))
                raise ShapeError(
                    f"{operation}: shapes {listed} do not broadcast: "
                    f"axis -{i} has sizes {result[-i]} and {n}, which must be equal or 1"
                )
    return tuple(result)


def broadcast_to(view: View, shape: Shape) -> View:
    """Returns the view repeated with stride 0 to `shape`. Raises ShapeError where a size is neither 1 nor equal.

    >>> from tinyarr.views import View, broadcast_to
    >>> broadcast_to(View((3,), (1,)), (2, 3))
    View(shape=(2, 3), strides=(0, 1), offset=0)
    """
    missing = len(shape) - len(view.shape)
    strides = [0] * max(missing, 0)
    for n, stride, target in zip(view.shape, view.strides, shape[max(missing, 0) :], strict=False):
        if n not in (1, target):
            missing = -1
        strides.append(0 if n == 1 and target != 1 else stride)
    if missing < 0:
        raise ShapeError(f"broadcast_to: x has shape {view.shape}, shape is {shape}: each size must be equal or 1")
    return View(shape, tuple(strides), view.offset)


def permute(view: View, axes: Shape) -> View:
    """Returns the view with its axes reordered: axis i of the result is axis axes[i] of the view.

    >>> from tinyarr.views import View, permute
    >>> permute(View((2, 3), (3, 1)), (1, 0))
    View(shape=(3, 2), strides=(1, 3), offset=0)
    """
    return View(tuple(view.shape[a] for a in axes), tuple(view.strides[a] for a in axes), view.offset)


def reshape(view: View, shape: Shape) -> View | None:
    """Returns the view with another shape of the same size, or None where no strides can express it without a copy.

    The rows of a transpose (3, 2) can be cut but not joined: neighbours are 3 elements apart, except at ends of rows.

    >>> from tinyarr.views import View, reshape
    >>> reshape(View((3, 2), (1, 3)), (3, 1, 2))
    View(shape=(3, 1, 2), strides=(1, 1, 3), offset=0)
    >>> reshape(View((3, 2), (1, 3)), (6,)) is None
    True
    """
    if view.shape == shape:
        return view
    if is_contiguous(view):
        return View(shape, contiguous_strides(shape), view.offset)
    if 0 in shape:
        return View(shape, contiguous_strides(shape), view.offset)
    # Runs of old axes that are dense one behind another can be cut anew; each new axis must stay within one run.
    runs: list[list[int]] = []  # [size, stride of its innermost element]
    for n, stride in zip(view.shape, view.strides, strict=True):
        if n == 1:
            continue
        if runs and runs[-1][1] == n * stride:
            runs[-1] = [runs[-1][0] * n, stride]
        else:
            runs.append([n, stride])
    strides: list[int] = []
    for n in reversed(shape):
        while runs and runs[-1][0] == 1:
            runs.pop()
        if n == 1:
            strides.append(1)
        elif runs and runs[-1][0] % n == 0:
            strides.append(runs[-1][1])
            runs[-1] = [runs[-1][0] // n, runs[-1][1] * n]
        else:
            return None
    return View(shape, tuple(reversed(strides)), view.offset)


def slice_view(view: View, starts: Shape, stops: Shape, steps: Shape) -> View:
    """Returns the view cut along each axis to start:stop:step, all already normalized as by `slice.indices`.

    Of (4, 5), rows 1 and 3, the first two columns:

    >>> from tinyarr.views import View, slice_view
    >>> slice_view(View((4, 5), (5, 1)), (1, 0), (4, 2), (2, 1))
    View(shape=(2, 2), strides=(10, 1), offset=5)
    """
    shape, strides, offset = [], [], view.offset
    for start, stop, step, stride in zip(starts, stops, steps, view.strides, strict=True):
        shape.append(len(range(start, stop, step)))
        strides.append(stride * step if shape[-1] > 1 else stride)  # of one element the step may be any, 2**62 too
        offset += start * stride
    return View(tuple(shape), tuple(strides), view.offset if 0 in shape else offset)
