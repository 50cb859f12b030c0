"""Joining tensors, and placing one in zeros: copies into parts of the result."""

from __future__ import annotations

from ... import views
from . import elementwise
from .registry import Input, Operand, Output, Plan, kernel


@kernel("concat")
def concat(inputs, outputs, *, axis):
    (out,) = outputs
    steps, start = [], 0
    for i, x in enumerate(inputs):
        steps += elementwise.copy((x, Input(i)), _part(out, x.shape, out.strides, start * out.strides[axis]))
        start += x.shape[axis]
    return Plan(steps)


@kernel("unslice")
def unslice(inputs, outputs, *, shape, starts, stops, steps):
    (x,), (out,) = inputs, outputs
    zeros = elementwise.fill(0, (out, Output(0)))
    if 0 in x.shape:
        return Plan(zeros)
    offset = sum(a * s for a, s in zip(starts, out.strides))
    strides = tuple(s * step for s, step in zip(out.strides, steps))
    return Plan(zeros + elementwise.copy((x, Input(0)), _part(out, x.shape, strides, offset)))


def _part(out: Operand, shape: views.Shape, strides: views.Shape, offset: int) -> tuple[Operand, Output]:
    """Elements of the result, `offset` elements from its start."""
    nbytes = offset * out.dtype.itemsize
    return Operand(shape, strides, out.dtype, out.aligned and nbytes % 16 == 0), Output(0, nbytes)
