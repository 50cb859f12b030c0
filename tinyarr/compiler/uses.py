"""Def-use chains and lifetimes: which node makes each value, which read it, and until when it is needed. Floor 2."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeGuard

from .. import views
from ..ops.collective import Collective, wait
from ..ops.elementwise_primitive import Pointwise
from ..ops.primitive import Primitive
from ..ops.rowwise import Rowwise
from ..program import Graph, Node, Read, Step, Value, Write

END = 1 << 60  # after every position
SMALL = 4096  # bytes that it doesn't matter to hold longer


def nbytes(value: Value) -> int:
    return views.size(value.shape) * value.dtype.itemsize


def is_call(node: Any, primitive: Primitive) -> TypeGuard[Node]:
    """Returns whether a step is a call of this primitive, and of no other one of its name."""
    return isinstance(node, Node) and node.call.primitive is primitive


def is_elementwise(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(node.call.primitive, Pointwise)


def reads_runs(node: Any) -> bool:
    """True where a node reads its first operand run by run; of a row expression, that must be of all rows."""
    if not isinstance(node, Node) or node.call.primitive.reads != "runs":
        return False
    primitive, call = node.call.primitive, node.call
    return not isinstance(primitive, Rowwise) or call.in_shapes[0] == primitive.shape(call.in_shapes, call.params)


def is_collective(node: Any) -> TypeGuard[Node]:
    return isinstance(node, Node) and isinstance(node.call.primitive, Collective)


def is_wait(node: Any) -> TypeGuard[Node]:
    return is_call(node, wait)


def made_by(node: Step) -> Sequence[Value]:
    return (node.output,) if isinstance(node, Write) else node.outputs


def values_read(node: Step) -> list[Value]:
    if isinstance(node, Write):
        return [node.old, node.new]
    return [x.value for x in node.inputs if isinstance(x, Read)]


def reading(node: Any, names: dict[Value, Value]) -> Any:
    """Returns the node with the values that it reads renamed.

    Example: with {%7: %5}, %8 = max(%7) is %8 = max(%5).
    """
    if names.keys().isdisjoint(values_read(node)):
        return node
    if isinstance(node, Write):
        return replace(node, old=names.get(node.old, node.old), new=names.get(node.new, node.new))
    return replace(node, inputs=tuple(renamed(x, names) for x in node.inputs))


def renamed(x: Any, names: dict[Value, Value]) -> Any:
    return Read(names.get(x.value, x.value), x.view) if isinstance(x, Read) else x


def highest_number(graph: Graph) -> int:
    """Returns the highest number of a value: a pass counts its new values from there."""
    given = [s.before for s in graph.states] + [v for v, _ in graph.constants]
    given += [v for _, *values in graph.draws for v in values] + [v for _, v in graph.numbers]
    return max((v.number for v in [*given, *(v for node in graph.nodes for v in made_by(node))]), default=-1)


class Uses:
    """Def-use chains of a graph: by value the position of its maker, and those of its readers. kept: what it ends with.

    Positions of readers ascend, each once: a weight may have thousands, of which passes ask for the first or last.

    Example: in %3 = matmul(%0, %1), %4 = subtract(%3, %2), %5 = multiply(%4, %4), returned, the maker of %4 is 1, its
    readers are [2], and it ends at 2. %5 is kept, and ends at END, as do the inputs %0 to %2.
    """

    def __init__(self, graph: Graph):
        self.kept = {read.value for read in graph.results} | {s.after for s in graph.states}
        self.maker: dict[Value, int] = {}
        self.readers: dict[Value, list[int]] = {}
        for position, node in enumerate(graph.nodes):
            for value in values_read(node):
                readers = self.readers.setdefault(value, [])
                if readers[-1:] != [position]:
                    readers.append(position)
            for value in made_by(node):
                self.maker[value] = position
        self._after = {s.before: s.after for s in graph.states if s.after is not s.before}
        self._outside = {s.before for s in graph.states} | {v for v, _ in graph.constants}

    def ends(self, value: Value) -> int:
        """Returns the position of a value's last reader; END for what outlives the program or was there before it."""
        if value in self.kept or value in self._outside:
            return END
        readers = self.readers.get(value)
        return readers[-1] if readers else self.maker.get(value, -1)

    def is_read_between(self, first: int, last: int, value: Value) -> bool:
        """Returns whether a node reads a value that is behind one position and before another one."""
        readers = self.readers.get(value, [])
        return bisect_right(readers, first) < bisect_left(readers, last)

    def overwritten(self, value: Value) -> int:
        """Returns where the state whose old contents a value is gets its new ones: a reader must not move behind that.

        Example: the old weight %1 is overwritten at 6, where node 6 makes the new one, %17; what is no state never is.
        """
        after = self._after.get(value)
        return END if after is None else self.maker.get(after, END)

    def move(self, old: int, new: int, read: Iterable[Value], made: Iterable[Value]) -> None:
        """Moves the reads and definitions of a node to another position, into whose node it was merged."""
        for value in read:
            readers = self.readers[value]
            if self.is_read_between(old - 1, old + 1, value):
                readers.remove(old)
            if not self.is_read_between(new - 1, new + 1, value):
                insort(readers, new)
        for value in made:
            self.maker[value] = new
