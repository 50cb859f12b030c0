"""Scalar expressions in loops over fixed shapes, and what is read or written strided: copies and fills. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence

from ... import views
from ...ops.typing import Typed
from ...views import Shape
from ..source.scalar_source import element, statements
from .kernel import SMALL, CCall, COperand, indented, loop


def elementwise(site: CCall) -> str:
    """The loops of an Elementwise. An output may be exactly the memory of an input."""
    typed: Typed = site.call.primitive.typed(site.call.in_shapes, site.call.in_dtypes, site.call.params)
    return nest(typed, site.call.out_shapes[0], site.inputs, site.outputs)


def nest(typed: Typed, shape: Shape, inputs: Sequence[COperand], outputs: Sequence[COperand]) -> str:
    """An expression evaluated at every position of `shape`, to which the inputs broadcast."""
    strides = [views.broadcast_to(views.View(x.shape, x.strides), shape).strides for x in (*inputs, *outputs)]
    position = views.contiguous_strides(shape)
    if not any(v.op == "index" for v in typed.values):
        shape, (*strides, position) = views.merge_axes(shape, [*strides, position])
    axes = [f"i{axis}" for axis in range(len(shape))]
    places = []
    for x, s in zip((*inputs, *outputs), strides, strict=True):
        places.append(f"{x.name}[{element(s, axes)}]" if x.shape else x.at())
    hoisted, inside = statements(typed, places[: len(inputs)], places[len(inputs) :], axes, element(position, axes))
    return "\n".join([*hoisted, parallel_nest(shape, "\n".join(inside))])


def parallel_nest(shape: Shape, body: str) -> str:
    """Loops i0, i1, ... over a shape around a body whose iterations don't depend on each other."""
    axes = [f"i{axis}" for axis in range(len(shape))]
    if not shape:
        return f"#pragma omp single\n{{\n{indented(body)}\n}}"
    if views.size(shape) <= SMALL:
        first = "#pragma omp single"
        inner = "#pragma omp simd"
    elif len(shape) == 1:
        first, inner = "#pragma omp for simd schedule(static)", ""
    else:
        collapsed = f" collapse({len(shape) - 1})" if len(shape) > 2 else ""
        first, inner = f"#pragma omp for schedule(static){collapsed}", "#pragma omp simd"
    text = body
    for depth in reversed(range(len(shape))):
        if depth == 0:
            directive = first if len(shape) > 1 or views.size(shape) > SMALL else f"{first}"
        else:
            directive = inner if depth == len(shape) - 1 else ""
        text = loop(axes[depth], shape[depth], text, directive)
    return text


def copied(source: COperand, target: COperand) -> str:
    """target = source, for operands of one shape and dtype."""
    shape, (a, b) = views.merge_axes(target.shape, [source.strides, target.strides])
    axes = [f"i{axis}" for axis in range(len(shape))]
    return parallel_nest(shape, f"{target.name}[{element(b, axes)}] = {source.name}[{element(a, axes)}];")


def filled(target: COperand, value: str) -> str:
    """target = a C value, everywhere."""
    shape, (strides,) = views.merge_axes(target.shape, [target.strides])
    axes = [f"i{axis}" for axis in range(len(shape))]
    return parallel_nest(shape, f"{target.name}[{element(strides, axes)}] = {value};")
