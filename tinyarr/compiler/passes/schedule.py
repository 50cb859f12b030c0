"""The order of nodes: as they were traced, but for three moves. Floor 2.

`sink`: nodes without inputs, or whose inputs outlive them anyway, move down to their first reader: that lengthens no
lifetime. `lift`: a reduction to a small result moves up behind the maker of its operands, while those are in the cache.
`overlap`: a collective begins right behind the maker of its operand and is waited for before its first reader.
Collectives begin in the order of the trace, which is the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ... import views
from ...ops.collective import wait
from ...ops.primitive import Call
from ...program import Graph, Node, Read, Step, Value, Write
from ..uses import SMALL, Uses, highest_number, is_collective, is_wait, made_by, nbytes, values_read

# A node's key is where it goes: (position, -1) just before the node traced there, (position, 1) just behind it. Nodes
# of one key keep the order of the trace, so that a pass states only what it moves.
Key = tuple[int, int]


def sink(graph: Graph) -> Graph:
    """Moves nodes that keep nothing alive down to their first reader.

    Example: `ones = full(1)`, 3 products, then `product @ ones`: the 16 KiB of ones (64, 64) are made before the last
    product, and need no memory during the other ones.
    """
    lives = Uses(graph)
    keys: list[Key] = [(position, 0) for position in range(len(graph.nodes))]
    for position in reversed(range(len(graph.nodes))):
        node = graph.nodes[position]
        readers = {r for v in made_by(node) for r in lives.readers.get(v, ())}
        moves = not isinstance(node, Write) and not is_collective(node)
        if not moves or not readers or not lives.kept.isdisjoint(made_by(node)):
            continue
        first, _ = min(keys[r] for r in readers)
        if all(lives.ends(v) >= first and lives.overwritten(v) >= first for v in values_read(node)):
            keys[position] = first, -1
    return _ordered(graph, keys)


def lift(graph: Graph) -> Graph:
    """Moves reductions to small results up behind the maker of the last of their operands.

    Example: a = x @ x, b = x.T @ x, a.sum(), b.sum() become a, a.sum(), b, b.sum(): each product is still in the cache
    when it is summed, and dies before the next one is made.
    """
    lives = Uses(graph)
    keys: list[Key] = []
    for position, node in enumerate(graph.nodes):
        keys.append((position, 0))
        is_reduction = not isinstance(node, Write) and node.call.primitive.reduces
        if is_reduction and sum(map(nbytes, made_by(node))) <= SMALL:
            makers = [lives.maker[v] for v in values_read(node) if v in lives.maker]
            if makers:
                keys[position] = max(keys[maker] for maker in makers)[0], 1
    return _ordered(graph, keys)


def overlap(graph: Graph) -> Graph:
    """Splits collectives into their beginning and a wait, with what can be computed meanwhile between them.

    They begin in the order in which they were traced, which is the same on all ranks, though what a rank computes
    between them may differ.

    Example: the gradient of the last layer is summed over the ranks while backward computes that of the layer before.
    """
    if not any(map(is_collective, graph.nodes)):
        return graph
    # First every beginning moves up, then, in what that gives, every wait down: a wait must not hold a beginning back.
    apart = _begun_and_waited_for(graph)
    lives = Uses(apart)
    early = _leading_to_collectives(apart, lives)
    # Zeros that pad an operand are made of nothing, so they hold no collective back, and are made just before it.
    of_nothing = {position for position in early if not values_read(apart.nodes[position])}
    keys: list[Key] = []
    begun_last = (-1, 1)
    for position, node in enumerate(apart.nodes):
        makers = {lives.maker[v] for v in values_read(node) if v in lives.maker} - of_nothing
        after = max((keys[maker] for maker in makers), default=(-1, 0))
        keys.append((after[0], 1) if position in early else (position, 0))
        if is_collective(node):
            keys[position] = begun_last = max(keys[position], begun_last)
    for position in sorted(of_nothing, reverse=True):  # as late as it can be
        keys[position] = min(keys[r] for v in made_by(apart.nodes[position]) for r in lives.readers[v])
    begun = _ordered(apart, keys)
    lives = Uses(begun)
    keys = []
    for position, node in enumerate(begun.nodes):
        keys.append((position, 0))
        if is_wait(node):
            keys[position] = min(lives.readers.get(node.outputs[0], {len(begun.nodes)})), -1
    return _ordered(begun, keys)


def _leading_to_collectives(graph: Graph, lives: Uses) -> set[int]:
    """Returns the positions of collectives, and of nodes that only join, pad or cast operands for them."""
    early: set[int] = set()
    for position in reversed(range(len(graph.nodes))):
        node = graph.nodes[position]
        readers = {r for v in made_by(node) for r in lives.readers.get(v, ())}
        arranges = isinstance(node, Node) and node.call.primitive.moves
        if is_collective(node) or (arranges and readers and readers <= early and lives.kept.isdisjoint(made_by(node))):
            early.add(position)
    return early


def _begun_and_waited_for(graph: Graph) -> Graph:
    nodes: list[Step] = []
    count = highest_number(graph)
    for ticket, node in enumerate(graph.nodes):
        if not is_collective(node):
            nodes.append(node)
            continue
        call, (value,) = node.call, node.outputs
        begun = Value(count := count + 1, value.shape, value.dtype, value.device)
        params = {**call.params, "ticket": ticket}
        started = Call(call.primitive, call.device, call.in_shapes, call.in_dtypes, params)
        waited = Call(wait, call.device, call.out_shapes, call.out_dtypes, {"ticket": ticket})
        nodes.append(replace(node, call=started, outputs=(begun,)))
        nodes.append(Node(waited, (Read(begun, views.contiguous(value.shape)),), (value,), node.line))
    return replace(graph, nodes=nodes)


def _ordered(graph: Graph, keys: Sequence[Key]) -> Graph:
    order = sorted(range(len(keys)), key=lambda position: (keys[position], position))
    nodes: list[Step] = [graph.nodes[position] for position in order]
    return replace(graph, nodes=nodes)
