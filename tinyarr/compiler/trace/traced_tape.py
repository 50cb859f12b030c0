"""The tape that a function left in its trace, kept so that it can be walked whenever a gradient is asked for. Floor 2.

It outlives the call that was traced, whose tensors and memory must not be kept with it. So stand-ins take the place
of what came from outside: tensors over memory that each call of a program brings.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ... import random
from ...array import Array, Storage
from ...autograd import walk
from ...errors import GradientError, TraceError
from ...ops.collective import Collective
from ...ops.primitive import executor
from ...program import Graph
from ...tape import Edge, TapeNode, numbers
from ...tensor import Tensor, result_tensor
from ...views import contiguous_strides
from ..capture.captured import Leaf
from .executor import Drawn, Instruction, Trace, TracedStorage
from .graph import build
from .symbolic_numbers import SymbolicNumber, symbolic

Draw = tuple[Drawn, Drawn]


class TapeStretch(NamedTuple):
    """Part of backward that one walk does: its instructions, and the gradients of its targets.

    given: the stand-ins of the gradients that it began with. since: the lowest number of a node that it recorded.
    """

    trace: Trace
    given: Sequence[Tensor]
    found: Sequence[Tensor | None]
    since: int


class TracedTape:
    """Tape of a trace, over stand-ins.

    inputs: the leaves that the function reached, tensors by their stand-ins, generators by None. made: what was
    computed so far, by storage, each seen whole. draws: those that came so far. cuts: the leaves that take the place of
    edges on the way back from results that are made of others.
    """

    def __init__(self, trace: Trace, leaves: Sequence[Leaf], name: str):
        self.name = name
        self.lock = threading.RLock()
        self.made: dict[Storage, Array] = {}
        self.draws: list[Draw] = [(key, counter) for _, key, counter in trace.draws]
        self._constants = trace.constants
        self._family = trace.family
        self._outside: weakref.WeakKeyDictionary[Storage, Storage] = weakref.WeakKeyDictionary()
        self._versions: weakref.WeakKeyDictionary[Storage, int] = weakref.WeakKeyDictionary()
        self._leaves: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self.cuts: dict[Edge, Tensor] = {}
        self.inputs = [Leaf(path, self._made_stand_in(x) if isinstance(x, Tensor) else None) for path, x in leaves]
        self.know(trace)

    def _made_stand_in(self, x: Tensor) -> Tensor:
        storage = x.array.storage
        if storage not in self._outside:
            self._outside[storage] = Storage(None, storage.nbytes, storage.device)
            self._outside[storage].version = self._versions[storage] = storage.version
        found = result_tensor(self._mapped(x.array, {}))
        found._requires_grad, found._has_wide_grad = x._requires_grad, x._has_wide_grad
        self._leaves[id(x)] = weakref.ref(x), found
        return found

    def know(self, trace: Trace) -> None:
        """Remembers the storages that a trace made, and how often it wrote into those from outside."""
        for step in trace.instructions:
            for a in step.outputs:
                if step.writes:
                    self._versions[a.storage] = a.storage.version
                    a = flat(a)
                if a.storage not in self._outside:
                    self.made.setdefault(a.storage, a)

    def adopt(self, nodes: Iterable[TapeNode], cuts: Mapping[Edge, Tensor]) -> None:
        """Puts stand-ins into nodes, and in place of edges leaves, which cut the tape.

        What was saved is from now on as it was then, or was overwritten.
        """
        for node in nodes:
            node.line = None  # its elements can't be looked at: the node that a call records is watched instead
            node.edges = [None if edge is None else self.adopted(edge, cuts) for edge in node.edges]
            for i, version in enumerate(node.versions if node.saved is not None else ()):
                if version is not None:
                    old = node.saved[i]
                    new = node.saved[i] = self._adopted_value(old, cuts)
                    is_kept = version == (old.array.storage, old.array.storage.version)
                    node.versions[i] = None if is_kept else (new.array.storage, version[1])

    def adopted(self, edge: Edge, cuts: Mapping[Edge, Tensor]) -> Edge:
        if edge in cuts:
            return cuts[edge], 0
        leaf = self.stand_in_of(edge[0])
        return edge if leaf is None else (leaf, 0)

    def stand_in_of(self, x: Any) -> Tensor | None:
        """Returns the stand-in of a leaf, None for what is none."""
        reference, found = self._leaves.get(id(x), (None, None))
        return found if reference is not None and reference() is x else None

    def _adopted_value(self, x: Tensor, cuts: Mapping[Edge, Tensor]) -> Tensor:
        leaf = self.stand_in_of(x) if x.node is None else cuts.get((x.node, x.node_output))
        if leaf is not None or x.array.storage not in self._outside:
            return x if leaf is None else leaf
        found = result_tensor(self._mapped(x.array, {}))
        found.node, found.node_output, found._requires_grad = x.node, x.node_output, x._requires_grad
        return found

    def _mapped(self, x: Array, residuals: Mapping[Storage, Storage]) -> Array:
        """An array over the stand-in of its storage, if there is one."""
        storage = residuals.get(x.storage) or self._outside.get(x.storage)
        return x if storage is None else Array(storage, x.dtype, x.shape, x.strides, x.offset)

    def read(self, stretch: TapeStretch, more: Iterable[Tensor]) -> set[Storage]:
        """Returns the storages read for a stretch's gradients, and of more tensors: stand-ins of those outside."""
        _, storages = _needed(stretch.trace, [g for g in stretch.found if g is not None])
        storages |= {x.array.storage for x in more}
        return {self._outside.get(storage, storage) for storage in storages}

    def walk(
        self, roots: Sequence[tuple[Edge, Array, bool]], targets: Sequence[Edge], oldest: int, create_graph: bool
    ) -> TapeStretch:
        """Carries gradients back to the targets, in a trace of its own.

        roots: where they begin, arrays that they are like, and whether they have a history.
        """
        given = []
        for _, like, has_history in roots:
            storage = Storage(None, like.nbytes, like.device)
            given.append(result_tensor(Array(storage, like.dtype, like.shape, contiguous_strides(like.shape), 0)))
            given[-1]._requires_grad = has_history
        trace, since = Trace(self._family), next(numbers)
        trace.constants = list(self._constants)
        token = executor.set(trace)
        try:
            with self._as_it_was(), random.drawn_by(trace):
                pairs = [(edge, g) for (edge, *_), g in zip(roots, given, strict=True)]
                found = walk(pairs, targets, create_graph, True, oldest)
        finally:
            executor.reset(token)
            trace.restore()
        if any(generator is not random.default_generator() for generator, *_ in trace.draws):
            raise TraceError(
                f"compile: a gradient in {self.name} draws from a generator of its own: draw in the function itself"
            )
        self.draws += [(key, counter) for _, key, counter in trace.draws]
        return TapeStretch(trace, given, found, since)

    @contextlib.contextmanager
    def _as_it_was(self) -> Iterator[None]:
        """Puts the leaves that still exist, in the block, back to how they were when the function had run.

        Nodes know stand-ins only, but a gradient that is a Python function may know the leaves themselves.
        """
        storages = [(storage, storage.version, version) for storage, version in self._versions.items()]
        tensors = [(x, x.node, x._requires_grad, found) for x, found in self._alive()]
        for storage, _, version in storages:
            storage.version = version
        for x, _, _, found in tensors:
            x.node, x._requires_grad = None, found._requires_grad
        try:
            yield
        finally:
            for storage, version, _ in storages:
                storage.version = version
            for x, node, requires_grad, _ in tensors:
                x.node, x._requires_grad = node, requires_grad

    def _alive(self) -> Iterator[tuple[Tensor, Tensor]]:
        for reference, found in self._leaves.values():
            x = reference()
            if x is not None:
                yield x, found

    def graph(
        self,
        stretch: TapeStretch,
        inputs: Sequence[Leaf],
        residuals: Mapping[Storage, Storage],
        results: Sequence[Tensor],
    ) -> tuple[Graph, list[Draw]]:
        """The graph from inputs, among them residuals by their stand-ins, to results, and the draws in its order.

        Raises GradientError where another value is read, which the forward program has not kept.
        """
        trace = stretch.trace
        instructions, read = _needed(trace, results)
        kept = {leaf.object.array.storage for leaf in inputs} | residuals.keys()
        kept |= {a.storage for step in instructions for a in step.outputs}
        outside = set(self._outside.values())
        for storage in {self._outside.get(storage, storage) for storage in read} - kept:
            if storage in outside or isinstance(storage, TracedStorage):
                raise GradientError(
                    f"backward: compiled {self.name}: a value of {storage.nbytes} bytes is needed, which its forward "
                    "program has not kept: compile the function that takes the gradient instead"
                )

        def mapped(x: Any) -> Any:
            if isinstance(x, Array):
                return self._mapped(x, residuals)
            return symbolic(trace, x.expression, x.value) if isinstance(x, SymbolicNumber) else x

        trace.instructions = [
            step._replace(inputs=tuple(map(mapped, step.inputs)), outputs=tuple(map(mapped, step.outputs)))
            for step in instructions
        ]
        used = {x for step in trace.instructions for x in step.inputs if type(x) is Drawn}
        draws = [draw for draw in self.draws if not used.isdisjoint(draw)]
        trace.draws = [(random.default_generator(), *draw) for draw in draws]
        found = [result_tensor(self._mapped(x.array, residuals)) for x in results]
        return build(trace, inputs, found), draws


def _needed(trace: Trace, results: Iterable[Tensor]) -> tuple[list[Instruction], set[Storage]]:
    """Returns instructions that lead to results, collectives or memory from outside, and the memory they read."""
    made = {a.storage for step in trace.instructions for a in step.outputs if not step.writes}
    read = {x.array.storage for x in results}
    needed = []
    for step in reversed(trace.instructions):
        is_effect = isinstance(step.call.primitive, Collective)
        if is_effect or any(a.storage in read or (step.writes and a.storage not in made) for a in step.outputs):
            needed.append(step)
            read |= {x.storage for x in step.inputs if isinstance(x, Array)}
    return needed[::-1], read


def flat(a: Array) -> Array:
    """Returns all elements of an array's storage, as an array."""
    return Array(a.storage, a.dtype, (a.storage.nbytes // a.dtype.itemsize,), (1,), 0)
