"""One call of a program: from what the call brings to the results. Floor 2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...array import Array
from ...program import Graph, State
from ...tensor import Tensor, result_tensor
from .symbolic_numbers import value_of


class Bound:
    """Inputs of one call of a program, bound to the program's leaves.

    objects, numbers, holders: as a capture's. leaves: the objects to which numbers in the graph refer. memory: that of
    each of the graph's states. None stands for what another call brings anew.
    """

    __slots__ = ("_program", "holders", "leaves", "memory", "numbers", "objects")

    def __init__(self, program: Any, capture: Any):
        self._program = program
        self.objects, self.numbers, self.holders = capture.objects, capture.numbers, capture.holders
        self.leaves = [*map(capture.objects.get, program.leaves)]  # what is not used may be gone
        found = [(self.leaves[state.leaf], state) for state in program.graph.states]
        self.memory = [None if leaf is None else memory_of(leaf.array, state) for leaf, state in found]

    def with_others(self, others: dict[str, Any]) -> Bound:
        """Returns the same with other tensors and numbers in some places, by path."""
        new = object.__new__(Bound)
        new._program, new.holders = self._program, self.holders
        new.leaves, new.memory = self.leaves.copy(), self.memory.copy()
        new.objects, new.numbers = _Over(self.objects, others), self.numbers
        if self.numbers:
            new.numbers = self.numbers | {path: x for path, x in others.items() if path in self.numbers}
        for path, x in others.items():
            leaf, states = self._program.places.get(path, _NOWHERE)
            if leaf is not None:
                new.leaves[leaf] = x
                for i, state in states:
                    new.memory[i] = memory_of(x.array, state)
        return new


_NOWHERE: Any = None, ()


class _Over(dict):
    """Some entries of a dict, over all of another."""

    __slots__ = ("_below",)

    def __init__(self, below: Mapping[str, Any], entries: dict[str, Any]):
        super().__init__(entries)
        self._below = below

    def __missing__(self, key: str) -> Any:
        return self._below[key]


def called(
    runner: Any, graph: Graph, memory: Sequence[Any], draws: Sequence[tuple[int, int]], given: Mapping[str, Any]
) -> list[Tensor]:
    """Returns the results of a call. memory: of each of the graph's states; given: Python numbers by path."""
    found = [(value_of(x, given), value.dtype) for x, value in graph.numbers]
    numbers = [float(x) if dtype.is_float else x for x, dtype in found]
    return [result_tensor(x) for x in runner.run(memory, draws, numbers)]


def memory_of(leaf: Array, state: State) -> Array:
    """Returns the memory of a state, which is found again in this leaf.

    Example: a state of 6 elements that starts 0 from a weight (2, 3), at element 64 of its segment, is (6,) from 64 on.
    """
    return Array(leaf.storage, leaf.dtype, state.before.shape, (1,), leaf.offset + state.start)
