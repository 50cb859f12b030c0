"""The way back from the results of a program to its inputs: a rule of the tape, and the programs that it runs. Floor 2.

A program that goes backward reads what the one before it kept: inputs, and values that it computed (residuals). Where
the gradient is to be differentiated in turn, values that have a history are hidden outputs of the node that kept them:
their gradients arrive there like those of its results, and go on to its inputs.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ... import eager, random
from ...array import Array, Storage
from ...errors import GradientError, TraceError
from ...ops.primitive import executor
from ...program import Graph
from ...tape import CustomCall, Edge, TapeNode, attach, edge_of, gradient_spec, reachable, recording
from ...tensor import Tensor, result_tensor
from ...views import is_contiguous
from ..capture.captured import Leaf
from .calls import called, memory_of
from .executor import Trace
from .traced_tape import TapeStretch, TracedTape

Make = Callable[[Graph], tuple[Graph, Any]]  # a graph after the passes, and what runs it


class _Call:
    """Record of a call for its way back. numbers: the random numbers drawn, by their stand-ins in the trace."""

    def __init__(self, numbers: dict[Any, int], given: Mapping[str, Any]):
        self.numbers = numbers
        self.given = given
        self.node: Any = None  # a weak reference: the node holds this


class Pullback:
    """Call, primitive and rule of the nodes that calls of a program record.

    ends: where gradients arrive, as edges of the traced tape and arrays like them: at outputs, then at hidden ones.
    sources: the edges where gradients may go; targets: where they go. kept: the inputs that are read on the way, by
    number; residuals: what else is, in the trace. known: the stand-ins of earlier residuals, among the inputs.
    """

    composite = None
    outputs: Sequence[str] = ()

    def __init__(
        self,
        tape: TracedTape,
        make: Make,
        inputs: Sequence[Leaf],
        known: Mapping[Storage, Storage],
        outputs: Sequence[tuple[Edge, Array]],
        sources: Mapping[Edge, Any],
        oldest: int = 0,
    ):
        self.primitive = self
        self.name = f"compiled {tape.name}"
        self.tape, self.make, self._oldest = tape, make, oldest
        nodes = reachable([edge for edge, _ in outputs], oldest)
        arrived = [edge for node in nodes for edge in node.edges if edge is not None] + [edge for edge, _ in outputs]
        self.targets = [edge for edge in dict.fromkeys(arrived) if edge in sources]
        self.ends = [*outputs, *_hidden(nodes, dict(outputs))]
        self.errors: dict[int, Exception] = {}
        first = self._first(range(len(outputs)))
        read = tape.read(first, [x for node in nodes for x in _read_again(node)]) if first else set()
        read = {known.get(storage, storage) for storage in read}
        self.kept = [i for i, (_, x) in enumerate(inputs) if x is not None and x.array.storage in read]
        self.residuals = [a for storage, a in tape.made.items() if storage in read]
        self.leaves = [inputs[i] for i in self.kept]
        self.stand_ins = dict(known)
        for a in self.residuals:
            storage = self.stand_ins[a.storage] = Storage(None, a.storage.nbytes, a.device)
            self.leaves.append(Leaf("a value", result_tensor(Array(storage, a.dtype, a.shape, a.strides, 0))))
        self._ways: dict[tuple[Any, bool], _Way] = {}
        if first:
            came = [False if i < len(outputs) and i not in self.errors else None for i in range(len(self.ends))]
            self._ways[tuple(came), False] = _Way(self, first)
        self.inputs = [leaf.path for leaf in self.leaves]
        self.saved = [(False, i) for i in range(len(self.leaves) + 1)]
        specs = [gradient_spec(edge) for edge in self.targets]
        self.in_shapes, self.in_dtypes = [shape for shape, _ in specs], [dtype for _, dtype in specs]
        self.out_shapes = [like.shape for _, like in self.ends]
        self.out_dtypes = [like.dtype for _, like in self.ends]

    def _first(self, outputs: Sequence[int]) -> TapeStretch | None:
        """The way back from all outputs; an error on the way from some is kept for the backward pass that takes it."""
        try:
            return self._walk(dict.fromkeys(outputs, False), False)
        except Exception as error:
            if len(outputs) == 1:
                self.errors[outputs[0]] = error.with_traceback(None)  # which would keep alive what was traced
                return None
        for i in outputs:
            try:
                self._walk({i: False}, False)
            except Exception as error:
                self.errors[i] = error.with_traceback(None)
        sound = {i: False for i in outputs if i not in self.errors}
        return self._walk(sound, False) if sound else None

    def _walk(self, came: Mapping[int, bool], create_graph: bool) -> TapeStretch:
        """Walks the tape. came: the outputs whose gradients came, and whether these have a history."""
        roots = [(*self.ends[i], has_history) for i, has_history in came.items()]
        return self.tape.walk(roots, self.targets, self._oldest, create_graph)

    def record(
        self,
        memory: Sequence[Array],
        versions: Sequence[tuple[Storage, int]],
        edges: Sequence[Edge],
        outputs: Sequence[Sequence[Tensor]],
        numbers: dict[Any, int],
        given: Mapping[str, Any],
    ) -> None:
        """Puts a node on the tape.

        memory, versions: what is kept and the residuals, and how often each may have been written; edges: of the
        targets; outputs: the tensors that are each.
        """
        call = _Call(numbers, given)
        saved: list[Any] = [*map(result_tensor, memory), call]
        node = TapeNode(self, self, (True,) * len(edges), edges, saved, [*versions, None])
        call.node = weakref.ref(node)
        attach(node, [same[0] for same in outputs])
        for first, *others in outputs:
            for t in others:
                t.node, t.node_output, t._requires_grad = node, first.node_output, True

    def backward(
        self, _: Any, needs: Sequence[bool], gs: Sequence[Tensor | None], values: Sequence[Any]
    ) -> Sequence[Tensor | None]:
        """Returns the gradients of the node's operands, as any rule does, of those of its outputs and what it saved."""
        *saved, call = values
        way, memory = self._way(gs), [x.array for x in saved]

        def run(gs: Sequence[Tensor | None]) -> list[Tensor | None]:
            return way.run(memory, [g for g in gs if g is not None], call)

        if executor.get() is eager or isinstance(executor.get(), Trace):
            return run(gs)
        if way.onward is not None:
            raise TraceError(
                f"vmap: the way back of {self.name} is a program for one example, and here its own gradient is mapped: "
                "take the function that is not compiled, and compile the whole"
            )
        return executor.get().each(run, gs) or [None] * len(needs)

    def reads(self, number: int, gs: Sequence[Tensor | None]) -> bool:
        """Returns whether the way back from the outputs whose gradients came reads a saved value, by its number."""
        return number in self._way(gs).reads

    def _way(self, gs: Sequence[Tensor | None]) -> _Way:
        for i, error in self.errors.items():
            if gs[i] is not None:
                raise type(error)(*error.args)
        again = recording.get()
        came = tuple([None if g is None else again and g._requires_grad for g in gs])
        with self.tape.lock:
            way = self._ways.get((came, again))
            if way is None:
                roots = {i: has_history for i, has_history in enumerate(came) if has_history is not None}
                way = self._ways[came, again] = _Way(self, self._walk(roots, again), again)
        return way

    @property
    def ways(self) -> list[_Way]:
        """The programs that were made so far, those of gradients of gradients too."""
        made = [way for way in self._ways.values() if way.runner is not None]
        return made + [inner for way in made if way.onward for inner in way.onward.ways]


