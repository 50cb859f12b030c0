"""Fusion: elementwise nodes become one loop, or the prologue of the kernel that reads them. Floor 2.

Example:

    %3 = subtract(%1, %2)
    %4 = multiply(%3, %3)
    %5 = sum(%4)                  become  %4, %3 = subtract_multiply(%1, %2); %5 = sum(%4)

The sum's kernel makes each element of %4 as it reads it, and stores %3 on the way if a later node reads that, as
backward does. Two values of n elements were written and four read; now at most one is written and two are read.

A producer moves down to its consumer, so nothing between them may read its results or overwrite its operands, and its
operands must not be held for longer than that saves. Its results are rounded to their dtype as if they were stored, so
no bit changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ... import views
from ...ops.elementwise_primitive import Pointwise
from ...ops.primitive import Call
from ...ops.typing import Typed, TypedStep
from ...program import FusedPair, Graph, Node, Read, Step
from ...program import Value as Made
from ...views import Shape, View
from ..memory.layout import is_copy, layouts
from ..uses import SMALL, Uses, is_elementwise, nbytes, reads_runs

MOST_OPERANDS = 24  # of one kernel: more need more registers than there are for their addresses
# Of one kernel. gcc 12 makes vectors of a loop with 32 calls of erf or tanh, and of one with 56 no longer, where each
# takes 8 times as long. To store and load what is between two kernels takes far less than so many operations, and equal
# pieces of a long chain are one function.
MOST_OPERATIONS = 64


def fuse(graph: Graph) -> Graph:
    """Returns the graph with elementwise nodes joined where that needs no more memory."""
    return _Fusion(graph).graph()


class FusedPointwise(Pointwise):
    """Elementwise operation that several calls make up; its expression is typed already."""

    def __init__(self, name: str, typed: Typed, inputs: int):
        self._typed = typed
        names = [f"x{i}" for i in range(inputs)], [f"out{i}" for i in range(len(typed.outputs))]
        super().__init__(name, self._infer, *names, derived=True)

    def typed(self, shapes: tuple[Shape, ...], dtypes: tuple, params: dict[str, Any]) -> Typed:
        return self._typed

    def _infer(self, shapes, dtypes, *, shape):
        return [(shape, dtype) for dtype in self._typed.dtypes]


@dataclass
class _Cluster:
    """Elementwise nodes, makers before readers, that go through the same elements in row-major order.

    operations: of their expressions together, at least one for each.
    end: the node that reads them run by run as its first operand, if any.
    """

    nodes: list[Node]
    operations: int
    end: Node | None = None

    @property
    def shape(self) -> Shape:
        return self.nodes[-1].outputs[0].shape if self.end is None else self.end.call.in_shapes[0]

    @property
    def all_nodes(self) -> list[Node]:
        return self.nodes if self.end is None else [*self.nodes, self.end]

    @property
    def outputs(self) -> list[Made]:
        return [v for node in self.all_nodes for v in node.outputs]

    def inputs(self) -> list[tuple[Node, Any]]:
        """Returns the operands that no node of the cluster makes, each beside the node that reads it."""
        made = set(self.outputs)
        return [(n, x) for n in self.all_nodes for x in n.inputs if not (isinstance(x, Read) and x.value in made)]

    def values_read(self) -> set[Made]:
        return {x.value for _, x in self.inputs() if isinstance(x, Read)}

    def joined_to(self, consumer: _Cluster) -> _Cluster:
        return _Cluster(self.nodes + consumer.nodes, self.operations + consumer.operations, consumer.end)


class _Fusion:
    def __init__(self, graph: Graph):
        self._graph = graph
        self._lives = Uses(graph)
        laid = layouts(graph)
        self._clusters: list[_Cluster | None] = [_cluster(n, laid) for n in graph.nodes]
        self._is_left = bytearray(b"\1" * len(graph.nodes))  # of each position; searched as fast as memory is read
        self._calls: dict[tuple, Call] = {}

    def graph(self) -> Graph:
        for position, cluster in enumerate(self._clusters):
            if cluster is not None:
                # Each producer that joins brings its own producers next to the cluster.
                while (producer := self._producer_for(position)) is not None:
                    self._join(producer, position)
        nodes = [
            node if cluster is None or len(cluster.all_nodes) == 1 else self._fused(cluster, position)
            for position, (node, cluster) in enumerate(zip(self._graph.nodes, self._clusters, strict=True))
            if self._is_left[position]
        ]
        return replace(self._graph, nodes=nodes)

    def _producer_for(self, position: int) -> int | None:
        """Returns the position of a producer that can join the cluster at a position, or None."""
        cluster = self._clusters[position]
        assert cluster is not None
        for _, x in cluster.inputs():
            maker = self._lives.maker.get(x.value) if isinstance(x, Read) else None
            if maker is not None and self._may_join(maker, position):
                return maker
        return None

    def _may_join(self, producer: int, consumer: int) -> bool:
        a, b = self._clusters[producer], self._clusters[consumer]
        if a is None or b is None or a.end is not None or a.operations + b.operations > MOST_OPERATIONS:
            return False
        if not self._may_wait(a, producer, consumer):
            return False
        stored = self._stored(a.joined_to(b), {producer, consumer})
        return _is_one_kernel(a, b, stored) and self._needs_no_more_memory(a, stored, producer, consumer)

    def _may_wait(self, a: _Cluster, producer: int, consumer: int) -> bool:
        """Returns whether a producer may move to its consumer: no step between reads it, or writes its operands."""
        lives = self._lives
        is_read = any(lives.is_read_between(producer, consumer, v) for v in a.outputs)
        return not is_read and not any(lives.overwritten(v) < consumer for v in a.values_read())

    def _needs_no_more_memory(self, a: _Cluster, stored: set[Made], producer: int, consumer: int) -> bool:
        """Returns whether the operands kept until the consumer runs are no larger than the results not stored."""
        if 1 not in self._is_left[producer + 1 : consumer]:
            return True  # nothing runs between the two, so nothing is held for longer
        longer = sum(nbytes(v) for v in a.values_read() if self._lives.ends(v) < consumer)
        return longer <= SMALL + sum(nbytes(v) for v in set(a.outputs) - stored)

    def _stored(self, cluster: _Cluster, positions: set[int]) -> set[Made]:
        """Returns the values of a cluster that must be stored: nodes at other positions read them."""
        lives = self._lives
        return {v for v in cluster.outputs
                if v in lives.kept or any(reader not in positions for reader in lives.readers.get(v, ()))}  # fmt: skip

    def _join(self, producer: int, consumer: int) -> None:
        a, b = self._clusters[producer], self._clusters[consumer]
        assert a is not None and b is not None
        self._clusters[producer], self._clusters[consumer] = None, a.joined_to(b)
        self._is_left[producer] = 0
        self._lives.move(producer, consumer, [v for node in a.nodes for v in _values(node)], a.outputs)

    def _fused(self, cluster: _Cluster, position: int) -> Node | FusedPair:
        """The cluster at a position as one node, or as a group."""
        stored = self._stored(cluster, {position})
        if cluster.end is None:
            return self._joined(cluster, tuple(v for v in cluster.outputs if v in stored))
        outputs = tuple(v for v in cluster.outputs if v in stored or v in cluster.end.outputs)
        read, *_ = _values(cluster.end)
        first = (read, *(v for v in outputs if v is not read and v not in cluster.end.outputs))
        return FusedPair(self._joined(cluster, first), cluster.end, outputs)

    def _joined(self, cluster: _Cluster, stored: tuple[Made, ...]) -> Node:
        """The elementwise nodes of a cluster as one, which makes `stored`."""
        inputs: list[Any] = []
        numbers: dict[Any, int] = {}
        wiring: list[tuple] = []
        made = {v: (i, o) for i, node in enumerate(cluster.nodes) for o, v in enumerate(node.outputs)}
        for node in cluster.nodes:
            wires: list[Any] = []
            for x, dtype in zip(node.inputs, node.call.in_dtypes, strict=True):
                if isinstance(x, Read) and x.value in made:
                    wires.append(made[x.value])
                    continue
                if isinstance(x, Read):
                    view = _seen(node, x, cluster.shape)
                    assert view is not None
                    x = Read(x.value, view)
                operand = x if isinstance(x, Read) else (dtype, repr(x))  # 1 and True are equal, 0.0 and -0.0 too
                if operand not in numbers:
                    numbers[operand] = len(inputs)
                    inputs.append((x, dtype))
                wires.append(numbers[operand])
            wiring.append((node.call, tuple(wires)))
        shapes = tuple(x.view.shape if isinstance(x, Read) else () for x, _ in inputs)
        # The layers of a model have equal clusters: with one primitive for all they are one kernel, compiled once.
        key = (tuple(wiring), shapes, tuple(made[v] for v in stored), cluster.shape)
        if key not in self._calls:
            names = [node.call.primitive.name for node in cluster.nodes]
            name = "_".join(names if len(names) < 5 else [*names[:2], f"{len(names) - 3}_more", names[-1]])
            primitive = FusedPointwise(name, combine(wiring, [made[v] for v in stored]), len(inputs))
            dtypes = tuple(dtype for _, dtype in inputs)
            self._calls[key] = Call(primitive, cluster.nodes[-1].call.device, shapes, dtypes, {"shape": cluster.shape})
        last = cluster.nodes[-1]
        return replace(last, call=self._calls[key], inputs=tuple(x for x, _ in inputs), outputs=stored)


def _is_one_kernel(a: _Cluster, b: _Cluster, stored: set[Made]) -> bool:
    """Returns whether one kernel can run a and then b, going through the elements in b's order."""
    made, joined = set(a.outputs), a.joined_to(b)
    for node in b.all_nodes:
        for x in node.inputs:
            if isinstance(x, Read) and x.value in made and not _is_whole(x, node):
                return False
    if b.end is not None and not made.isdisjoint(_values(b.end)[0 if b.nodes else 1 :]):
        return False  # a prologue makes the first operand alone, all others are read from memory
    if any(_counts_positions(n) and (b.end is not None or n.outputs[0].shape != b.shape) for n in a.nodes):
        return False
    read = [(node, x) for node, x in joined.inputs() if isinstance(x, Read) and node is not b.end]
    if any(_seen(node, x, b.shape) is None for node, x in read):
        return False
    return len(joined.values_read()) + len(stored) <= MOST_OPERANDS


