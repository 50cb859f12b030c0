"""Gradients through a compiled function: what of its results has a history, and the nodes that each call records.

After the function has run in its trace, the tape that it leaves is walked there and then, so that forward and backward
become two programs: forward also returns the values that backward reads (residuals). A result of which another one is
made is a place where the way back can be left or entered, by a hook on it for one: there the tape is cut, and either
side gets a node of its own (`Pullback`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import NamedTuple

from ..array import Array
from ..errors import TraceError
from ..tape import CustomCall, Edge, Node, edge_of, reachable
from ..tensor import Tensor, result_tensor
from ..views import is_contiguous
from .effects import contents
from .pullback import Make, Pullback
from .reach import Leaf, Reach
from .trace import Drawn, Trace
from .traced_tape import Draw, TracedTape


class _Part(NamedTuple):
    """A pullback and where a call finds what it records.

    outputs: for each output the numbers of the results that are it; sources: for each target whether it is a result,
    and its number among these or the leaves; residuals: their numbers among the results.
    """

    pullback: Pullback
    outputs: Sequence[Sequence[int]]
    sources: Sequence[tuple[bool, int]]
    residuals: Sequence[int]


class History:
    """What a call of a compiled function records on the tape.

    residuals: what the forward program must return behind the function's own results, in the trace.
    """

    def __init__(self, results: Sequence[Tensor], draws: Sequence[Draw], made: Sequence[int]):
        self.residuals: list[Tensor] = []
        self.parts: list[_Part] = []
        self._draws = draws
        self._made = made  # the results that are leaves
        self._count = len(results)
        self._numbers = {t.array.storage: i for i, t in enumerate(results) if _is_whole(t.array)}

    def add(
        self, pullback: Pullback, outputs: Sequence[Sequence[int]], sources: Mapping[Edge, tuple[bool, int]]
    ) -> None:
        """Adds a part, with its residuals; one that is a result already is returned once."""
        for x in pullback.residuals:
            if x.storage not in self._numbers:
                self._numbers[x.storage] = self._count + len(self.residuals)
                self.residuals.append(result_tensor(x))
        numbers = [self._numbers[x.storage] for x in pullback.residuals]
        self.parts.append(_Part(pullback, outputs, [sources[edge] for edge in pullback.targets], numbers))

    def record(
        self,
        leaves: Sequence[Leaf],
        results: Sequence[Tensor],
        draws: Sequence[tuple[int, int]],
        given: Sequence[float],
    ) -> None:
        """Gives the results of a call their history."""
        for i in self._made:
            results[i].requires_grad = True
        drawn: dict[Drawn, int] = {}
        for parts, numbers in zip(self._draws, draws, strict=True):
            drawn.update(zip(parts, numbers, strict=True))
        for pullback, outputs, sources, residuals in self.parts:
            edges = [edge_of(results[i] if is_result else leaves[i].object) for is_result, i in sources]
            memory = [leaves[i].object.array for i in pullback.kept] + [results[i].array for i in residuals]
            pullback.record(memory, edges, [[results[i] for i in same] for same in outputs], drawn, given)


def _is_whole(a: Array) -> bool:
    """Whether the array shows all elements of its storage in their order."""
    return is_contiguous(a.view) and a.nbytes == a.storage.nbytes


@contextlib.contextmanager
def apart_from_history(reach: Reach) -> Iterator[list[Leaf]]:
    """Inside of the block, tensors that operations outside have made are leaves: the tape of the trace ends there."""
    made = [(leaf, leaf.object.node) for leaf in reach.leaves if getattr(leaf.object, "node", None) is not None]
    for leaf, _ in made:
        leaf.object.node = None
    try:
        yield [leaf for leaf, _ in made if leaf.object.grad is None]
    finally:
        for leaf, node in made:
            leaf.object.node = node


def differentiate(
    trace: Trace, reach: Reach, outside: Sequence[Leaf], results: Sequence[Tensor], name: str, make: Make
) -> History | None:
    """The history of what a function returned or kept in its trace, or None where nothing has one.

    outside: the tensors whose history began outside. Raises TraceError where a backward() in the function reached one.
    """
    for path, x in outside:
        if x.grad is not None:
            raise TraceError(
                f"compile: backward() in {name} arrives at {path}, the result of recorded operations: return the loss "
                f"and call backward() on it outside, or pass {path}.detach()"
            )
    numbers: dict[Edge, list[int]] = {}
    for i, t in enumerate(results):
        if t._requires_grad and (t.node is None or t.node.rule is not None):  # a freed graph has no way back
            numbers.setdefault(edge_of(t), []).append(i)
    if not numbers:
        return None
    tape = TracedTape(trace, reach.leaves, name)
    made = {edge for edge in numbers if isinstance(edge[0], Tensor) and tape.stand_in_of(edge[0]) is None}
    history = History(results, list(tape.draws), [i for edge in made for i in numbers[edge]])
    stages, crossed = _stages([edge for edge in numbers if edge not in made])
    sources = {(x, 0): (False, i) for i, (_, x) in enumerate(tape.inputs) if x is not None}
    sources |= {edge: (True, numbers[edge][0]) for edge in made}
    cuts: dict[Edge, Tensor] = {}
    for edge in crossed:
        cuts[edge] = result_tensor(results[numbers[edge][0]].array)
        cuts[edge]._requires_grad = True
        sources[cuts[edge], 0] = True, numbers[edge][0]
    nodes = reachable(list(numbers))
    tape.adopt(nodes, cuts)
    before = [contents(x) for _, x in reach.containers] if _runs_python(nodes) else []
    for stage in stages:
        outputs = [(tape.adopted(edge, {}), results[numbers[edge][0]].array) for edge in stage]
        pullback = Pullback(tape, make, tape.inputs, {}, outputs, sources)
        history.add(pullback, [numbers[edge] for edge in stage], sources)
    for (path, x), old in zip(reach.containers, before, strict=False):
        new = contents(x)
        if old.keys() != new.keys() or any(old[key] is not new[key] for key in old):
            error = TraceError(
                f"compile: {path} is changed by a hook or gradient inside of {name} on the way back, which each call "
                "would have to do again: set the hook on what the function returns, or call backward() in it"
            )
            for part in history.parts:
                part.pullback.errors = dict.fromkeys(range(len(part.outputs)), error)
    return history


def _runs_python(nodes: Sequence[Node]) -> bool:
    """Whether functions of the user's are called on the way back."""
    return any(node.hooks is not None or isinstance(node.call, CustomCall) for node in nodes)