def version_of(a: Array) -> tuple[Storage, int]:
    return a.storage, a.storage.version


def _hidden(nodes: Sequence[TapeNode], outputs: Mapping[Edge, Array]) -> list[tuple[Edge, Array]]:
    """The values with a history that nodes saved, or read again, but outputs."""
    known = set(nodes)
    found: dict[Edge, Array] = {}
    for node in nodes:
        if node.saved is not None:
            saved = zip(node.rule.saved, node.saved, strict=True)
            read = [((node, i) if is_output else edge_of(x), x) for (is_output, i), x in saved if isinstance(x, Tensor)]
            for edge, x in [*read, *((edge_of(x), x) for x in _read_again(node))]:
                if edge[0] in known and x.array.dtype.is_float and edge not in outputs:
                    found[edge] = x.array
    return list(found.items())


def _read_again(node: TapeNode) -> Sequence[Tensor]:
    """Returns tensors that a user's function reads beside those saved, where its gradient is to be differentiated."""
    return node.call.again if isinstance(node.call, CustomCall) else ()


class _Way:
    """A program from gradients of some of a pullback's outputs to those of its targets.

    reads: the numbers of what it reads of the pullback's leaves, and of the gradients behind them. onward: where its
    results are to be differentiated, the way back through it. runner: None before its first call.
    """

    def __init__(self, pullback: Pullback, stretch: TapeStretch, again: bool = False):
        inputs = [*pullback.leaves, *(Leaf("a gradient", g) for g in stretch.given)]
        results = [g for g in stretch.found if g is not None]
        self._is_found = [g is not None for g in stretch.found]
        self._count = len(results)
        self._pullback = pullback
        self._outputs: dict[Edge, list[int]] = {}  # of onward, for each the numbers of the results that are it
        self._sources: dict[Edge, tuple[str, int]] = {}  # of onward, where a call finds them
        self.onward = self._made_onward(stretch, inputs, results) if again else None
        if self.onward:
            results += map(result_tensor, self.onward.residuals)
        self._graph, self._draws = pullback.tape.graph(stretch, inputs, pullback.stand_ins, results)
        self.reads = {state.leaf for state in self._graph.states}
        self.runner: Any = None

    def _made_onward(self, stretch: TapeStretch, inputs: Sequence[Leaf], results: Sequence[Tensor]) -> Pullback | None:
        pullback, tape = self._pullback, self._pullback.tape
        for i, g in enumerate(results):
            if g._requires_grad:
                self._outputs.setdefault(edge_of(g), []).append(i)
        if not self._outputs:
            return None
        nodes = reachable(list(self._outputs), stretch.since)
        targets = set(pullback.targets)
        tape.know(stretch.trace)
        tape.adopt(nodes, {edge: leaf for edge, leaf in tape.cuts.items() if (leaf, 0) in targets})
        self._sources |= {(g, 0): ("gradient", i) for i, g in enumerate(stretch.given)}
        self._sources |= {edge: ("output", i) for i, (edge, _) in enumerate(pullback.ends)}
        self._sources |= {edge: ("target", i) for i, edge in enumerate(pullback.targets)}
        for parent, i in (edge for node in nodes for edge in node.edges if edge is not None):
            if isinstance(parent, TapeNode) and parent.number < stretch.since and (parent, i) not in self._sources:
                raise GradientError(
                    f"backward: {pullback.name}: the gradient's gradient goes through {parent.name}, of which its "
                    "forward program has kept nothing: compile the function that takes the gradient instead"
                )
        outputs = [(edge, results[same[0]].array) for edge, same in self._outputs.items()]
        return Pullback(tape, pullback.make, inputs, pullback.stand_ins, outputs, self._sources, stretch.since)

    def run(self, memory: Sequence[Array], gs: Sequence[Tensor], call: _Call) -> list[Tensor | None]:
        with self._pullback.tape.lock:
            if self.runner is None:
                self._graph, self.runner = self._pullback.make(self._graph)
        memory = [*memory, *(g.array if is_contiguous(g.array.view) else eager.contiguous_copy(g.array) for g in gs)]
        numbers = dict(call.numbers)
        for draw in self._draws:
            if draw[0] not in numbers:
                numbers.update(zip(draw, random.default_generator().take(), strict=True))
        draws = [(numbers[key], numbers[counter]) for key, counter in self._draws]
        states = [memory_of(memory[state.leaf], state) for state in self._graph.states]
        results = called(self.runner, self._graph, states, draws, call.given)
        if self.onward is not None:
            self._record(self.onward, memory, results, gs, call, numbers)
        found = iter(results)
        return [next(found) if is_found else None for is_found in self._is_found]

    def _record(
        self,
        onward: Pullback,
        memory: Sequence[Array],
        results: Sequence[Tensor],
        gs: Sequence[Tensor],
        call: _Call,
        numbers: dict[Any, int],
    ) -> None:
        node = call.node()
        edges: list[Edge] = []
        for kind, i in (self._sources[edge] for edge in onward.targets):
            if kind == "gradient":
                edges.append(edge_of(gs[i]))
            else:
                edges.append((node, i) if kind == "output" else node.edges[i])
        known = [*node.versions[:-1], *map(version_of, memory[len(node.versions) - 1 :])]
        residuals = [t.array for t in results[self._count :]]
        onward.record(
            [memory[i] for i in onward.kept] + residuals,
            [known[i] for i in onward.kept] + [version_of(a) for a in residuals],
            edges,
            [[results[i] for i in same] for same in self._outputs.values()],
            numbers,
            call.given,
        )