def _cluster(node: Step, layouts: dict[Made, View]) -> _Cluster | None:
    """Returns a node as a cluster if it can be fused; a copy with unchanged layout can't: it is an alias."""
    if not isinstance(node, Node) or (is_copy(node) and not layouts.keys().isdisjoint(_values(node))):
        return None
    if is_elementwise(node):
        operations = sum(v.op not in ("input", "constant") for v in _typed(node.call).values)
        return _Cluster([node], max(operations, 1))
    return _Cluster([], 0, node) if reads_runs(node) else None


def _values(node: Node) -> list[Made]:
    return [x.value for x in node.inputs if isinstance(x, Read)]


def _is_whole(x: Read, node: Node) -> bool:
    """Returns whether a node reads, in row-major order, each element of a value once."""
    count = views.size(x.value.shape)
    is_all = x.view.offset == 0 and views.is_contiguous(x.view) and views.size(x.view.shape) == count
    return is_all and (not is_elementwise(node) or views.size(node.outputs[0].shape) == count) and count > 0


def _seen(node: Node, x: Read, shape: Shape) -> View | None:
    """The view of an operand for a kernel that goes through the node's elements in another shape; None: no strides."""
    own = node.outputs[0].shape
    if own == shape or not x.view.shape:
        return x.view
    return views.reshape(views.broadcast_to(x.view, own), shape)


