"""Layer norm and RMS norm, and their gradients; the weights' gradients are reduced in two stages.

The floor is reading x and writing out, and for the gradient reading g and x and writing dx.
"""

from __future__ import annotations

import math

import numpy as np

from ... import dtypes, views
from . import elementwise
from .registry import Input, Launch, Operand, Output, Plan, Scratch, Source, kernel
from .types import TYPES, packed, wide

HELD = 64  # elements of a row that a thread of a lone warp holds in registers; threads of larger groups half as many
ROWS = 4  # rows of a block, where a warp takes a row
# Blocks that walk over all rows and keep sums for the weights' gradients: 4 for each of an H100's multiprocessors.
WALKERS = 4 * 132


def _source(x: Operand, center: bool, aligned: bool) -> tuple[Source, int, int]:
    """The source for rows of x, the threads of a row, and the rows of a block."""
    columns = x.shape[-1]
    pack = math.gcd(packed(x.dtype), columns)
    threads = 32 if columns <= 32 * HELD else 128
    while threads > 32 and threads < 1024 and threads * HELD // 2 < columns:
        threads *= 2
    rows = ROWS if threads == 32 else 1
    sizes = {"C": columns, "PACK": pack, "PACKS": -(-columns // (threads * pack)), "THREADS": threads, "ROWS": rows}
    macros = (
        ("T", TYPES[x.dtype]), ("A", wide(x.dtype)), ("SQRT", "sqrt" if x.dtype is dtypes.float64 else "sqrtf"),
        ("CENTER", str(int(center))), ("ALIGNED", str(int(aligned))), *((k, str(n)) for k, n in sizes.items()),
    )  # fmt: skip
    return Source(("types.cuh", "norm.cu"), macros), threads, rows


def _forward(inputs, outputs, eps: float) -> Plan | None:
    x, out = inputs[0], outputs[0]
    center = len(inputs) == 3
    if x.dtype in dtypes.FLOAT8:
        return None
    rows = views.size(x.shape[:-1])
    if not rows:
        return Plan([])
    source, threads, together = _source(x, center, all(t.aligned for t in (*inputs, out)))
    scalar = np.float64(eps) if x.dtype is dtypes.float64 else np.float32(eps)
    mean, rstd, bias = (Output(1), Output(2), Input(2)) if center else (Output(1), Output(1), Input(1))
    arguments = (Output(0), mean, rstd, Input(0), Input(1), bias, np.int64(rows), scalar)
    return Plan([Launch(source, "normalize", (-(-rows // together), 1, 1), (threads * together, 1, 1), arguments)])


def _backward(inputs, outputs) -> Plan | None:
    center = len(inputs) == 5
    g, x, weight = inputs[:3]
    if x.dtype in dtypes.FLOAT8:
        return None
    rows, columns = views.size(x.shape[:-1]), x.shape[-1]
    if not rows:
        return Plan([step for i in range(1, len(outputs)) for step in elementwise.fill(0, (outputs[i], Output(i)))])
    source, threads, together = _source(x, center, all(t.aligned for t in (g, x, weight, outputs[0])))
    blocks = min(WALKERS, -(-rows // together))
    mean, rstd = (Input(3), Input(4)) if center else (Input(3), Input(3))
    partial = Scratch(0), Scratch(1 if center else 0)
    arguments = (Output(0), *partial, Input(0), Input(1), Input(2), mean, rstd, np.int64(rows))
    dbias = Output(2) if center else Output(1)
    shares = (Output(1), dbias, *partial, np.int32(blocks))
    steps = [
        Launch(source, "normalize_gradient", (blocks, 1, 1), (threads * together, 1, 1), arguments),
        Launch(source, "sum_shares", (-(-columns // 32), 1 + center, 1), (256, 1, 1), shares),
    ]
    return Plan(steps, (blocks * columns * x.dtype.compute.itemsize,) * (1 + center))


@kernel("layer_norm", layouts="dense")
def layer_norm(inputs, outputs, *, eps):
    return _forward(inputs, outputs, eps)


@kernel("rms_norm", layouts="dense")
def rms_norm(inputs, outputs, *, eps):
    return _forward(inputs, outputs, eps)


@kernel("layer_norm_gradient", layouts="dense")
def layer_norm_gradient(inputs, outputs, *, eps):
    return _backward(inputs, outputs)


@kernel("rms_norm_gradient", layouts="dense")
def rms_norm_gradient(inputs, outputs, *, eps):
    return _backward(inputs, outputs)
