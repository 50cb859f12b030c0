"""In which order nodes run: as they were traced, but for two moves.

What is made of nothing, or of what lives on anyway, is made when it is first read. A reduction to little runs right
behind what makes its operands, while those are in the cache; where a backend joins kernels that follow each other, only
if then nothing needs the operands any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..program import Graph, Step, Write
from .lives import REDUCTIONS, SMALL, Lives, made_by, nbytes, values_read


def sink(graph: Graph) -> Graph:
    """Nodes that keep nothing alive move down to their first reader."""
    lives = Lives(graph)
    keys: list[tuple[int, int]] = [(position, 0) for position in range(len(graph.nodes))]
    for position in reversed(range(len(graph.nodes))):
        node = graph.nodes[position]
        readers = {r for v in made_by(node) for r in lives.readers.get(v, ())}
        if isinstance(node, Write) or not readers or not lives.kept.isdisjoint(made_by(node)):
            continue
        first, _ = min(keys[r] for r in readers)
        if all(lives.ends(v) >= first and lives.overwritten(v) >= first for v in values_read(node)):
            keys[position] = first, -1
    return _ordered(graph, keys)


def lift(graph: Graph) -> Graph:
    """Reductions whose results are small move up to what makes the last of their operands."""
    lives = Lives(graph)
    keys: list[tuple[int, int]] = []
    for position, node in enumerate(graph.nodes):
        keys.append((position, 0))
        is_reduction = not isinstance(node, Write) and node.call.primitive.name in REDUCTIONS
        if is_reduction and sum(map(nbytes, made_by(node))) <= SMALL:
            read = [v for v in values_read(node) if v in lives.maker]
            makers = [lives.maker[v] for v in read]
            frees = any(lives.ends(v) == position for v in read)
            if makers and (frees or not made_by(node)[0].device.backend.joins):
                keys[position] = max(keys[maker] for maker in makers)[0], 1
    return _ordered(graph, keys)


def _ordered(graph: Graph, keys: Sequence[tuple[int, int]]) -> Graph:
    order = sorted(range(len(keys)), key=lambda position: (keys[position], position))
    nodes: list[Step] = [graph.nodes[position] for position in order]
    return replace(graph, nodes=nodes)
