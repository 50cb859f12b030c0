"""Passes that shorten a graph: writes that together replace a value are one join, equal calls are made once, and what
nothing needs is not made at all.

Collectives stay as they are: they may differ or be needed on another rank, and all ranks run them together.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import replace

from .. import views
from ..ops.primitive import Call
from ..ops.shape import _concat
from ..program import Graph, Node, Read, Step, Value, Write
from .lives import is_collective, made_by, reading, renamed, values_read


def join_writes(graph: Graph) -> Graph:
    """Writes that together replace all of a value become one join of what they write, which can be made in its place.

    What is read meanwhile is then read where it came from: the value before the writes, or what one of them wrote.

    Example: g (8,) is the gradients of two parameters, to each of which a batch adds: %1 = g[:4] + a is written into g,
    which gives %2, and %3 = %2[4:] + b into %2, which gives %4. Then %3 = g[4:] + b, and %4 = concat(%1, %3).
    """
    nodes: list[Step] = []
    chains: dict[Value, _Chain] = {}
    for position, node in enumerate(graph.nodes):
        nodes.append(node)
        if not isinstance(node, Write):
            for number, x in enumerate(node.inputs):
                if isinstance(x, Read) and x.value in chains:
                    chains[x.value].read(position, number, x)
        elif len(node.output.shape) == 1 and views.is_contiguous(node.view):
            chain = chains.pop(node.old, None) or _Chain(node.old)
            if not chain.write(node):
                continue
            chains[node.output] = chain
            if chain.length == node.output.shape[0]:
                for at, number, x in chain.reads:
                    inputs = list(nodes[at].inputs)  # type: ignore[union-attr]
                    inputs[number] = x
                    nodes[at] = replace(nodes[at], inputs=tuple(inputs))  # type: ignore[arg-type]
                nodes[position] = chain.joined(node)
                del chains[node.output]
    return replace(graph, nodes=nodes)


class _Chain:
    """Writes into one value, each into the result of the one before; no two overlap, unless one replaces another.

    parts: where each begins, in ascending order. length: of all together. reads: what is read meanwhile, by the
    position of the node and the number of its operand, as it can be read without the writes.
    """

    def __init__(self, before: Value):
        self.before = before
        self.parts: list[int] = []
        self.news: dict[int, Value] = {}
        self.length = 0
        self.reads: list[tuple[int, int, Read]] = []

    def _end(self, at: int) -> int:
        return self.parts[at] + views.size(self.news[self.parts[at]].shape)

    def write(self, node: Write) -> bool:
        """Returns whether a write continues the chain."""
        low, high = views.extent(node.view)
        at = bisect_left(self.parts, low)
        if at < len(self.parts) and self.parts[at] == low and self._end(at) == high:
            self.news[low] = node.new
            return True
        if (at and self._end(at - 1) > low) or (at < len(self.parts) and self.parts[at] < high) or low == high:
            return False
        self.parts.insert(at, low)
        self.news[low] = node.new
        self.length += high - low
        return True

    def read(self, position: int, number: int, x: Read) -> None:
        low, high = views.extent(x.view)
        at = bisect_right(self.parts, low) - 1
        if at >= 0 and self._end(at) >= high:
            start = self.parts[at]
            self.reads.append((position, number, Read(self.news[start], x.view._replace(offset=x.view.offset - start))))
        elif not (at >= 0 and self._end(at) > low) and not (at + 1 < len(self.parts) and self.parts[at + 1] < high):
            self.reads.append((position, number, Read(self.before, x.view)))

    def joined(self, node: Write) -> Node:
        """Returns the join that takes the place of the last write."""
        news = [self.news[start] for start in self.parts]
        shapes = tuple((views.size(new.shape),) for new in news)
        call = Call(_concat, node.output.device, shapes, (node.output.dtype,) * len(news), {"axis": 0})
        return Node(call, tuple(Read(x, views.contiguous(n)) for x, n in zip(news, shapes)), (node.output,), node.line)


def common_subexpressions(graph: Graph) -> Graph:
    """Nodes with the same call of the same operands become one: values never change, and draws name their counters.

    What a checkpointed function computes again stays.
    """
    same: dict[Value, Value] = {}
    known: dict[tuple, tuple[Value, ...]] = {}
    nodes: list[Step] = []
    for node in graph.nodes:
        node = reading(node, same)
        if isinstance(node, Write) or is_collective(node):
            nodes.append(node)
            continue
        key = node.call, node.repetition, tuple(x if isinstance(x, Read) else (type(x), repr(x)) for x in node.inputs)
        if key in known:
            same.update(zip(node.outputs, known[key], strict=True))
        else:
            known[key] = node.outputs
            nodes.append(node)
    return _ending(replace(graph, nodes=nodes), same)


def dead_code(graph: Graph) -> Graph:
    """Without the nodes that lead neither to a result, nor to a state, nor to a collective."""
    needed = {read.value for read in graph.results} | {s.after for s in graph.states}
    nodes: list[Step] = []
    for node in reversed(graph.nodes):
        if needed.isdisjoint(made_by(node)) and not is_collective(node):
            continue
        nodes.append(node)
        needed.update(values_read(node))
    return replace(graph, nodes=nodes[::-1])


def _ending(graph: Graph, same: dict[Value, Value]) -> Graph:
    """The graph with its last values renamed."""
    states = [replace(s, after=same.get(s.after, s.after)) for s in graph.states]
    return replace(graph, states=states, results=[renamed(x, same) for x in graph.results])
