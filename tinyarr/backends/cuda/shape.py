"""Joining tensors, and placing one in zeros: copies into parts of the result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ops import shape as ops
from ...views import Shape
from . import elementwise
from .registry import Input, Launch, Operand, Output, Plan, kernel


@kernel("concat", out_layout=lambda call: "any")
def concat(inputs, outputs, *, axis):
    return Plan(_concat(inputs, outputs[0], (), axis))


@kernel("unslice", out_layout=lambda call: "any")
def unslice(inputs, outputs, *, shape, starts, stops, steps):
    return Plan(_unslice(inputs[0], outputs[0], False, starts, steps))


def arrange(call: Any, inputs: Sequence[Operand], out: Operand, placed: Sequence[bool]) -> list[Launch]:
    """The launches of a concat or unslice call, some of whose inputs stand in their place in the result already."""
    if call.primitive is ops._concat:
        return _concat(inputs, out, placed, call.params["axis"])
    return _unslice(inputs[0], out, placed[0], call.params["starts"], call.params["steps"])


def _concat(inputs: Sequence[Operand], out: Operand, placed: Sequence[bool], axis: int) -> list[Launch]:
    steps, start = [], 0
    for i, x in enumerate(inputs):
        if not (placed and placed[i]):
            steps += elementwise.copy((x, Input(i)), _part(out, x.shape, out.strides, start * out.strides[axis]))
        start += x.shape[axis]
    return steps


def _unslice(x: Operand, out: Operand, placed: bool, starts: Shape, steps: Shape) -> list[Launch]:
    if placed:
        return _zeros_around(x.shape, out, starts)
    zeros = elementwise.fill(0, (out, Output(0)))
    if 0 in x.shape:
        return zeros
    offset = sum(a * s for a, s in zip(starts, out.strides))
    strides = tuple(s * step for s, step in zip(out.strides, steps))
    return zeros + elementwise.copy((x, Input(0)), _part(out, x.shape, strides, offset))


def _zeros_around(box: Shape, out: Operand, starts: Shape) -> list[Launch]:
    """Zeros in all of the result but a box: axis by axis what lies before and behind it, within it along those done."""
    steps, shape, offset = [], list(out.shape), 0
    for axis, (n, start) in enumerate(zip(box, starts, strict=True)):
        stride = out.strides[axis]
        for first, count in ((0, start), (start + n, out.shape[axis] - start - n)):
            part = (*shape[:axis], count, *shape[axis + 1 :])
            if count:
                steps += elementwise.fill(0, _part(out, part, out.strides, offset + first * stride))
        shape[axis], offset = n, offset + start * stride
    return steps


def _part(out: Operand, shape: Shape, strides: Shape, offset: int) -> tuple[Operand, Output]:
    """Elements of the result, `offset` elements from its start."""
    nbytes = offset * out.dtype.itemsize
    return Operand(shape, strides, out.dtype, out.aligned and nbytes % 16 == 0), Output(0, nbytes)
