"""Layer norm and RMS norm, and their gradients; the weights' gradients are reduced in two stages. Floor 3.

The floor is reading x and writing out, and for the gradient reading g and x and writing dx. By hand, because what was
printed of the gradients took 3 to 6 % longer on an H200 (layer norm in ms, by hand and printed: 0.0971 and 0.1001 for
65536 rows of 768, 0.1185 and 0.1255 for 8192 of 4096), and what is printed of the norms, which is as fast alone (0.0571
and 0.0568), was not measured with a residual added on the way.
"""

from __future__ import annotations

import numpy as np

from .... import dtypes
from ....ops.norm import LARGEST, SCALE, SMALLEST, STEEPEST
from ..planning.registry import Input, Launch, LaunchPlan, Operand, Output, Scratch, Source, gradient_kernel, kernel
from ..planning.row_tiling import Rows
from ..planning.types import function
from . import elementwise

# Blocks that walk over all rows and keep sums for the weights' gradients: 4 for each of an H100's multiprocessors.
WALKERS = 4 * 132


def _source(rows: Rows, x: Operand, center: bool, aligned: bool) -> Source:
    slots = ("TO_OUT", "TO_DX", "FROM_G", "FROM_X")
    size = x.dtype.compute.itemsize
    limits = {"LARGEST": LARGEST[size], "SCALE": SCALE[size], "SMALLEST": SMALLEST[size], "STEEPEST": STEEPEST}
    sqrt = function("sqrt", x.dtype)
    return rows.source(("shares.cu", "norm.cu"), aligned, slots, CENTER=int(center), SQRT=sqrt, **limits)


def _forward(inputs, outputs, eps: float) -> LaunchPlan | None:
    x, out = inputs[0], outputs[0]
    center = len(inputs) == 3
    if x.dtype in dtypes.FLOAT8:
        return None
    rows = Rows(x)
    if not rows.count:
        return LaunchPlan([])
    source = _source(rows, x, center, all(t.aligned for t in (*inputs, out)))
    mean, rstd, bias = (Output(1), Output(2), Input(2)) if center else (Output(1), Output(1), Input(1))
    scalar = x.dtype.compute.numpy.type(eps)
    arguments = (Output(0), mean, rstd, Input(0), Input(1), bias, np.int64(rows.count), scalar)
    slots = ("TO_OUT", 0), ("FROM_X", 3)
    return LaunchPlan([Launch(source, "normalize", rows.grid, rows.block, arguments, slots=slots)])


def _backward(inputs, outputs) -> LaunchPlan | None:
    center = len(inputs) == 5
    g, x, weight = inputs[:3]
    if x.dtype in dtypes.FLOAT8:
        return None
    rows, columns = Rows(x, arrays=4), x.shape[-1]
    if not rows.count:
        return LaunchPlan(
            [step for i in range(1, len(outputs)) for step in elementwise.fill(0, (outputs[i], Output(i)))]
        )
    source = _source(rows, x, center, all(t.aligned for t in (g, x, weight, outputs[0])))
    blocks = min(WALKERS, rows.grid[0])
    mean, rstd = (Input(3), Input(4)) if center else (Input(3), Input(3))
    partial = Scratch(0), Scratch(1 if center else 0)
    arguments = (Output(0), *partial, Input(0), Input(1), Input(2), mean, rstd, np.int64(rows.count))
    dbias = Output(2) if center else Output(1)
    slots = ("TO_DX", 0), ("FROM_G", 3), ("FROM_X", 4)
    shares = (Output(1), dbias, *partial, np.int32(blocks))
    steps = [
        Launch(source, "normalize_gradient", (blocks, 1, 1), rows.block, arguments, slots=slots),
        Launch(source, "sum_shares", (-(-columns // 32), 1 + center, 1), (256, 1, 1), shares),
    ]
    return LaunchPlan(steps, (blocks * columns * x.dtype.compute.itemsize,) * (1 + center))


@kernel("layer_norm", layouts="dense")
def layer_norm(inputs, outputs, *, eps, limits):
    return _forward(inputs, outputs, eps)


@kernel("rms_norm", layouts="dense")
def rms_norm(inputs, outputs, *, eps, limits):
    return _forward(inputs, outputs, eps)


@gradient_kernel("layer_norm", ("g", "x", "weight", "mean", "rstd"), ("dx", "dweight", "dbias"))
def layer_norm_gradient(inputs, outputs, **_):
    return _backward(inputs, outputs)


@gradient_kernel("rms_norm", ("g", "x", "weight", "rstd"), ("dx", "dweight"))
def rms_norm_gradient(inputs, outputs, **_):
    return _backward(inputs, outputs)
