"""Simplification: joined writes, common subexpressions, dead code. Floor 2.

Collectives stay as they are: they may differ or be needed on another rank, and all ranks run them together.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import replace
from typing import Any

from ... import views
from ...ops.primitive import Call
from ...ops.shape import _concat
from ...program import Graph, Node, Read, Step, Value, Write
from ..uses import is_collective, made_by, reading, renamed, values_read


def join_writes(graph: Graph) -> Graph:
    """Writes that together replace all of a value become one join of what they write, which can be made in its place.

    What is read meanwhile is then read where it came from: the value before the writes, or what one of them wrote.

    Example: g (8,) is the gradients of two parameters, to each of which a batch adds: %1 = g[:4] + a is written into g,
    which gives %2, and %3 = %2[4:] + b into %2, which gives %4. Then %3 = g[4:] + b, and %4 = concat(%1, %3).
    """
    nodes: list[Any] = []
    chains: dict[Value, _Chain] = {}
    for position, node in enumerate(graph.nodes):
        nodes.append(node)
        for number, x in enumerate((node.new,) if isinstance(node, Write) else node.inputs):
            value = x.value if isinstance(x, Read) else x
            if value in chains and not (isinstance(x, Read) and chains[value].read(position, number, x)):
                chains.pop(value).finish(nodes)
        if isinstance(node, Write):
            chain = chains.pop(node.old, None) or _Chain(node.old)
            if not chain.takes(node):
                chain.finish(nodes)
                chain = _Chain(node.old)
            if chain.takes(node):
                chain.write(position, node)
                chains[node.output] = chain
    for chain in chains.values():
        chain.finish(nodes)
    return replace(graph, nodes=nodes)


class _Chain:
    """Writes into a value, each into the result of the one before. No two overlap, unless one replaces another.

    starts: where each part begins that they write, in ascending order. length: of all parts together. position: of the
    last write. reads: what is read meanwhile, by the position of the node and the number of its operand, as it can be
    read without the writes.
    """

    def __init__(self, before: Value):
        self.before = before
        self.starts: list[int] = []
        self.written: dict[int, Value] = {}
        self.length = 0
        self.position = -1
        self.reads: list[tuple[int, int, Read]] = []

    def _parts(self, low: int, high: int) -> list[tuple[int, int]]:
        """Returns where the parts begin and end that overlap elements low to high."""
        first = max(bisect_right(self.starts, low) - 1, 0)
        near = self.starts[first : bisect_left(self.starts, high)]
        parts = [(start, start + views.size(self.written[start].shape)) for start in near]
        return [(start, end) for start, end in parts if start < high and low < end]

    def takes(self, node: Write) -> bool:
        """Returns whether a write continues the chain."""
        low, high = views.extent(node.view)
        flat = len(node.output.shape) == 1 and views.is_contiguous(node.view) and low < high
        return flat and self._parts(low, high) in ([], [(low, high)])

    def write(self, position: int, node: Write) -> None:
        low, high = views.extent(node.view)
        if low not in self.written:
            insort(self.starts, low)
            self.length += high - low
        self.written[low], self.position = node.new, position

    def read(self, position: int, number: int, x: Read) -> bool:
        """Returns whether an operand can be read without the writes."""
        low, high = views.extent(x.view)
        parts = self._parts(low, high)
        if not parts:
            self.reads.append((position, number, Read(self.before, x.view)))
        elif len(parts) == 1 and parts[0][0] <= low and high <= parts[0][1]:
            (start, _), view = parts[0], x.view
            self.reads.append((position, number, Read(self.written[start], view._replace(offset=view.offset - start))))
        else:
            return False
        return True

    def finish(self, nodes: list[Any]) -> None:
        """Puts the join in the place of the last write, if all is written."""
        if not self.starts or self.length < self.before.shape[0]:
            return
        for position, number, x in self.reads:
            inputs = nodes[position].inputs
            nodes[position] = replace(nodes[position], inputs=(*inputs[:number], x, *inputs[number + 1 :]))
        write, parts = nodes[self.position], [self.written[start] for start in self.starts]
        shapes = tuple((views.size(part.shape),) for part in parts)
        call = Call(_concat, write.output.device, shapes, (write.output.dtype,) * len(parts), {"axis": 0})
        read = tuple(Read(part, views.contiguous(shape)) for part, shape in zip(parts, shapes, strict=True))
        nodes[self.position] = Node(call, read, (write.output,), write.line)


def common_subexpressions(graph: Graph) -> Graph:
    """Merges nodes with the same call of the same operands: values never change, and draws name their counters.

    Example: %5 = multiply(%4, %4), %7 = multiply(%4, %4), %8 = max(%7) become %5 and %8 = max(%5).

    The second run of a checkpointed function stays: to merge it with the first would keep what shall not be held.
    """
    same: dict[Value, Value] = {}
    known: dict[tuple, tuple[Value, ...]] = {}
    nodes: list[Step] = []
    for node in graph.nodes:
        node = reading(node, same)
        if isinstance(node, Write) or is_collective(node):
            nodes.append(node)
            continue
        # 1, 1.0 and True are equal, as are 0.0 and -0.0, but what is computed of them differs: so type and text count.
        key = node.call, node.repetition, tuple(x if isinstance(x, Read) else (type(x), repr(x)) for x in node.inputs)
        if key in known:
            same.update(zip(node.outputs, known[key], strict=True))
        else:
            known[key] = node.outputs
            nodes.append(node)
    return _ending(replace(graph, nodes=nodes), same)


def dead_code(graph: Graph) -> Graph:
    """Removes nodes that lead neither to a result, nor to state, nor to a collective.

    Example: the gradient of a loss with respect to a batch, in a graph that returns the loss and updates weights.
    """
    needed = {read.value for read in graph.results} | {s.after for s in graph.states}
    nodes: list[Step] = []
    for node in reversed(graph.nodes):  # so that all readers of a value are judged before its maker
        if needed.isdisjoint(made_by(node)) and not is_collective(node):
            continue
        nodes.append(node)
        needed.update(values_read(node))
    return replace(graph, nodes=nodes[::-1])


def _ending(graph: Graph, same: dict[Value, Value]) -> Graph:
    """Returns the graph with its last values renamed."""
    states = [replace(s, after=same.get(s.after, s.after)) for s in graph.states]
    return replace(graph, states=states, results=[renamed(x, same) for x in graph.results])
