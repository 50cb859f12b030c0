"""In which order the elements of a value lie in memory.

Row-major unless a copy in another order is made of it: then its maker, where it writes with any strides, makes it in
that order, and the copy finds its elements in place. What is read through one view alone, as the gradient of a weight
is through a transposed one, is made as that view sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

from .. import eager, views
from ..ops.create import _copy
from ..program import Graph, Node, Read, Step, Value, Write
from ..views import Shape, View
from .lives import is_call, is_collective, is_elementwise, is_wait, made_by, values_read


def layouts(graph: Graph) -> dict[Value, View]:
    """How each value lies that is not row-major: the view of its memory that shows it in its own shape."""
    found: dict[Value, View] = {}
    reads: dict[Value, list[View]] = {}
    copied: dict[Value, View] = {}
    for node in graph.nodes:
        for x in () if isinstance(node, Write) else node.inputs:
            if isinstance(x, Read):
                reads.setdefault(x.value, []).append(x.view)
                if is_copy(node):
                    copied.setdefault(x.value, x.view)
    for read in graph.results:
        reads.setdefault(read.value, []).append(read.view)
        copied.setdefault(read.value, read.view)
    stored = {s.after for s in graph.states}
    stored |= {v for n in graph.nodes if isinstance(n, Write) for v in (n.old, n.new)}
    stored |= {v for n in graph.nodes if is_collective(n) or is_wait(n) for v in (*values_read(n), *made_by(n))}
    for node in graph.nodes:
        if not isinstance(node, Node) or is_elementwise(node):
            continue
        writes = node.call.device.backend.out_layouts(node.call)
        for value, shape, kinds in zip(node.outputs, node.call.out_shapes, writes, strict=True):
            seen = reads.get(value, [])
            wanted = copied.get(value, seen[0] if len(set(seen)) == 1 else None)
            if wanted is None or value in stored or views.is_contiguous(wanted):
                continue
            layout = _made_as(value, wanted)
            if layout is None or any(_translated(v, _axes_of(layout)) is None for v in seen):
                continue
            made = views.reshape(layout, shape)
            if made is not None and eager.suits(made, kinds):
                found[value] = layout
    return found


def is_copy(node: Step) -> TypeGuard[Node]:
    return is_call(node, _copy)


def read_in(layout: View, view: View) -> View:
    """A view of a row-major value, for the same value in a layout.

    Example: (2, 3) elements that lie column by column, (2, 3) by (1, 2), and of which the last column is read, (2,) by
    (3,) from 2 on if they were row-major: (2,) by (1,) from 4 on.
    """
    found = _translated(view, _axes_of(layout))
    assert found is not None, "a layout is chosen only where all views of the value can be had"
    return found


class _Axis(NamedTuple):
    """Neighbours along it are `row_major` apart if the value is row-major, and `in_memory` apart as it lies."""

    size: int
    row_major: int
    in_memory: int


def _axes(shape: Shape, row_major: Shape, in_memory: Shape) -> list[_Axis]:
    """From the outermost to the innermost."""
    axes = map(_Axis, shape, row_major, in_memory)
    return sorted((a for a in axes if a.size > 1), key=lambda a: -a.row_major)


def _axes_of(layout: View) -> list[_Axis]:
    return _axes(layout.shape, views.contiguous_strides(layout.shape), layout.strides)


def _made_as(value: Value, wanted: View) -> View | None:
    """The layout in which `wanted` is contiguous, a view of the row-major value; None unless it shows each element."""
    axes = _axes(wanted.shape, wanted.strides, views.contiguous_strides(wanted.shape))
    step = views.size(value.shape)
    if wanted.offset or step == 0:
        return None
    for axis in axes:
        if step != axis.size * axis.row_major:
            return None
        step = axis.row_major
    return _translated(views.contiguous(value.shape), axes) if step == 1 else None


def _translated(view: View, axes: Sequence[_Axis]) -> View | None:
    """The view of memory that shows what `view` shows of the row-major value; None where there are no strides."""
    offset, rest = 0, view.offset
    highest = []  # position along each axis
    for axis in axes:
        highest.append(rest // axis.row_major)
        offset += highest[-1] * axis.in_memory
        rest %= axis.row_major
    strides = []
    for size, stride in zip(view.shape, view.strides, strict=True):
        found = 0 if size == 1 or stride == 0 else _walk(size, stride, axes, highest)
        if found is None:
            return None
        strides.append(found)
    inside = all(at < axis.size for at, axis in zip(highest, axes, strict=True))
    return View(view.shape, tuple(strides), offset) if inside else None


def _walk(count: int, stride: int, axes: Sequence[_Axis], highest: list[int]) -> int | None:
    """How far apart in memory `count` elements are that are `stride` apart; adds how far they go to `highest`."""
    at = next((i for i, axis in enumerate(axes) if 0 < axis.row_major <= stride), None)
    if at is None or stride % axes[at].row_major:
        return None
    step = stride // axes[at].row_major  # along the axis
    found = step * axes[at].in_memory
    while True:
        size = axes[at].size
        fit = size // step
        if count <= fit:
            highest[at] += step * (count - 1)
            return found
        if size % step or count % fit or at == 0 or axes[at - 1].in_memory != size * axes[at].in_memory:
            return None
        highest[at] += step * (fit - 1)
        at, step, count = at - 1, 1, count // fit
