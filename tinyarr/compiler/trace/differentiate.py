"""Gradients through a compiled function: which results have a history, and what each call records. Floor 2.

After the function has run in its trace, the tape that it leaves is walked there and then, so that forward and backward
become two programs: forward also returns the values that backward reads (residuals). A result of which another one is
made is a place where the way back can be left or entered, by a hook on it for one: there the tape is cut, and either
side gets a node of its own (`Pullback`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ...array import Array
from ...errors import TraceError
from ...tape import CustomCall, Edge, TapeNode, edge_of, gradient_spec, reachable, record_custom
from ...tensor import Tensor, result_tensor
from ...views import is_contiguous
from ..capture.captured import Capture, Leaf
from ..capture.holders import holds_the_same
from .executor import Drawn, Trace
from .pullback import Make, Pullback, version_of
from .traced_tape import Draw, TracedTape


class _Part(NamedTuple):
    """Pullback, and the places where a call finds its operands and results.

    outputs: for each output the numbers of the results that are it; sources: for each target whether it is a result,
    and its number among these or the leaves; residuals: their numbers among the results.
    """

    pullback: Pullback
    outputs: Sequence[Sequence[int]]
    sources: Sequence[tuple[bool, int]]
    residuals: Sequence[int]


class History:
    """History of a compiled function: each call records one operation on the tape.

    residuals: what the forward program must return behind the function's own results, in the trace. passed: of the
    results that are tensors from outside, by number, which leaves they are.
    """

    def __init__(
        self, results: Sequence[Tensor], draws: Sequence[Draw], made: Sequence[int], passed: Mapping[int, int]
    ):
        self.residuals: list[Tensor] = []
        self.parts: list[_Part] = []
        self._draws = draws
        self._made = made  # the results that are leaves made inside
        self.passed = passed
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
        given: Mapping[str, Any],
    ) -> None:
        """Gives the results of a call their history."""
        for i in self._made:
            results[i].requires_grad = True
        for i, leaf in self.passed.items():
            _pass_on(leaves[leaf].object, results[i])
        drawn: dict[Drawn, int] = {}
        for parts, numbers in zip(self._draws, draws, strict=True):
            drawn.update(zip(parts, numbers, strict=True))
        for pullback, outputs, sources, residuals in self.parts:
            edges = [edge_of(results[i] if is_result else leaves[i].object) for is_result, i in sources]
            memory = [leaves[i].object.array for i in pullback.kept] + [results[i].array for i in residuals]
            tensors = [[results[i] for i in same] for same in outputs]
            pullback.record(memory, [version_of(a) for a in memory], edges, tensors, drawn, given)


def _pass_on(x: Tensor, result: Tensor) -> None:
    """Gives a copy of a tensor its history: the same node, or one that leads to the leaf."""
    if x.node is None:
        edge = edge_of(x)
        record_custom("copy", lambda gs: gs, [gradient_spec(edge)], [edge], [result], ())
    else:
        result.node, result.node_output, result._requires_grad = x.node, x.node_output, True


def _is_whole(a: Array) -> bool:
    """Returns whether the array shows all elements of its storage in their order."""
    return is_contiguous(a.view) and a.nbytes == a.storage.nbytes


@contextlib.contextmanager
def apart_from_history(capture: Capture) -> Iterator[list[Leaf]]:
    """Makes tensors that operations outside have made leaves in the block, so that the tape of the trace ends there."""
    made = [(Leaf(path, x), x.node) for path, x in capture.tensors.items() if x.node is not None]
    for leaf, _ in made:
        leaf.object.node = None
    try:
        yield [leaf for leaf, _ in made if leaf.object.grad is None]
    finally:
        for leaf, node in made:
            leaf.object.node = node


def differentiate(
    trace: Trace,
    capture: Capture,
    leaves: Sequence[Leaf],
    outside: Sequence[Leaf],
    results: Sequence[Tensor],
    name: str,
    make: Make,
) -> History | None:
    """Returns the history of what a function returned or kept in its trace, or None where nothing has one.

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
    tape = TracedTape(trace, leaves, name)
    sources = {(x, 0): (False, i) for i, (_, x) in enumerate(tape.inputs) if x is not None}
    made: list[int] = []
    passed: dict[int, int] = {}
    for edge in [edge for edge in numbers if isinstance(edge[0], Tensor)]:
        known = sources.get(tape.adopted(edge, {}))
        if known is None:
            sources[edge] = True, numbers[edge][0]
            made += numbers[edge]
        else:
            passed.update(dict.fromkeys(numbers[edge], known[1]))
        del numbers[edge]
    history = History(results, list(tape.draws), made, passed)
    stages, crossed = _stages(list(numbers))
    for edge in crossed:
        leaf = tape.cuts[edge] = result_tensor(results[numbers[edge][0]].array)
        leaf._requires_grad = True
        sources[leaf, 0] = True, numbers[edge][0]
    nodes = reachable(list(numbers))
    tape.adopt(nodes, tape.cuts)
    before = {path: x.contents() for path, x in capture.holders.items()} if _runs_python(nodes) else {}
    for stage in stages:
        outputs = [(edge, results[numbers[edge][0]].array) for edge in stage]
        pullback = Pullback(tape, make, tape.inputs, {}, outputs, sources)
        history.add(pullback, [numbers[edge] for edge in stage], sources)
        for error in pullback.errors.values():
            if isinstance(error, TypeError) and capture.numbers:  # perhaps what takes Python's own alone
                raise error
    for path, old in before.items():
        if not holds_the_same(capture.holders[path], old):
            error = TraceError(
                f"compile: {path} is changed by a hook or gradient inside of {name} on the way back, which each call "
                "would have to do again: set the hook on what the function returns, or call backward() in it"
            )
            for part in history.parts:
                part.pullback.errors = dict.fromkeys(range(len(part.outputs)), error)
    return history


def _runs_python(nodes: Sequence[TapeNode]) -> bool:
    """Returns whether functions of the user's are called on the way back."""
    return any(node.hooks is not None or isinstance(node.call, CustomCall) for node in nodes)


def _stages(ends: Sequence[Edge]) -> tuple[list[list[Edge]], set[Edge]]:
    """Returns the ends in groups that share operations, made of inputs and of ends in earlier groups; and those ends.

    What shares nothing is freed apart, as in eager mode; of what is shared, backward computes the gradient once.

    Example: of h = tanh(x @ w) and loss = h.sum(), both returned, the groups are [h] and [loss], and h is crossed: the
    way back of loss ends at h, where a hook or another gradient may come in, and that of h goes on to x and w.
    """
    wanted = set(ends)
    crossed: set[Edge] = set()
    depth: dict[TapeNode, int] = {}  # through how many ends in a row the way back goes at most
    above: dict[TapeNode, TapeNode] = {}  # leads to one node for all that are connected

    def first(node: TapeNode) -> TapeNode:
        while above[node] is not node:
            above[node] = node = above[above[node]]
        return node

    for node in reversed(reachable(ends)):
        depth[node], above[node] = 0, node
        for edge in node.edges:
            if edge is None or not isinstance(edge[0], TapeNode):
                continue
            if edge in wanted:
                crossed.add(edge)
                depth[node] = max(depth[node], depth[edge[0]] + 1)
            else:
                depth[node] = max(depth[node], depth[edge[0]])
                above[first(node)] = first(edge[0])
    groups: dict[tuple[int, TapeNode], list[Edge]] = {}
    for end in ends:
        groups.setdefault((depth[end[0]], first(end[0])), []).append(end)
    return [groups[key] for key in sorted(groups, key=lambda key: key[0])], crossed