def _stages(ends: Sequence[Edge]) -> tuple[list[list[Edge]], set[Edge]]:
    """The ends in stages, each of which is made of the inputs and of ends of earlier stages only; and the latter.

    One result is most often made of no other: then there is one stage, and backward computes what is common once.
    """
    level: dict[Edge, int] = {}
    crossed: set[Edge] = set()
    stages: list[list[Edge]] = []
    wanted = set(ends)
    for end in sorted(ends, key=lambda edge: edge[0].number if isinstance(edge[0], Node) else -1):
        met = _met(end, wanted)
        crossed |= met
        level[end] = 1 + max((level[edge] for edge in met), default=-1)
        if level[end] == len(stages):
            stages.append([])
        stages[level[end]].append(end)
    return stages, crossed


def _met(end: Edge, wanted: Container[Edge]) -> set[Edge]:
    """The first of the wanted edges on each way from a node back to the leaves."""
    met: set[Edge] = set()
    seen: set[Node] = set()
    stack = [end[0]]
    while stack:
        node = stack.pop()
        if isinstance(node, Node) and node not in seen:
            seen.add(node)
            for edge in node.edges:
                if edge is not None and isinstance(edge[0], Node):
                    if edge in wanted:
                        met.add(edge)
                    else:
                        stack.append(edge[0])
    return met
