"""Runs a graph call by call with the kernels of eager mode: the oracle of every other way to run it. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import eager, views
from ..array import Array, empty
from ..ops.create import _copy
from ..ops.primitive import _composite
from ..program import Argument, Graph, KernelCall, Value
from ..tape import no_grad
from ..tensor import result_tensor
from .lower import lower
from .memory.plan import unplanned


class Interpreter:
    """run(states, draws, numbers): the graph's states in, each draw's key and counter, and Python numbers; results out.

    Results are dense and share no memory with anything. The states' last values are written into their memory.
    """

    def __init__(self, graph: Graph):
        self._graph = graph
        plan = unplanned(graph)
        self._values = {place[:2]: value for value, place in plan.buffers.items()}
        self._calls = [call for call in lower(plan).calls if isinstance(call, KernelCall)]
        self._freed: list[list[tuple]] = [[] for _ in self._calls]  # the buffers that each call is the last to use
        seen = set()
        for call, freed in zip(reversed(self._calls), reversed(self._freed), strict=True):
            for x in (*call.inputs, *call.outputs):
                if isinstance(x, Argument) and x.buffer[0] == "value" and x.buffer not in seen:
                    seen.add(x.buffer)
                    freed.append(x.buffer)

    def run(
        self, states: Sequence[Array], draws: Sequence[tuple[int, int]], numbers: Sequence[Any]
    ) -> list[Array]:
        graph, memory = self._graph, _Memory(self._values)
        memory.update({("state", i): x for i, x in enumerate(states)})
        memory.update({("constant", i): x for i, (_, x) in enumerate(graph.constants)})
        memory.update({("draw", i): x for i, x in enumerate(n for pair in draws for n in pair)})
        memory.update({("number", i): x for i, x in enumerate(numbers)})
        for call, freed in zip(self._calls, self._freed, strict=True):
            self._call(call, memory)
            for buffer in freed:
                memory.pop(buffer, None)
        for state, x in zip(graph.states, states, strict=True):
            x.storage.version += state.after is not state.before
        return [memory["result", i].through(views.contiguous(r.view.shape)) for i, r in enumerate(graph.results)]

    def _call(self, call: KernelCall, memory: _Memory) -> None:
        operands = [_seen(memory[x.buffer], x) if isinstance(x, Argument) else x for x in call.inputs]
        moves = call.call.primitive is _copy
        buffers = [y.buffer for y in call.outputs]
        whole = all(
            views.is_contiguous(y.view) and views.size(y.shape) == views.size(self._values[b].shape)
            for b, y in zip(buffers, call.outputs, strict=True)
        )
        if whole and memory.keys().isdisjoint(buffers):
            made = [eager.contiguous_copy(operands[0])] if moves else run_call(call.call, operands)
            memory.update(zip(buffers, made, strict=True))
            return
        outs = [_seen(memory[buffer], y) for buffer, y in zip(buffers, call.outputs, strict=True)]
        for x, out in zip(operands if moves else run_call(call.call, operands), outs, strict=True):
            out.device.backend.copy(x, out)


class _Memory(dict):
    """Buffers as arrays that are the whole of each, or Python numbers; made when first asked for."""

    def __init__(self, values: dict[tuple, Value]):
        self._values = values

    def __missing__(self, buffer: tuple) -> Array:
        like = self._values[buffer]
        made = self[buffer] = empty(like.device, like.shape, like.dtype)
        return made


def run_call(call: Any, operands: Sequence[Any]) -> Sequence[Array]:
    """Results in memory of their own, by the kernel of eager mode or the composite."""
    made = eager.run(call, operands, None)
    if made is not None:
        return made
    with no_grad():
        found = _composite(call)(*[result_tensor(x) if isinstance(x, Array) else x for x in operands], **call.params)
    arrays = [x.array for x in (found if isinstance(found, tuple | list) else (found,))]
    shared = {id(x.storage) for x in operands if isinstance(x, Array)}
    return [eager.contiguous_copy(x) if id(x.storage) in shared or not views.is_contiguous(x.view) else x
            for x in arrays]  # fmt: skip


def _seen(array: Any, x: Argument) -> Any:
    """Returns the view of a buffer that an argument is; a Python number as it is."""
    if isinstance(array, int | float):
        return array
    assert x.place is not None
    return Array(array.storage, array.dtype, *x.view._replace(offset=array.offset + x.view.offset))
