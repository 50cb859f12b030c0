"""Softmax and its logarithm over the last axis, and their gradients. Floor 3.

The floor is reading x and writing out, and for the gradient reading g and out and writing dx.
"""

from __future__ import annotations

import numpy as np

from .... import dtypes
from ..planning.registry import Input, Launch, LaunchPlan, Output, gradient_kernel, kernel
from ..planning.row_tiling import Rows
from ..planning.types import function

LONGEST = 64 * 1024  # elements of a row that a block can hold in registers


def _plan(name: str, logarithm: bool, inputs, outputs, slots: tuple[str, ...]) -> LaunchPlan | None:
    x = inputs[0]
    if x.dtype in dtypes.FLOAT8 or x.shape[-1] > LONGEST:
        return None
    rows = Rows(x)
    if not rows.count:
        return LaunchPlan([])
    aligned = all(t.aligned for t in (*inputs, *outputs))
    source = rows.source(
        ("softmax.cu",), aligned, ("TO_OUT", "TO_DX", "FROM_G", "FROM_OUT", "FROM_X"),
        LOGARITHM=int(logarithm), EXP=function("exp", x.dtype), LOG=function("log", x.dtype),
    )  # fmt: skip
    arguments = (Output(0), *(Input(i) for i in range(len(inputs))), np.int64(rows.count))
    return LaunchPlan(
        [Launch(source, name, rows.grid, rows.block, arguments, slots=tuple(zip(slots, range(len(slots)))))]
    )


@kernel("softmax", layouts="dense")
def softmax(inputs, outputs):
    return _plan("softmax", False, inputs, outputs, ("TO_OUT", "FROM_X"))


@kernel("log_softmax", layouts="dense")
def log_softmax(inputs, outputs):
    return _plan("softmax", True, inputs, outputs, ("TO_OUT", "FROM_X"))


@gradient_kernel("softmax", ("g", "out"), ("dx",))
def softmax_gradient(inputs, outputs, **_):
    return _plan("softmax_gradient", False, inputs, outputs, ("TO_DX", "FROM_G", "FROM_OUT"))


@gradient_kernel("log_softmax", ("g", "out"), ("dx",))
def log_softmax_gradient(inputs, outputs, **_):
    return _plan("softmax_gradient", True, inputs, outputs, ("TO_DX", "FROM_G", "FROM_OUT"))
