"""Runs a graph node by node with the backend's own kernels: what every other way to run it is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import eager, views
from ..array import Array
from ..program import Graph, Group, Read, Value, Write
from ..tape import no_grad
from ..tensor import result_tensor
from ..views import View
from .lives import made_by, values_read


class Interpreter:
    """run(states, draws, floats): the graph's states in, each draw's key and counter, and Python floats; results out.

    Results are dense and share no memory with anything. The states' last values are written into their memory.
    """

    def __init__(self, graph: Graph):
        apart = [n for node in graph.nodes for n in ((node.first, node.last) if isinstance(node, Group) else (node,))]
        self._graph = graph = replace(graph, nodes=apart)
        self._last: list[list[Value]] = [[] for _ in graph.nodes]  # the values that each node is the last to read
        kept = {read.value for read in graph.results} | {s.after for s in graph.states}
        seen = set(kept)
        for node, last in zip(reversed(graph.nodes), reversed(self._last), strict=True):
            for value in values_read(node):
                if value not in seen:
                    seen.add(value)
                    last.append(value)
        made = {v for n in graph.nodes for v in made_by(n)}
        times = Counter(read.value for read in graph.results)
        self._copied = [
            read.value not in made or times[read.value] > 1 or read.view != views.contiguous(read.value.shape)
            for read in graph.results
        ]

    def run(
        self, states: Sequence[Array], draws: Sequence[tuple[int, int]], floats: Sequence[float]
    ) -> list[Array]:
        graph = self._graph
        known: dict[Value, Any] = dict(zip((s.before for s in graph.states), states, strict=True))
        known.update(graph.constants)
        known.update(zip((value for _, value in graph.floats), floats, strict=True))
        for (_, *values), numbers in zip(graph.draws, draws, strict=True):
            known.update(zip(values, numbers, strict=True))
        for node, last in zip(graph.nodes, self._last, strict=True):
            if isinstance(node, Write):
                changed = eager.contiguous_copy(known[node.old])
                node.output.device.backend.copy(known[node.new], _seen(changed, node.view))
                known[node.output] = changed
            else:
                operands = [_seen(known[x.value], x.view) if isinstance(x, Read) else x for x in node.inputs]
                made = eager.run(node.call, operands, None)
                if made is None:
                    made = _by_composite(node.call, operands)
                known.update(zip(node.outputs, made, strict=True))
            for value in last:
                known.pop(value, None)
        seen = [_seen(known[read.value], read.view) for read in graph.results]
        results = [eager.contiguous_copy(x) if copied else x for x, copied in zip(seen, self._copied, strict=True)]
        stores = [(s, place, known[s.after]) for s, place in zip(graph.states, states) if s.after is not s.before]
        outside = {id(x.storage) for x in states}
        stores = [(s, place, eager.contiguous_copy(x) if id(x.storage) in outside else x) for s, place, x in stores]
        for state, place, new in stores:
            place.device.backend.copy(_seen(new, views.contiguous(state.before.shape)), place)
            place.storage.version += 1
        return results


def _by_composite(call: Any, operands: Sequence[Any]) -> list[Array]:
    """The results of a call for which the backend has no kernel: dense, and in memory of their own."""
    tensors = [result_tensor(x) if isinstance(x, Array) else x for x in operands]
    with no_grad():
        made = call.primitive.composite(*tensors, **call.params)
    arrays = [x.array for x in (made if isinstance(made, tuple | list) else (made,))]
    read = {id(x.storage) for x in operands if isinstance(x, Array)}
    alone = [views.is_contiguous(x.view) and id(x.storage) not in read for x in arrays]
    return [x if is_alone else eager.contiguous_copy(x) for x, is_alone in zip(arrays, alone, strict=True)]


def _seen(array: Any, view: View) -> Any:
    """A part of a dense array; a Python number as it is."""
    if isinstance(array, int | float):
        return array
    return Array(array.storage, array.dtype, view.shape, view.strides, array.offset + view.offset)
