"""Layouts: the order in which the elements of a value are in memory. Floor 2.

Row-major unless a copy in another order is made of the value: then its maker, where that writes with any strides, makes
it in that order, and the copy has nothing to do. What is read through one view alone, as the gradient of a weight is
through a transposed one, is made as that view sees it.

A layout is a view of memory that shows a value in its own shape; a read is a view of the row-major value. `read_in`
leads from one to the other.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeGuard

from ... import eager, views
from ...ops.create import _copy
from ...program import Graph, Node, PlanStep, Read, Step, Value, Write
from ...views import Shape, View
from ..uses import is_call, is_collective, is_elementwise, is_wait, made_by, values_read

row_major = functools.lru_cache(maxsize=4096)(views.contiguous)


def layouts(graph: Graph) -> dict[Value, View]:
    """Returns the layouts of the values that are not row-major.

    Example: for `g = (x @ y).T + 0`, which reads the product (3, 4) as (4, 3) by (1, 4), the product gets (3, 4) by
    (1, 3): the addition then goes through memory in order.
    """
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
        if not isinstance(node, Node) or is_elementwise(node):  # which would write with strides, a line for an element
            continue
        writes = node.call.device.backend.out_layouts(node.call)
        for value, shape, kinds in zip(node.outputs, node.call.out_shapes, writes, strict=True):
            seen = reads.get(value, [])
            wanted = copied.get(value, seen[0] if len(set(seen)) == 1 else None)
            if wanted is None or value in stored or views.is_contiguous(wanted):
                continue
            layout = in_order_of(value.shape, wanted, views.contiguous_strides(wanted.shape))
            if layout is None or any(_translated(v, _axes_of(layout)) is None for v in seen):
                continue
            made = views.reshape(layout, shape)
            if made is not None and eager.suits(made, kinds):
                found[value] = layout
    return found


def is_copy(node: Step | PlanStep) -> TypeGuard[Node]:
    return is_call(node, _copy)


def read_in(layout: View, view: View) -> View:
    """Returns the view of memory that shows what a view of the row-major value shows, if the value has a layout.

    Example: (2, 3) elements are column by column in memory, (2, 3) by (1, 2). Their last column, if row-major (2,) by
    (3,) from element 2 on, is (2,) by (1,) from element 4 on.
    """
    if layout == row_major(layout.shape):
        return view
    found = _translated(view, _axes_of(layout))
    assert found is not None, "a layout is chosen only where all views of the value can be had"
    return found


def in_order_of(shape: Shape, seen: View, strides: Shape) -> View | None:
    """Returns the layout of a value in which what `seen` shows of it has these strides, if `seen` shows it whole.

    None where there is no such layout.

    Examples: a value (3, 4), read as (4, 3) by (1, 4), its transpose. If that shall be row-major, (4, 3) by (3, 1), the
    layout is (3, 4) by (1, 3). If that shall be columns 2 to 4 of a matrix of 8 columns, (4, 3) by (8, 1), the layout
    is (3, 4) by (1, 8).
    """
    if views.is_contiguous(seen):
        return views.reshape(View(seen.shape, strides), shape) if views.size(seen.shape) == views.size(shape) else None
    axes = _axes(seen.shape, seen.strides, strides)
    step = views.size(shape)
    if seen.offset or step == 0:
        return None
    for axis in axes:
        if step != axis.size * axis.row_major:
            return None
        step = axis.row_major
    return _translated(views.contiguous(shape), axes) if step == 1 else None


class _Axis(NamedTuple):
    """Neighbours along it are `row_major` elements apart if the value is row-major, `in_memory` apart in its layout."""

    size: int
    row_major: int
    in_memory: int


def _axes(shape: Shape, row_major: Shape, in_memory: Shape) -> list[_Axis]:
    """From the outermost to the innermost of the row-major value."""
    axes = map(_Axis, shape, row_major, in_memory)
    return sorted((a for a in axes if a.size > 1), key=lambda a: -a.row_major)


def _axes_of(layout: View) -> list[_Axis]:
    return _axes(layout.shape, views.contiguous_strides(layout.shape), layout.strides)


def _translated(view: View, axes: Sequence[_Axis]) -> View | None:
    """Returns the view of memory that shows what `view` shows of the row-major value; None where there are no strides.

    The axes are digits of a position in the row-major value: of a value (2, 3), element 5 = 1 * 3 + 2 has the digits 1
    and 2, and is at 1 * 1 + 2 * 2 = 5 in memory if the layout is (2, 3) by (1, 2). A stride of the view is walked digit
    by digit, and must not carry from one into the next unless memory does so as well.
    """
    offset, rest = 0, view.offset
    highest = []  # the largest digit of each axis that the view gets to
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
    """Returns how far apart in memory `count` elements are that are `stride` apart in the row-major value.

    Adds to `highest` how far they go along each axis. None where they are not evenly apart.

    Example: the 6 elements of the (2, 3) by (1, 2), 1 apart if row-major, are not: after element 2 at 4 comes element 3
    at 1. The 2 elements that are 3 apart are 1 apart.
    """
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