def _counts_positions(node: Node) -> bool:
    """Returns whether the expression asks for an element's position along an axis."""
    return any(v.op == "index" for v in _typed(node.call).values)


def _typed(call: Any) -> Typed:
    return call.primitive.typed(call.in_shapes, call.in_dtypes, call.params)


def combine(calls: Sequence[tuple[Call, Sequence[Any]]], outputs: Sequence[tuple[int, int]]) -> Typed:
    """One expression of several calls.

    An operand is the number of an input, or (call, output) for what an earlier call makes, as are the outputs. What a
    call makes is rounded to its dtype as if it were stored.
    """
    values: list[TypedStep] = []
    known: dict[tuple, int] = {}
    made: dict[tuple[int, int], tuple[int, Any]] = {}

    def emit(v: TypedStep, args: tuple[int, ...]) -> int:
        is_uniform = v.uniform if v.op in ("input", "constant", "index", "random_bits") else all(
            values[a].uniform for a in args)  # fmt: skip
        key = v.op, args, v.dtype, type(v.value), repr(v.value)
        if key not in known:
            known[key] = len(values)
            values.append(TypedStep(v.op, args, v.dtype, v.value, is_uniform))
        return known[key]

    for number, (call, operands) in enumerate(calls):
        typed = _typed(call)
        numbers: list[int] = []
        for v in typed.values:
            operand = operands[v.value] if v.op == "input" else None
            if isinstance(operand, tuple):
                source, stored = made[operand]
                rounded = TypedStep("cast", (source,), stored, stored, False)
                numbers.append(source if values[source].dtype is stored else emit(rounded, (source,)))
            elif operand is not None:
                numbers.append(emit(replace(v, value=operand), ()))
            else:
                numbers.append(emit(v, tuple(numbers[a] for a in v.args)))
        for o, (n, dtype) in enumerate(zip(typed.outputs, typed.dtypes, strict=True)):
            made[number, o] = numbers[n], dtype
    found = [made[o] for o in outputs]
    return Typed(tuple(values), tuple(n for n, _ in found), tuple(dtype for _, dtype in found))
