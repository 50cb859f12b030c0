"""Aliases: which values have their bytes in common, decided before any offset is. Floor 2.

Every value has one Location: bytes of a root, seen through a view. Values of one root are aliases, whatever makes them
so: a part of a concat, a copy with unchanged layout, a result that takes the place of a dying operand, the new contents
of state in the memory of the old ones. Only roots need memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ... import views
from ...program import Copy, FusedPair, Location, Node, PlanStep, Read, Value
from ...views import View, contiguous
from ..uses import is_collective, is_elementwise, is_wait, nbytes, values_read
from .layout import in_order_of, is_copy, read_in, row_major

Layouts = Mapping[Value, View]


def alias(steps: Sequence[PlanStep], layouts: Layouts, fixed: Mapping[Value, int]) -> dict[Value, Location]:
    """Returns the location of every value.

    layouts: of the values that are not row-major. fixed: the values whose memory is there before the program runs
    (state, constants, numbers, results), each with the first step whose result may be made in it.

    Example in float32, where state s is (3, 3) and its old contents are %0:

        step                          location         because
        %1: [2, 3] = matmul(%8, %9)   %0, byte 0       it is rows 0 and 1 of %3
        %2: [1, 3] = exp(%7)          %0, byte 24      it is row 2 of %3, and 2 * 3 * 4 = 24
        %3: [3, 3] = concat(%1, %2)   %0, byte 0       it dies at the next step, which reads each element where it
        %4: [3, 3] = add(%3, %6)      %0, byte 0         writes one; that is what s becomes, and no step from the matmul
        copy of %4 into s                                on reads the old contents

    So neither the concat nor the copy has anything to do, and the arena holds none of the four.
    """
    found = _Aliases(steps, layouts, fixed)
    found.join_parts()
    found.join_copies()
    found.join_collectives()
    found.join_in_place()
    return {value: Location(*found.find(value), found.layout(value)) for value in (*fixed, *found.made)}


def reads(step: PlanStep) -> list[Value]:
    """Returns the values that a step needs; a copy into a part of a value needs the rest of it."""
    if isinstance(step, Copy):
        return [step.read.value, *([step.target] if step.part else [])]
    return values_read(step)


def writes(step: PlanStep) -> Sequence[Value]:
    return (step.target,) if isinstance(step, Copy) else step.outputs


def operands(step: PlanStep) -> list[Read]:
    return [step.read] if isinstance(step, Copy) else [x for x in step.inputs if isinstance(x, Read)]


def spans(steps: Sequence[PlanStep]) -> dict[Value, tuple[int, int]]:
    """Returns the first and the last step that reads or writes each value.

    Example: step 0 makes %1, steps 2 and 5 read it: (0, 5).
    """
    found: dict[Value, tuple[int, int]] = {}
    for number, step in enumerate(steps):
        for value in (*reads(step), *writes(step)):
            first, _ = found.get(value, (number, number))
            found[value] = first, number
    return found


def collectives(steps: Sequence[PlanStep]) -> Iterator[tuple[int, int]]:
    """Yields the steps at which each collective begins and at which it is waited for.

    Until then it may read its operand and write its result, so both are needed.
    """
    begun = {}
    for number, step in enumerate(steps):
        if is_collective(step):
            begun[step.call.params.get("ticket")] = number
        elif is_wait(step):
            yield begun[step.call.params["ticket"]], number


def parts_of(step: PlanStep, whole: View | None = None) -> list[tuple[Read, View]]:
    """Returns the operands that a step only puts into its output, and the part of a view of that which each becomes.

    Example: (2, 3) and (1, 3), joined along axis 0, become (2, 3) by (3, 1), and (1, 3) by (3, 1) from element 6 on.
    """
    if not isinstance(step, Node) or step.call.primitive.parts is None:
        return []
    (out,) = step.outputs
    parts = step.call.primitive.parts(whole or contiguous(out.shape), step.call.in_shapes, step.call.params)
    return list(zip(step.inputs, parts, strict=True))


class _Aliases:
    """Values in a union-find: `_within` leads from each that is no root to another one, some bytes from its start.

    lives: of each root, the first and the last step that needs it or an alias of it.
    """

    def __init__(self, steps: Sequence[PlanStep], layouts: Layouts, fixed: Mapping[Value, int]):
        self.steps, self.fixed, self.layouts = steps, fixed, dict(layouts)
        self._within: dict[Value, tuple[Value, int]] = {}
        self._aliases: dict[Value, list[Value]] = {}  # of each root that has any, itself among them
        self.lives = spans(steps)
        self.made: dict[Value, int] = {}
        self._shapes: dict[Value, views.Shape] = {}  # in which their makers see what can be made somewhere else
        self._count: Counter[Value] = Counter()  # of times that each value is read
        self._readers: dict[Value, list[tuple[int, Read]]] = {value: [] for value in fixed}
        for number, step in enumerate(steps):
            self._count.update(reads(step))
            for x in operands(step):
                if x.value in fixed:
                    self._readers[x.value].append((number, x))
            for value in writes(step):
                self.made.setdefault(value, number)
            if not isinstance(step, Copy):
                maker = step.last if isinstance(step, FusedPair) else step
                self._shapes.update(zip(maker.outputs, maker.call.out_shapes, strict=True))

    def layout(self, value: Value) -> View:
        return self.layouts.get(value) or row_major(value.shape)

    def find(self, value: Value) -> tuple[Value, int]:
        """Returns the root of a value, and at which of the root's bytes it begins.

        Example: %1 is 8 bytes into %2, and %2 is 24 bytes into %3, which is a root: %3 and 32.
        """
        if value not in self._within:
            return value, 0
        path, offset = [], 0
        while value in self._within:
            path.append(value)
            value, _ = self._within[value]
        for other in reversed(path):  # each now leads to the root at once, so that long chains are walked once
            within, start = self._within[other]
            offset = start + (self._within[within][1] if within is not value else 0)
            self._within[other] = value, offset
        return value, offset

    def join(self, root: Value, value: Value, offset: int = 0) -> None:
        """Makes a root, and all its aliases, aliases of the memory `offset` bytes from the start of a value.

        The lifetimes become one. Example: %1 is needed at steps 0 to 3, %3 at 3 to 7: joined, %3 is needed at 0 to 7.
        """
        other, start = self.find(value)
        self._within[root] = other, start + offset
        self._aliases.setdefault(other, [other]).extend(self._aliases.pop(root, [root]))
        (first, last), (since, until) = self.lives[root], self.lives.get(other, self.lives[root])
        self.lives[other] = min(first, since), max(last, until)

    def _is_free(self, value: Value) -> bool:
        """Returns whether a value is made by a step and has no memory but its own."""
        return value in self.made and value not in self._within and value not in self.fixed

    def _read(self, x: Read) -> View:
        """Returns the view of memory, from where the value begins, that an operand is."""
        layout = self.layouts.get(x.value)
        return x.view if layout is None else read_in(layout, x.view)

    # Parts

    def join_parts(self) -> None:
        """Operands that a concat or a pad alone reads are made in their places in its output.

        Example: of concat([a, b]) along axis 1, a (4, 2) and b (4, 3) in float32, b is 8 bytes from the start of the
        output and has strides (5, 1). Where a is the transpose of a product p (2, 4), p gets strides (1, 5).
        """
        for step in reversed(self.steps):  # what holds others first, since its own strides are part of theirs
            if isinstance(step, Copy) or step.call.primitive.parts is None:
                continue
            (out,) = writes(step)
            whole = self.layout(out)
            for x, part in parts_of(step, whole):
                if part.strides == whole.strides and self._count[x.value] == 1 and self._place(x, part):
                    self.join(x.value, out, part.offset * x.value.dtype.itemsize)

    def _place(self, x: Read, target: View) -> bool:
        """Gives a value the layout in which what is read of it is `target`, if it is all read and can be made so."""
        value = x.value
        if not self._is_free(value) or value not in self._shapes or not self._is_dense(x):
            return False
        layout = in_order_of(value.shape, x.view, target.strides)
        if layout is None or views.reshape(layout, self._shapes[value]) is None:
            return False
        self.layouts[value] = layout
        return True

    def _is_dense(self, x: Read) -> bool:
        """Returns whether an operand is all of a value, in the order in which it is in memory."""
        view = self._read(x)
        return views.is_contiguous(view) and views.size(view.shape) == views.size(x.value.shape) > 0

    # Copies

    def join_copies(self) -> None:
        """A copy with unchanged layout is an alias: the root's lifetime ends at the last reader of either.

        A copy that has a place in a larger value takes what it copies there.

        Example: the gradient (768, 3072) of a weight (3072, 768) is the transpose of a product p (768, 3072) that has
        strides (1, 768), so that its copy to row-major has the order of p. Where that copy is part of a segment, p is.
        """
        for step in reversed(self.steps):
            if not is_copy(step):
                continue
            (x,), (value,) = operands(step), writes(step)
            root, _ = self.find(x.value)
            if root in self.fixed or not self._is_dense(x):  # the old contents of state may be overwritten
                continue
            if self._is_free(value):
                unchanged = self._read(x) == row_major(value.shape) and nbytes(root) <= 2 * nbytes(value)
                if unchanged and value not in self.layouts and nbytes(x.value) == nbytes(value):
                    self.join(value, x.value)
            elif self._count[x.value] == 1:
                target = views.reshape(self.layout(value), x.view.shape)
                if target is not None and self._place(x, target):
                    self.join(x.value, value)

    # Collectives

    def join_collectives(self) -> None:
        """A sum over ranks is made in place of its operand if nothing else needs that, and waiting is an alias."""
        for begin, end in list(collectives(self.steps)):
            node: Any = self.steps[begin]
            (x,), (result,), (value,) = operands(node), writes(node), writes(self.steps[end])
            root, _ = self.find(x.value)
            if root in self.fixed:
                self._readers[root].append((end, x))
                self._readers[root].sort(key=lambda reader: reader[0])
            dies = self._is_free(root) and self.lives[root][1] == begin and nbytes(root) == nbytes(result)
            self.lives[root] = self.lives[root][0], max(self.lives[root][1], end)
            if dies and node.call.primitive.overwrites == 0:
                self.join(result, root)
            if self._is_free(value):
                self.join(value, result)

    # In place

    def join_in_place(self) -> None:
        """A result takes the place of an operand that dies where each element is read only to make the one there.

        Decided backward, from where a result must be to what it is made of: if %4 = %3 + d is what state becomes, and
        %3 dies there, %3 is made in the state's memory as well, and so on while nothing needs the old contents.
        """
        for number, step in reversed(list(enumerate(self.steps))):
            dying = dict.fromkeys(self.find(value)[0] for value in reads(step) if self._dies(value, number))
            for new in writes(step):
                if dying and self.made[new] == number:
                    old = next((root for root in dying if self._takes_place(number, new, root)), new)
                    dying.pop(old, None)

    def _dies(self, value: Value, number: int) -> bool:
        """Returns whether no step behind this one needs the memory of a value, which is all of its root."""
        if value not in self.made or self.lives[value][1] != number:
            return False
        root, _ = self.find(value)
        return self._is_free(root) and self.lives[root][1] == number and nbytes(root) == nbytes(value)

    def _takes_place(self, number: int, new: Value, dying: Value) -> bool:
        """Joins a root that dies to a result, if that can be made over it."""
        root, start = self.find(new)
        size, at = nbytes(dying), start
        if dying is root:
            return False
        if nbytes(new) != size:  # the result is one of several parts, of which none is made yet
            is_there, at = nbytes(root) == size and self.lives[root][0] == number and root not in self.fixed, 0
        else:
            is_there = root not in self.fixed or self._may_be_made_in(root, dying, at)
        if not is_there or not self._is_made_where_read(number, new, dying, at - start):
            return False
        self.join(dying, root, at)
        return True

    def _may_be_made_in(self, fixed: Value, root: Value, at: int) -> bool:
        """Returns whether all aliases of a root can be made in fixed memory, from byte `at` on.

        What the memory holds before must have been read by then, and the call's indices have been checked.

        Example: the memory of g (8,) becomes concat([a, b]), a = g[:4] + x and b = g[4:] + y. Step 0 makes a, step 1
        makes b and reads g[4:], which step 0 has not overwritten.
        """
        readers = self._readers[fixed]
        for value in self._aliases.get(root, [root]):
            made, size = self.made[value], value.dtype.itemsize
            if made < self.fixed[fixed]:
                return False
            if not readers or readers[-1][0] < made:
                continue
            start = at + self.find(value)[1]
            low, high = views.extent(self.layout(value))
            low, high = start + low * size, start + high * size
            for number, x in reversed(readers):
                if number < made:
                    break
                first, end = views.extent(x.view)
                is_apart = end * x.value.dtype.itemsize <= low or high <= first * x.value.dtype.itemsize
                if not is_apart and (number > made or not self._is_made_where_read(number, value, fixed, -start)):
                    return False
        return True

    def _is_made_where_read(self, number: int, new: Value, old: Value, shift: int) -> bool:
        """Returns whether a step reads a root only to make, of each element, the one of `new` that is in its place.

        shift: of the start of the root from the start of `new`, in bytes.

        Example: y = x + x[:, :1] can't be made over x, since x[:, :1] is read for every column.
        """
        step = self.steps[number]
        others: Sequence[Any] = ()
        if isinstance(step, Copy):
            inputs, shape = (step.read,), step.read.view.shape
            if step.part is not None:
                return False
        else:
            node = step.first if isinstance(step, FusedPair) else step
            inputs, shape = node.inputs, node.call.out_shapes[0]
            if new not in node.outputs:
                return False
            if not is_elementwise(node):
                only = node.call.primitive.overwrites
                if only is None or new is not node.outputs[0]:
                    return False
                inputs, others = node.inputs[only : only + 1], node.inputs[:only] + node.inputs[only + 1 :]
            if isinstance(step, FusedPair):
                others = (*others, *step.last.inputs)
        written = views.reshape(self.layout(new), shape)
        if written is None or (others and any(isinstance(x, Read) and self.find(x.value)[0] is old for x in others)):
            return False
        for x in inputs:
            root, start = self.find(x.value) if isinstance(x, Read) else (None, 0)
            if root is old:
                view, size = self._read(x), x.value.dtype.itemsize
                is_there = shift + start + view.offset * size == 0
                if not is_there or size != new.dtype.itemsize or not is_like(view, written):
                    return False
        return True


def is_like(a: View, b: View) -> bool:
    """Returns whether two views that begin in the same place show each element in the same place.

    Example: (1, 3) by (3, 1) and (1, 3) by (99, 1) do, since no second row is ever reached.
    """
    if a.shape != b.shape or a.strides == b.strides:
        return a.shape == b.shape
    return all(n == 1 or x == y for n, x, y in zip(a.shape, a.strides, b.strides, strict=True))
