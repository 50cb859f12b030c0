"""Two passes that shorten a graph: equal calls are made once, and what nothing needs is not made at all.

Collectives stay as they are: they may differ or be needed on another rank, and all ranks run them together.
"""

from __future__ import annotations

from dataclasses import replace

from ..program import Graph, Read, Step, Value, Write
from .lives import is_collective, made_by, reading, renamed, values_read


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
