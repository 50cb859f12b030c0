"""Reductions over any axes. Half types accumulate in float32. Floor 3.

What is left of a dense tensor once neighbouring axes of one kind are merged decides the kernel: rows (kept, reduced)
or columns (kept, reduced, kept). Anything else is first copied, kept axes to the front. Long rows and columns are cut
into parts whose results a second launch reduces.

The floor is reading the tensor once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .... import dtypes, views
from ....dtypes import Dtype
from ....views import Shape
from ..planning.registry import Input, Launch, LaunchPlan, LibraryCall, Operand, Output, Scratch, Source, kernel
from ..planning.types import TYPES, files, packed, wide
from . import elementwise

SHORT_ROW = 2048  # elements; up to here a warp reduces a row
PART = 16 * 1024  # elements of a row that one block reduces
ENOUGH_BLOCKS = 1024  # to fill a GPU
MOST_BLOCKS = 65535  # along the second and third axis of a grid
SLOTS = ("TO_OUT", 0), ("FROM_X", 1)

# Where the operation starts, and how it goes on; NaN wins in max and min.
OPERATIONS = {
    "sum": ("0", "((a) + (b))"),
    "prod": ("1", "((a) * (b))"),
    "max": ("LOWEST", "maximum<A>(a, b)"),
    "min": ("HIGHEST", "minimum<A>(a, b)"),
}


def _extremes(dtype: Dtype) -> tuple[tuple[str, str], ...]:
    if dtype.is_float:
        return ("LOWEST", "(-INFINITY)"), ("HIGHEST", "INFINITY")
    if dtype is dtypes.bool:
        return ("LOWEST", "0"), ("HIGHEST", "1")
    limits = np.iinfo(dtype.numpy)
    lowest = f"({limits.min + 1} - 1)" if limits.min else "0"
    return ("LOWEST", f"({TYPES[dtype]}){lowest}".replace(" - 1", "ll - 1")), (
        "HIGHEST", f"({TYPES[dtype]}){limits.max}{'ull' if limits.min == 0 else 'll'}",
    )  # fmt: skip


def _source(operation: str, stored: Dtype, result: Dtype, pack: int, aligned: bool) -> Source:
    start, combine = OPERATIONS[operation]
    accumulated = stored.compute
    macros = (
        *_extremes(accumulated), ("T", TYPES[stored]), ("A", wide(stored)), ("R", TYPES[result]),
        ("START", f"((A){start})"), ("COMBINE(a, b)", combine), ("PACK", str(pack)), ("ALIGNED", str(int(aligned))),
        ("THREADS", "256"), ("TO_OUT", "R *"), ("FROM_X", "const T *"),
    )  # fmt: skip
    return Source((*files(stored, result), "reduce.cu"), macros)


Address = Input | Output | Scratch
Step = Launch | LibraryCall


def _launch(source: Source, function: str, grid: tuple[int, int, int], out: Address, x: Address, *sizes: int) -> Launch:
    return Launch(source, function, grid, (256, 1, 1), (out, x, *map(np.int64, sizes)), slots=SLOTS)


def rows(
    operation: str, x: Address, out: Address, kept: int, length: int, stored: Dtype, result: Dtype, aligned: bool,
    scratch: int,
) -> tuple[list[Step], tuple[int, ...]]:
    """Launches that reduce each of `kept` rows, and the bytes of the scratch blocks from `scratch` on."""
    accumulated = stored.compute
    if length <= SHORT_ROW:
        source = _source(operation, stored, result, math.gcd(packed(stored), length), aligned)
        return [_launch(source, "reduce_short_rows", (-(-kept // 8), 1, 1), out, x, kept, length)], ()
    pack = packed(stored)
    aligned = aligned and length % pack == 0
    parts = min(-(-length // PART), MOST_BLOCKS)
    part = -(-length // (parts * pack)) * pack
    parts = -(-length // part)
    to, kind = (out, result) if parts == 1 else (Scratch(scratch), accumulated)
    source = _source(operation, stored, kind, pack, aligned)
    steps: list[Step] = [_launch(source, "reduce_rows", (kept, parts, 1), to, x, length, part)]
    if parts == 1:
        return steps, ()
    more, blocks = rows(operation, Scratch(scratch), out, kept, parts, accumulated, result, True, scratch + 1)
    return steps + more, (kept * parts * accumulated.itemsize, *blocks)


def columns(
    operation: str, x: Address, out: Address, outer: int, length: int, inner: int, stored: Dtype, result: Dtype,
    aligned: bool, scratch: int,
) -> tuple[list[Step], tuple[int, ...]]:
    """Launches that reduce the middle axis of (outer, length, inner), and the bytes of their scratch block."""
    accumulated = stored.compute
    pack = math.gcd(packed(stored), inner)
    blocks = -(-inner // (32 * pack)) * min(outer, MOST_BLOCKS)
    parts = max(min(ENOUGH_BLOCKS // blocks, length // 64), 1)
    part = -(-length // parts)
    parts = -(-length // part)
    to, kind = (out, result) if parts == 1 else (Scratch(scratch), accumulated)
    source = _source(operation, stored, kind, pack, aligned)
    grid = (-(-inner // (32 * pack)), min(outer, MOST_BLOCKS), parts)
    steps: list[Step] = [_launch(source, "reduce_columns", grid, to, x, outer, length, inner, part)]
    if parts == 1:
        return steps, ()
    width = outer * inner
    source = _source(operation, accumulated, result, 1, False)
    grid = (-(-width // 32), 1, 1)
    steps.append(_launch(source, "reduce_columns", grid, out, Scratch(scratch), 1, parts, width, parts))
    return steps, (parts * width * accumulated.itemsize,)


def merged(shape: Shape, axes: Sequence[int]) -> list[tuple[int, bool]]:
    """(size, whether it is reduced) of each run of neighbouring axes that are all kept or all reduced."""
    runs: list[tuple[int, bool]] = []
    for axis, n in enumerate(shape):
        reduced = axis in axes
        if n == 1:
            continue
        if runs and runs[-1][1] == reduced:
            runs[-1] = runs[-1][0] * n, reduced
        else:
            runs.append((n, reduced))
    return runs


def _reduction(operation: str):
    @kernel(operation, layouts="dense")
    def plan(inputs, outputs, *, axis, keepdims):
        (x,), (out,) = inputs, outputs
        address: Address = Input(0)
        if 0 in out.shape:
            return LaunchPlan([])
        if 0 in x.shape:  # nothing to reduce: what the operation starts with
            return LaunchPlan(elementwise.fill(1 if operation == "prod" else 0, (out, Output(0))))
        runs = merged(x.shape, axis)
        steps: list[Step] = []
        scratch: tuple[int, ...] = ()
        aligned = x.aligned
        kinds = [reduced for _, reduced in runs]
        if kinds not in ([], [True], [False], [False, True], [True, False], [False, True, False]):
            # Seen with the kept axes in front, the tensor is copied into scratch.
            order = [a for a in range(len(x.shape)) if a not in axis] + sorted(axis)
            moved = tuple(x.shape[a] for a in order)
            seen = Operand(moved, tuple(x.strides[a] for a in order), x.dtype, aligned)
            steps += elementwise.copy(
                (seen, address), (Operand(moved, views.contiguous_strides(moved), x.dtype), Scratch(0))
            )
            scratch = (views.size(x.shape) * x.dtype.itemsize,)
            address, aligned = Scratch(0), True
            runs = [(views.size(out.shape), False), (views.size(x.shape) // views.size(out.shape), True)]
            kinds = [False, True]
        n = [size for size, _ in runs]
        if True not in kinds:
            same = Operand(out.shape, out.strides, x.dtype, x.aligned)
            return LaunchPlan(elementwise.cast((same, Input(0)), (out, Output(0))))
        if kinds[-1]:
            kept, length = (n[0] if len(n) == 2 else 1), n[-1]
            more, block = rows(
                operation, address, Output(0), kept, length, x.dtype, out.dtype, aligned, scratch=len(scratch)
            )
        else:
            outer = n[0] if len(n) == 3 else 1
            more, block = columns(
                operation, address, Output(0), outer, n[-2], n[-1], x.dtype, out.dtype, aligned, scratch=len(scratch)
            )
        return LaunchPlan(steps + more, scratch + block)

    return plan


for _name in OPERATIONS:
    _reduction(_name)


def _position(operation: str, better: str):
    @kernel(operation, layouts="dense")
    def plan(inputs, outputs, *, axis, keepdims):
        (x,), (out,) = inputs, outputs
        results = views.size(out.shape)
        if not results:
            return LaunchPlan([])
        source = Source(
            (*files(x.dtype), "argreduce.cu"),
            (("T", TYPES[x.dtype]), ("A", wide(x.dtype)), ("BETTER(a, b)", better)),
        )
        columns = views.size(x.shape[axis + 1 :])
        arguments = (Output(0), Input(0), np.int64(results), np.int64(x.shape[axis]), np.int64(columns))
        return LaunchPlan([Launch(source, "argreduce", (-(-results // 8), 1, 1), (256, 1, 1), arguments)])

    return plan


_position("argmax", "((a) > (b))")
_position("argmin", "((a) < (b))")
