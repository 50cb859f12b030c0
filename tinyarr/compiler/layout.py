"""In which order the elements of a value lie in memory.

Row-major unless a copy in another order is made of it: then its maker, where it writes with any strides, makes it in
that order, and the copy finds its elements in place. What is read through one view alone, as the gradient of a weight
is through a transposed one, is made as that view sees it.
"""

from __future__ import annotations

from .. import views
from ..program import Graph, Node, Read, Step, Value, Write
from ..views import View
from .lives import is_elementwise


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
    for node in graph.nodes:
        if not isinstance(node, Node) or is_elementwise(node):
            continue
        for value in node.outputs:
            seen = reads.get(value, [])
            wanted = copied.get(value, seen[0] if len(set(seen)) == 1 else None)
            if wanted is None or value in stored or views.is_contiguous(wanted):
                continue
            order = _Order(value, wanted)
            if order.is_whole and all(order.translated(v) is not None for v in seen):
                layout = order.translated(views.contiguous(value.shape))
                if layout is not None:
                    found[value] = layout
    return found


def is_copy(node: Step) -> bool:
    return isinstance(node, Node) and node.call.primitive.name == "copy"


def read_in(layout: View, view: View) -> View:
    """A view of a row-major value, for the same value in a layout."""
    order = _Order.of(layout)
    found = order.translated(view)
    assert found is not None, "a layout is chosen only where all views of the value can be had"
    return found


class _Order:
    """The axes of a value in the order of memory: `axes` lists (size, row-major stride, stride in memory)."""

    def __init__(self, value: Value, wanted: View):
        """wanted: the view of the row-major value that is to be contiguous."""
        strides = views.contiguous_strides(wanted.shape)
        axes = zip(wanted.shape, wanted.strides, strides, strict=True)
        self.axes = sorted((a for a in axes if a[0] > 1), key=lambda a: -a[1])
        step = views.size(value.shape)
        self.is_whole = wanted.offset == 0 and step > 0
        for size, stride, _ in self.axes:  # from the outermost to the innermost: each element once
            self.is_whole &= step == size * stride
            step = stride
        self.is_whole &= step == 1

    @classmethod
    def of(cls, layout: View) -> _Order:
        order = cls.__new__(cls)
        axes = zip(layout.shape, views.contiguous_strides(layout.shape), layout.strides, strict=True)
        order.axes = sorted((a for a in axes if a[0] > 1), key=lambda a: -a[1])
        return order

    def translated(self, view: View) -> View | None:
        """The view of memory that shows what `view` shows of the row-major value; None where there are no strides."""
        offset, rest = 0, view.offset
        highest = []  # position along each axis
        for _, row_major, in_memory in self.axes:
            highest.append(rest // row_major)
            offset += highest[-1] * in_memory
            rest %= row_major
        strides = []
        for size, stride in zip(view.shape, view.strides, strict=True):
            found = 0 if size == 1 or stride == 0 else self._walk(size, stride, highest)
            if found is None:
                return None
            strides.append(found)
        inside = all(at < size for at, (size, _, _) in zip(highest, self.axes, strict=True))
        return View(view.shape, tuple(strides), offset) if inside else None

    def _walk(self, count: int, stride: int, highest: list[int]) -> int | None:
        """How far apart in memory `count` elements are that are `stride` apart; adds how far they go to `highest`."""
        axis = next((i for i, a in enumerate(self.axes) if 0 < a[1] <= stride), None)
        if axis is None or stride % self.axes[axis][1]:
            return None
        step = stride // self.axes[axis][1]  # along the axis
        found = step * self.axes[axis][2]
        while True:
            size, _, in_memory = self.axes[axis]
            fit = size // step
            if count <= fit:
                highest[axis] += step * (count - 1)
                return found
            if size % step or count % fit or axis == 0 or self.axes[axis - 1][2] != size * in_memory:
                return None
            highest[axis] += step * (fit - 1)
            axis, step, count = axis - 1, 1, count // fit
