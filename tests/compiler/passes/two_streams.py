"""Second implementation of asynchronous collectives: NumPy runs a planned program, and each acts at the worst moment.

A collective may read its operand and write its result at any time between its start and its wait. So it is run in three
ways: at once; as late as can be; and at once, but with rubbish in the result until it is waited for. Where operand and
result are in one place, that belongs to the collective between the two.

Example: %2 = all_reduce(%1), begun at step 3 and waited for at step 6. A plan that puts the result of step 4 in the
place of %1 gives right numbers at once and wrong ones late; one that reads %2 at step 5 is wrong with rubbish.
"""

import contextlib
from unittest import mock

import numpy as np

from tests.compiler.memory.plan_checker import of_graph, positions
from tinyarr import eager, views
from tinyarr.array import Array
from tinyarr.backends.numpy import collective
from tinyarr.compiler.interpret import run_call
from tinyarr.compiler.memory.plan import plan
from tinyarr.compiler.uses import is_collective, is_wait
from tinyarr.groups import Group
from tinyarr.program import Copy, Read, Write
from tinyarr.program import FusedPair as Joined

WAYS = ("at once", "late", "rubbish")


class Pair(Group):
    """Two ranks, of which the other says what this one does, and brings to collectives what `of_two` says."""

    def exchange(self, value):
        return [value, value]


ALONE, PAIR = Group((0,), 0, None, {}), Pair((0, 1), 0, None, {})


