"""Rows by number, the sum of gradients back into the rows, and scattering. Floor 3.

The gradient adds the rows of equal numbers in their order: the numbers are sorted (8 bits a pass),
pieces of the sorted order are added side by side, and runs longer than a piece are joined from their parts.

The floor of `take` is reading and writing the rows taken; of its gradient reading them and writing every row twice, as
most rows of a large vocabulary have none to add and are cleared first.
"""

from __future__ import annotations

import math

import numpy as np

from .... import dtypes, views
from ..planning.registry import Input, Launch, LaunchPlan, Operand, Output, Report, Scratch, Source, kernel
from ..planning.types import TYPES, files, packed, wide
from . import elementwise

FILES = ("report.cuh", "index.cu")
UNITS = {1: "uint8_t", 2: "uint16_t", 4: "uint32_t", 8: "uint64_t", 16: "Pack<uint32_t, 4>"}
MOST_BLOCKS = 2**31 - 1
PIECE, AT_ONCE = 64, 4  # rows of the sorted order that a block adds, and that a thread loads at once
SORTERS = 128  # blocks that sort, at most: each reads what all have counted


def _blocks(n: int, threads: int = 256) -> tuple[int, int, int]:
    return (min(-(-n // threads), MOST_BLOCKS), 1, 1)


def _outside(shape: views.Shape, n: int, wrap: bool) -> Report:
    low = -n if wrap else 0
    message = f"take: indices[{{position}}] is {{value}}, the axis has size {n}: use {low} to {n - 1}"
    return Report(message, shape)


@kernel("take", layouts="dense")
def take(inputs, outputs, *, axis, wrap):
    (x, indices), (out,) = inputs, outputs
    if 0 in out.shape:
        return LaunchPlan([])
    inner, n, count = views.size(x.shape[axis + 1 :]), x.shape[axis], views.size(indices.shape)
    unit = math.gcd(inner * x.dtype.itemsize, 16) if x.aligned else x.dtype.itemsize
    columns = inner * x.dtype.itemsize // unit
    units = views.size(x.shape[:axis]) * count * columns
    source = Source(("types.cuh", *FILES), (("TAKE", ""), ("T", UNITS[unit]), ("I", TYPES[indices.dtype])))
    sizes = [np.int64(size) for size in (units, columns, count, n)]
    arguments = (Output(0), Input(0), Input(1), *sizes, np.int32(wrap), _outside(indices.shape, n, wrap))
    return LaunchPlan([Launch(source, "take", _blocks(units), (256, 1, 1), arguments)])


@kernel("take_gradient", layouts="dense")
def take_gradient(inputs, outputs, *, axis, size, wrap):
    (g, indices), (out,) = inputs, outputs
    cleared = elementwise.fill(0, (out, Output(0)))
    if 0 in g.shape:
        return LaunchPlan(cleared)
    outer, columns = views.size(out.shape[:axis]), views.size(out.shape[axis + 1 :])
    launches, scratch = _add_rows(g, 0, indices, 1, Output(0), outer, size, columns, wrap)
    return LaunchPlan([*cleared, *launches], scratch)


@kernel("index_add", layouts="dense", updates=True)
def index_add(inputs, outputs, *, start, size):
    x, g, indices = inputs
    if 0 in g.shape:
        return LaunchPlan([])
    columns = views.size(x.shape[1:])
    target = Output(0, start * columns * x.dtype.itemsize)
    return LaunchPlan(*_add_rows(g, 1, indices, 2, target, 1, size, columns, False, update=True))


def _add_rows(
    g: Operand, g_number: int, indices: Operand, indices_number: int, out: Output, outer: int, size: int, columns: int,
    wrap: bool, *, update: bool = False,
) -> tuple[list[Launch], tuple[int, ...]]:  # fmt: skip
    """Launches that put the sums of rows of g in their place, and the bytes of their scratch blocks."""
    count = views.size(indices.shape)
    sort, keys, order = _sort(indices, Input(indices_number), count, size, wrap)
    pack = math.gcd(packed(g.dtype), columns)
    macros = (
        ("ADD", ""), ("T", TYPES[g.dtype]), ("A", wide(g.dtype)), ("I", TYPES[indices.dtype]), ("PACK", str(pack)),
        ("PIECE", str(PIECE)), ("AT_ONCE", str(AT_ONCE)), ("ALIGNED", str(int(g.aligned))),
        ("UPDATE", str(int(update))),
    )  # fmt: skip
    source = Source((*files(g.dtype), *FILES), macros)
    pieces = -(-count // PIECE)
    partial = Scratch(5)
    numbers = (np.int64(count), np.int64(size), np.int64(columns))
    launches = [
        Launch(
            source, "add_rows", (pieces, -(-columns // (128 * pack)), outer), (128, 1, 1),
            (out, partial, Input(g_number), keys, order, *numbers),
        ),
        Launch(
            source, "join_runs", (pieces, -(-columns // 128), outer), (128, 1, 1),
            (out, partial, keys, *numbers),
        ),
    ]  # fmt: skip
    scratch = (*[4 * count] * 4, 4 * 256 * _parts(count)[1], pieces * 2 * outer * columns * g.dtype.compute.itemsize)
    return [*sort, *launches], scratch


def _parts(count: int) -> tuple[int, int]:
    """Returns the number of keys that a block sorts, a multiple of 1024, and the number of blocks."""
    part = 1024 * -(-count // (1024 * SORTERS))
    return part, -(-count // part)


def _sort(
    indices: Operand, at: Input, count: int, size: int, wrap: bool
) -> tuple[list[Launch], Scratch, Scratch]:
    """Launches that sort the indices, and where the sorted keys and their order are; scratch blocks 0 to 4."""
    source = Source(("types.cuh", *FILES), (("SORT", ""), ("I", TYPES[indices.dtype])))
    part, blocks = _parts(count)
    grid, block, counts = (blocks, 1, 1), (1024, 1, 1), Scratch(4)
    keys, order, other_keys, other_order = (Scratch(i) for i in range(4))
    report = _outside(indices.shape, size, wrap)
    arguments = (keys, order, at, np.int64(count), np.int64(size), np.int32(wrap), report)
    launches = [Launch(source, "begin_sort", _blocks(count), (256, 1, 1), arguments)]
    for shift in range(0, size.bit_length(), 8):
        by = np.int64(count), np.int64(part), np.int32(shift)
        launches += [
            Launch(source, "count_digits", grid, block, (counts, keys, *by)),
            Launch(source, "place", grid, block, (other_keys, other_order, keys, order, counts, *by)),
        ]
        keys, order, other_keys, other_order = other_keys, other_order, keys, order
    return launches, keys, order


@kernel("scatter", layouts="dense")
def scatter(inputs, outputs):
    x, indices, _ = inputs
    n, count = x.shape[0], indices.shape[0]
    if not n:
        return LaunchPlan([])
    owner = Operand((n,), (1,), dtypes.int32)
    steps = elementwise.fill(-1, (owner, Scratch(0)))
    source = Source((*files(x.dtype), *FILES), (("SCATTER", ""), ("T", TYPES[x.dtype]), ("I", TYPES[indices.dtype])))
    message = f"scatter: indices[{{position}}] is {{value}}, the axis has size {n}: use 0 to {n - 1}"
    if count:
        found = (Scratch(0), Input(1), np.int64(count), np.int64(n), Report(message, indices.shape))
        steps.append(Launch(source, "find_owners", _blocks(count), (256, 1, 1), found))
    arguments = (Output(0), Input(0), Input(2), Scratch(0), np.int64(n))
    steps.append(Launch(source, "scatter", _blocks(n), (256, 1, 1), arguments))
    return LaunchPlan(steps, (4 * n,))
