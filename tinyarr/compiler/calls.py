"""One call of a program: from the arrays, draws and numbers that a call brings to the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..array import Array
from ..program import Graph, State
from ..tensor import Tensor, result_tensor
from .symbolic_numbers import value_of


def called(
    runner: Any, graph: Graph, arrays: Sequence[Array], draws: Sequence[tuple[int, int]], given: Mapping[str, Any]
) -> list[Tensor]:
    """The results of a call. arrays: for each of the graph's states that of its leaf; given: Python numbers by path."""
    memory = [_memory(array, state) for array, state in zip(arrays, graph.states, strict=True)]
    floats = [float(value_of(x, given)) for x, _ in graph.floats]
    return [result_tensor(x) for x in runner.run(memory, draws, floats)]


def _memory(leaf: Array, state: State) -> Array:
    return Array(leaf.storage, leaf.dtype, state.before.shape, (1,), leaf.offset + state.start)
