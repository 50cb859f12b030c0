"""Where every value of a graph lives while it runs: in state, in a result, or at an offset of one arena.

A value is written once and free after its last reader. It stands in the memory of the state or result that it becomes
where nothing reads the old contents later; a result takes the place of an operand that ends there, where the kernel
reads each element or row before it writes the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import views
from ..program import Check, Copy, Graph, Group, Node, Place, Plan, Read, Step, Value, Write
from .layout import is_copy, layouts, read_in
from .lives import END, highest_number, is_collective, is_elementwise, is_wait, nbytes, values_read

ALIGNMENT = 128  # bytes


def plan(graph: Graph, guard: int = 0) -> Plan:
    """guard: bytes to keep free behind each value, of which then no two are in one place one after the other."""
    return _Planner(graph, guard).plan()


class _Planner:
    def __init__(self, graph: Graph, guard: int):
        self.graph = graph
        self.guard = guard
        self.places: dict[Value, Place] = {}
        self.layouts: dict[Value, views.View] = {}
        self.parts: dict[Value, tuple[Value, int]] = {}  # in which value, and how many bytes from its start
        self.holders: dict[Value, tuple[Value, int]] = {}  # the same of the value that is no part itself
        self.shares: dict[Value, Value] = {}  # the value whose place another one takes over
        self.names: dict[Value, list[Value]] = {}  # by its root, what is in one place while any of it is read
        self.made: dict[Value, int] = {}
        self.last: dict[Value, int] = {}
        self.steps: list[Any] = []
        self.unchecked = -1

    def plan(self) -> Plan:
        self._given()
        self.layouts = layouts(self.graph)
        self._place_parts()  # now it is known how each value lies: layouts, parts
        self._order()  # and what runs, and who lives how long: steps, made, last
        self._name_copies()
        self._hold_collectives()
        given = self._find_checks()
        self._keep()
        written = [self.made[v] for v, place in self.places.items() if place.buffer == "state" and v in self.made]
        checks = [check for check in given if check.step >= min(written, default=END)]
        self._in_place()  # and what shares memory: `places` has what isn't in the arena, `shares` the others
        size, lives = self._arena()
        for value in self.shares:
            self.places[value] = self.places[self._root(value)]
        for value, (whole, offset) in self.holders.items():
            place = self.places[whole]
            self.places[value] = place._replace(offset=place.offset + offset)
        return Plan(self.steps, self.places, self.layouts, frozenset(self.parts), size, lives, checks, self.guard)

    def _given(self) -> None:
        graph = self.graph
        for i, s in enumerate(graph.states):
            self.places[s.before] = Place("state", i)
        for i, (value, _) in enumerate(graph.constants):
            self.places[value] = Place("constant", i)
        for i, (_, *values) in enumerate(graph.draws):
            for j, value in enumerate(values):
                self.places[value] = Place("draw", 2 * i + j)
        for i, (_, value) in enumerate(graph.floats):
            self.places[value] = Place("float", i)

    def _place_parts(self) -> None:
        """What is only joined with others, or padded with zeros, is made within them."""
        read: dict[Value, int] = {}
        makers = [n.last if isinstance(n, Group) else n for n in self.graph.nodes if not isinstance(n, Write)]
        shapes = {v: s for n in makers for v, s in zip(n.outputs, n.call.out_shapes)}
        for node in self.graph.nodes:
            for x in _reads_of(node):
                read[x.value] = read.get(x.value, 0) + 1
        kept = {r.value for r in self.graph.results} | {s.after for s in self.graph.states}
        for node in reversed(self.graph.nodes):  # what holds others first: where it lies itself is known then
            for x, out, whole, part in self._parts_of(node):
                value = x.value
                dense = views.is_contiguous(x.view) and views.size(x.view.shape) == views.size(value.shape) > 0
                alone = value in shapes and value not in kept and read[value] == 1 and value not in self.layouts
                if dense and alone and value not in self.parts and part.strides == whole.strides:
                    layout = views.reshape(part._replace(offset=0), value.shape)
                    if layout is not None and views.reshape(layout, shapes[value]) is not None:
                        self.layouts[value] = layout
                        first = part.offset * value.dtype.itemsize
                        self.parts[value] = out, first
                        holder, start = self.holders.get(out, (out, 0))
                        self.holders[value] = holder, start + first

    def _parts_of(self, node: Step) -> list[tuple[Read, Value, views.View, views.View]]:
        """Returns what a node only puts into its output: each operand, the output, its view and the part of it."""
        if not isinstance(node, Node) or node.call.primitive.parts is None:
            return []
        (out,), call = node.outputs, node.call
        whole = self.layouts.get(out, views.contiguous(out.shape))
        parts = call.primitive.parts(whole, call.in_shapes, call.params)
        return [(x, out, whole, part) for x, part in zip(node.inputs, parts, strict=True)]

    def _turned(self, node: Node | Group) -> Node | Group:
        """The node, reading each value as it lies."""
        if isinstance(node, Group):
            return replace(node, first=self._turned(node.first), last=self._turned(node.last))  # type: ignore[arg-type]

        def turned(x: Any) -> Any:
            if not isinstance(x, Read) or x.value not in self.layouts:
                return x
            if x.value in self.parts:
                return Read(x.value, views.contiguous(x.view.shape))  # by what holds it alone, and it needs no reading
            return Read(x.value, read_in(self.layouts[x.value], x.view))

        return replace(node, inputs=tuple(map(turned, node.inputs)))

    def _order(self) -> None:
        """Nodes, a write as copies, and at the end what no node can write in place."""
        written = {s.before for s in self.graph.states if s.after is not s.before}
        count = highest_number(self.graph)
        renamed: dict[Value, Value] = {}

        def fresh(like: Value) -> Value:
            nonlocal count
            count += 1
            return Value(count, like.shape, like.dtype, like.device)

        for s in self.graph.states:  # the new contents are the old ones of other state, which is written too
            if s.after is not s.before and s.after in written and s.after not in renamed:
                renamed[s.after] = fresh(s.after)
                self.steps.append(Copy(_whole(s.after), renamed[s.after]))
        for node in self.graph.nodes:
            if isinstance(node, Write):
                self.steps.append(Copy(_whole(node.old), node.output))
                self.steps.append(Copy(Read(node.new, views.contiguous(node.view.shape)), node.output, node.view))
            else:
                self.steps.append(self._turned(node))
        self.ends: list[tuple[Value, Place]] = []
        for i, s in enumerate(self.graph.states):
            if s.after is not s.before:
                self.ends.append((renamed.get(s.after, s.after), Place("state", i)))
        for i, read in enumerate(self.graph.results):
            target = Value(count := count + 1, read.view.shape, read.value.dtype, read.value.device)
            self.ends.append((target, Place("result", i)))
            self.places[target] = Place("result", i)
            layout = self.layouts.get(read.value)
            view = read.view if layout is None else read_in(layout, read.view)
            self.steps.append(Copy(Read(renamed.get(read.value, read.value), view), target))
        for number, step in enumerate(self.steps):
            for value in reads(step):
                self.last[value] = number
            for value in writes(step):
                self.made.setdefault(value, number)
                self.last[value] = max(self.last.get(value, number), number)
        for value, (whole, _) in reversed(self.parts.items()):
            self.made[whole] = min(self.made[whole], self.made[value])

    def _find_checks(self) -> list[Check]:
        """The indices that come with a call, at their first use; `unchecked` is the step that uses the last others.

        Where a program ends at a bad index, nothing of state is written up to that step, and these are checked before
        all steps, so that a call that raises leaves state as it was.
        """
        found: list[Check] = []
        known: set[tuple[Read, Any]] = set()
        for number, step in enumerate(self.steps):
            if not isinstance(step, Node) or step.call.primitive.bounds is None:
                continue
            bounds = step.call.primitive.bounds(step.call.in_shapes, step.call.params)
            read = step.inputs[bounds.operand]
            key = read, bounds._replace(operand=0)
            if not step.call.device.backend.stops or key in known:
                continue
            known.add(key)
            if read.value in self.places:
                found.append(Check(number, read, bounds))
            else:
                self.unchecked = number
        return found

    def _name_copies(self) -> None:
        """A copy of what lies as the copy does is another name for it, however long both are read."""
        for step in self.steps:
            if isinstance(step, Node) and is_copy(step):
                (read,), (value,) = step.inputs, step.outputs
                whole = read.view == views.contiguous(value.shape) and nbytes(read.value) == nbytes(value)
                if whole and read.value in self.made and self.parts.keys().isdisjoint({read.value, value}):
                    self._name(value, read.value)

    def _hold_collectives(self) -> None:
        """What a collective reads and makes is held until it is waited for; a sum is made in the place of its operand.

        That is, where nothing else reads the operand.
        """
        begun = {n.call.params.get("ticket"): (i, n) for i, n in enumerate(self.steps) if is_collective(n)}
        kept = {self._root(v) for v in [*(s.after for s in self.graph.states), *(r.value for r in self.graph.results)]}
        for end, step in enumerate(self.steps):
            if not is_wait(step):
                continue
            number, node = begun[step.call.params["ticket"]]
            (read,), (result,), (value,) = node.inputs, node.outputs, step.outputs
            x = self._root(read.value)
            alone = x in self.made and self.last[x] == number and x not in kept and nbytes(x) == nbytes(result)
            if alone and node.call.primitive.overwrites == 0:
                self._name(result, x)
            self._read_until(x, end)
            if value not in self.parts:
                self._name(value, result)

    def _name(self, value: Value, old: Value) -> None:
        """Makes a value another name for what `old` names."""
        root, names = self._root(old), self.names.pop(value, [value])
        self.shares[value] = root
        self.names.setdefault(root, [root]).extend(names)
        self._read_until(root, self.last[value])
        self.last.update(dict.fromkeys(names, self.last[root]))

    def _read_until(self, value: Value, number: int) -> None:
        """What a value names is read until this step, or later, under all its names."""
        root = self._root(value)
        if number > self.last[root]:
            self.last.update(dict.fromkeys(self.names.get(root, [root]), number))

    def _keep(self) -> None:
        """Values that stand from the beginning in the memory that they are for."""
        kept = {self._root(v) for v, _ in self.ends}  # which are read once more at the end
        for value, place in self.ends:
            if place.buffer != "state":
                continue
            state, root = self.graph.states[place.number], self._root(value)
            if root not in self.places and self._may_overwrite(state.before, root):
                self.places[root] = place
                while (old := self._rewritten(root, kept)) is not None and self._may_overwrite(state.before, old):
                    self.places[root := old] = place
            else:
                target = Value(-1, state.before.shape, value.dtype, value.device)
                self.places[target] = place
                self.steps.append(Copy(Read(value, views.contiguous(state.before.shape)), target))
                self._read_until(value, len(self.steps) - 1)
        for number, step in enumerate(self.steps):
            if isinstance(step, Copy) and self.places.get(step.target, Place("")).buffer == "result":
                value = self._root(step.read.value)
                whole = views.size(step.read.view.shape) == views.size(value.shape)
                if whole and views.is_contiguous(step.read.view) and value in self.made and value not in self.places:
                    self.places[value] = self.places[step.target]
                    self.steps[number] = None
        # The numbers of steps stay, so that lives remain right.

    def _rewritten(self, value: Value, kept: set[Value]) -> Value | None:
        """What a value may be made over, which ends there and has no place yet."""
        number = self.made[value]
        step, layout = self.steps[number], self.layouts.get(value, views.contiguous(value.shape))
        for read in reads(step):
            old = self._root(read)
            if (
                old in self.made and old not in self.places and old not in self.parts and old not in kept
                and self.last[old] == number and nbytes(old) == nbytes(value)
                and self._reads_where_it_writes(step, old, value, layout)
            ):  # fmt: skip
                return old
        return None

    def _may_overwrite(self, old: Value, new: Value) -> bool:
        """Whether `new` can be made where `old` stands: nothing reads it afterwards, nor at another position."""
        made, last = self.made.get(new), self.last.get(old, -1)
        if made is None or made <= self.unchecked or views.size(new.shape) != views.size(old.shape):
            return False
        layout = self.layouts.get(new, views.contiguous(new.shape))
        return last < made or (last == made and self._reads_where_it_writes(self.steps[made], old, new, layout))

    def _in_place(self) -> None:
        """Results take the place of operands that end there, where each element is read only to make the one there."""
        for number, step in enumerate(self.steps):
            taken: set[Value] = set()
            for value in writes(step):
                whole, offset = self.holders.get(value, (value, 0))
                if whole in self.places or whole in self.shares or self.made[whole] != number:
                    continue
                layout = self.layouts.get(value, views.contiguous(value.shape))
                layout = layout._replace(offset=offset // value.dtype.itemsize)
                for old in dict.fromkeys(reads(step)):
                    root = self._root(old)
                    if (
                        old in self.made and root not in self.places and root not in taken and old not in self.parts
                        and self.last[old] == number and nbytes(old) == nbytes(whole)
                        and self._reads_where_it_writes(step, old, value, layout)
                    ):  # fmt: skip
                        self.shares[whole] = old
                        taken.add(root)
                        break

    def _reads_where_it_writes(self, step: Any, old: Value, new: Value, layout: views.View) -> bool:
        """Whether a step reads each element of `old` only to make the one of `new` that would stand in the same place.

        layout: where the elements of `new` would be, counted from the start of `old`.
        """
        if isinstance(step, Copy):
            return step.part is None and views.is_contiguous(step.read.view) and step.read.view.offset == 0
        first, later = (step.first, step.last.inputs) if isinstance(step, Group) else (step, ())
        if new not in first.outputs:
            return False
        as_it_writes = first.inputs
        if not is_elementwise(first):
            number = first.call.primitive.overwrites
            if number is None or new is not first.outputs[0]:
                return False
            as_it_writes, later = first.inputs[number : number + 1], first.inputs[:number] + first.inputs[number + 1 :]
        root, shown = self._root(old), views.reshape(layout, first.call.out_shapes[0])

        def is_of_old(x: Any) -> bool:
            return isinstance(x, Read) and self._root(x.value) is root

        if shown is None or any(map(is_of_old, later)):
            return False
        return all(_is_like(x.view, shown) for x in as_it_writes if is_of_old(x))

    def _root(self, value: Value) -> Value:
        root = value
        while root in self.shares:
            root = self.shares[root]
        while value is not root:  # so that a chain of thousands is gone through once
            self.shares[value], value = root, self.shares[value]
        return root

    def _arena(self) -> tuple[int, dict[Value, tuple[int, int]]]:
        """Offsets by first fit, the largest first: below each value, those that live at the same time."""
        lives: dict[Value, tuple[int, int]] = {}
        for value, made in self.made.items():
            root = self._root(value)
            if root not in self.places and value not in self.parts:
                first, last = lives.get(root, (made, made))
                lives[root] = min(first, made), max(last, self.last[value])
        placed = np.empty((4, len(lives)), np.int64)  # where each begins and ends, and its life; in the order of where
        size = 0
        for count, value in enumerate(sorted(lives, key=lambda v: (-nbytes(v), v.number))):
            first, last = (0, len(self.steps)) if self.guard else lives[value]
            need = -(-nbytes(value) // ALIGNMENT) * ALIGNMENT + self.guard
            begins, ends, made, read = placed[:, :count]
            beside = np.flatnonzero((made <= last) & (read >= first))
            gaps = np.zeros(len(beside) + 1, np.int64)  # where each begins; the last one has no end
            np.maximum.accumulate(ends[beside], out=gaps[1:])
            fits = gaps + need <= np.append(begins[beside], np.iinfo(np.int64).max)
            offset = int(gaps[fits.argmax()])
            self.places[value] = Place("arena", 0, offset)
            at = begins.searchsorted(offset)
            placed[:, at + 1 : count + 1] = placed[:, at:count]
            placed[:, at] = offset, offset + need, first, last
            size = max(size, offset + need)
        return size, lives


def reads(step: Any) -> list[Value]:
    """The values that a step reads; a copy into a part reads the rest."""
    if step is None:
        return []
    if isinstance(step, Copy):
        return [step.read.value, *([step.target] if step.part else [])]
    return values_read(step)


def writes(step: Any) -> Sequence[Value]:
    if step is None:
        return ()
    return (step.target,) if isinstance(step, Copy) else step.outputs


def _reads_of(node: Step) -> list[Read]:
    if isinstance(node, Write):
        return [_whole(node.old), _whole(node.new)]
    return [x for x in node.inputs if isinstance(x, Read)]


def _whole(value: Value) -> Read:
    return Read(value, views.contiguous(value.shape))


def _is_like(view: views.View, layout: views.View) -> bool:
    """Whether two views show the same elements in the same places."""
    pairs = zip(view.shape, view.strides, layout.strides, strict=False)
    same = view.shape == layout.shape and view.offset == layout.offset
    return same and all(n == 1 or a == b for n, a, b in pairs)