def of_two(name: str, x: np.ndarray, n: int, op: str = "sum", root: int = 0) -> np.ndarray:
    """What a collective makes on rank 0 of n, 1 or 2, where the other brings half of the same with the other sign."""
    if n == 1:
        return x
    other = (x * -0.5).astype(x.dtype)
    if name == "broadcast":
        return (x, other)[root]
    if name == "all_gather":
        return np.concatenate([x, other])
    total = {"max": np.maximum, "min": np.minimum}.get(op, np.add)(x, other)
    total = (total / 2).astype(x.dtype) if op == "mean" else total
    if name == "reduce":
        return total if root == 0 else np.zeros_like(total)
    return total[: len(total) // 2] if name == "reduce_scatter" else total


@contextlib.contextmanager
def simulated():
    """Collectives run in this process alone."""

    def begin(primitive, x, out, scratch, params):
        given = {key: params[key] for key in ("op", "root") if key in params}
        np.copyto(out, of_two(primitive.name, np.array(x), params["group"].size, **given))
        return lambda: None

    with mock.patch.object(collective, "begin", begin):
        yield


class TwoStreams:
    """What runs a graph, for Compiled's `build`."""

    def __init__(self, graph, way: str):
        self.graph, self.plan, self.way = graph, plan(graph), way
        self.under_way = {}  # by ticket: the node, the operand where it was read already, and the result's place

    def run(self, states, draws, numbers):
        graph = self.graph
        self.numbers = {v: x for (_, v), x in zip(graph.numbers, numbers)}
        self.numbers |= {v: x for (_, *pair), given in zip(graph.draws, draws) for v, x in zip(pair, given)}
        self.outside = {s.before: x for s, x in zip(graph.states, states)} | dict(graph.constants)
        results = [eager.empty(r.value.device, r.view.shape, r.value.dtype) for r in graph.results]
        self.memory = {("arena", 0): np.full(self.plan.arena, 0xFF, np.uint8)}
        self.memory |= {("state", i): flat_bytes(x) for i, x in enumerate(states)}
        self.memory |= {("constant", i): flat_bytes(x) for i, (_, x) in enumerate(graph.constants)}
        self.memory |= {("result", i): flat_bytes(x) for i, x in enumerate(results)}
        nodes = (node for node in graph.nodes if not isinstance(node, Write))
        for step in self.plan.steps:
            if isinstance(step, Copy):
                view = step.part or views.contiguous(step.read.view.shape)
                self.store(step.target, view, self.load(*step.read).reshape(view.shape))
            else:
                self.step(of_graph(step, nodes))
            self.disturb()
        assert not self.under_way, "what was begun was not waited for"
        for s, x in zip(graph.states, states):
            x.storage.version += s.after is not s.before
        return results

    def step(self, node):
        """node: as in the graph."""
        if is_collective(node) and "ticket" in node.call.params:
            self.begin(node)
        elif is_wait(node):
            started, operand, _ = self.under_way.pop(node.call.params["ticket"])
            if self.way != "at once":
                self.compute(started, operand)
            ((read,), (value,)) = node.inputs, node.outputs
            self.put(value, self.whole(read.value).reshape(value.shape))
        else:
            self.compute(node, None)

    def begin(self, node):
        (read,), (result,) = node.inputs, node.outputs
        (buffer, at), (other, operand_at) = self.where(result, self.layout(result)), self.where(*read)
        there = buffer, at, result.dtype.itemsize
        if self.way == "late" and buffer == other and np.intersect1d(at, operand_at).size:
            there = None
        operand = self.operand(read) if self.way == "rubbish" else None
        if self.way == "at once":
            self.compute(node, None)
        self.under_way[node.call.params["ticket"]] = node, operand, there
        self.disturb()

    def disturb(self):
        """What is not there yet may be anything."""
        for _, _, there in self.under_way.values():
            if self.way != "at once" and there is not None:
                buffer, at, itemsize = there
                self.memory[buffer][at[..., None] + np.arange(itemsize)] = 0xFF

    def compute(self, node, operand):
        """operand: of a collective that has read it already."""
        if isinstance(node, Joined):
            made = dict(zip(node.first.outputs, self.made(node.first, {})))
            known = {node.first.outputs[0]: made[node.first.outputs[0]]}
            made |= dict(zip(node.last.outputs, self.made(node.last, known)))
        else:
            outputs = self.made(node, {}) if operand is None else eager.run(node.call, [operand], None)
            made = dict(zip(node.outputs, outputs))
        for value in node.outputs:
            self.put(value, np.array(made[value].data).reshape(value.shape))

    def made(self, node, known):
        return run_call(node.call, [self.operand(x, known) for x in node.inputs])

    def operand(self, x, known=()):
        """Of a node: the value, row-major, seen as the graph says: what eager mode's kernel got."""
        if not isinstance(x, Read):
            return x
        if x.value in self.numbers:
            return self.numbers[x.value]
        if x.value in known:
            array = known[x.value]
        else:
            array = eager.empty(x.value.device, x.value.shape, x.value.dtype)
            array.data[...] = self.whole(x.value)
        return Array(array.storage, array.dtype, x.view.shape, x.view.strides, array.offset + x.view.offset)

    def layout(self, value):
        return self.plan.layout(value)

    def whole(self, value):
        return self.load(value, self.layout(value))

    def put(self, value, content):
        self.store(value, self.layout(value), content)

    def where(self, value, view):
        """The buffer that holds a value, and the first byte of each element of a view of it."""
        place = self.plan.place(value)
        return (place.buffer, place.number), place.offset + positions(view) * value.dtype.itemsize

    def load(self, value, view):
        if value in self.numbers:
            return np.array(self.numbers[value], value.dtype.numpy)
        buffer, at = self.where(value, view)
        each = self.memory[buffer][at[..., None] + np.arange(value.dtype.itemsize)]
        return np.ascontiguousarray(each).view(value.dtype.numpy).reshape(view.shape)

    def store(self, value, view, content):
        buffer, at = self.where(value, view)
        flat = np.ascontiguousarray(content, value.dtype.numpy).reshape(-1).view(np.uint8)
        itemsize = value.dtype.itemsize
        self.memory[buffer][at[..., None] + np.arange(itemsize)] = flat.reshape(*at.shape, itemsize)


def flat_bytes(x):
    """The memory of a dense array, from its first element on."""
    memory = x.storage.memory.reshape(-1).view(np.uint8)
    return memory[x.offset * x.dtype.itemsize :]
