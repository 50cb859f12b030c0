"""Follows a plan with a name for each element instead of numbers: is what a step reads what the graph says it reads?"""

import itertools

import numpy as np

from tinyarr import views
from tinyarr.compiler.memory.layout import is_copy
from tinyarr.compiler.uses import is_elementwise, is_wait, nbytes
from tinyarr.program import Copy, FusedPair, Node, Read, Write

EMPTY = -1


def follow(graph, plan):
    """Raises AssertionError at the first step that reads something else, or writes over what it still reads."""
    Follower(graph, plan).run()


def positions(view):
    """Of each element of a view, counted from where its value begins."""
    steps = [np.arange(n).reshape([-1 if a == b else 1 for b in range(len(view.shape))]) * s
             for a, (n, s) in enumerate(zip(view.shape, view.strides))]  # fmt: skip
    return np.broadcast_to(view.offset + sum(steps, np.zeros(view.shape, np.int64)), view.shape)


def inside(node, shape):
    """For each operand of a concat or unslice, the part of the output that it becomes."""
    params, at = node.call.params, 0
    for x in node.inputs:
        if node.call.primitive.name == "unslice":
            axes = zip(params["starts"], x.view.shape, params["steps"], strict=True)
            yield np.ix_(*(a + s * np.arange(n) for a, n, s in axes))
        else:
            axis, start, at = params["axis"], at, at + x.view.shape[params["axis"]]
            yield tuple(slice(start, at) if a == axis else slice(None) for a in range(len(shape)))


def given(graph):
    values = [s.before for s in graph.states] + [v for v, _ in graph.constants] + [v for _, v in graph.numbers]
    return [*values, *(v for _, *pair in graph.draws for v in pair)]


def names(graph):
    """The names of every value's elements, in row-major order. What copies an element has its name."""
    count, found = itertools.count(1), {}

    def new(value):
        found[value] = np.array([next(count) for _ in range(views.size(value.shape))], np.int64)

    for value in given(graph):
        new(value)
    for node in graph.nodes:
        if isinstance(node, Write):
            found[node.output] = found[node.old].copy()
            found[node.output][positions(node.view).reshape(-1)] = found[node.new]
        elif is_copy(node) or is_wait(node):
            (x,), (value,) = node.inputs, node.outputs
            found[value] = found[x.value][positions(x.view)].reshape(-1)
        elif isinstance(node, Node) and node.call.primitive.name in ("concat", "unslice"):
            (value,) = node.outputs
            made = np.zeros(value.shape, np.int64)
            for x, part in zip(node.inputs, inside(node, value.shape)):
                made[part] = found[x.value][positions(x.view)]
            found[value] = made.reshape(-1)
        else:
            for value in node.outputs if isinstance(node, Node) else (*node.first.outputs, *node.last.outputs):
                new(value)
    return found


def of_graph(step, nodes):
    """The node that a step is. A plan may leave out copies that are before it: their readers find them done."""
    for node in nodes:
        if node.outputs == step.outputs:
            return node
        assert is_copy(node), f"{node} is left out"
    raise AssertionError(f"{step} is not in the graph")


class Follower:
    def __init__(self, graph, plan):
        self.graph, self.plan, self.names = graph, plan, names(graph)
        self.sizes, self.largest = {("arena", 0): plan.arena}, max(map(nbytes, plan.locations), default=0)
        self.memory = {}
        for value in given(graph):
            self.store(value, views.contiguous(value.shape), self.names[value])

    def run(self):
        nodes = iter([node for node in self.graph.nodes if not isinstance(node, Write)])
        for number, step in enumerate(self.plan.steps):
            self.step(None if isinstance(step, Copy) else of_graph(step, nodes), step, f"step {number}: {step}")
        left = list(nodes)
        assert all(map(is_copy, left)), left
        for i, s in enumerate(self.graph.states):
            ends = self.bytes_of(("state", i))[np.arange(views.size(s.after.shape)) * s.after.dtype.itemsize]
            assert np.array_equal(ends, self.names[s.after]), f"state {i}"
        for i, x in enumerate(self.graph.results):
            ends = self.bytes_of(("result", i))[np.arange(views.size(x.view.shape)) * x.value.dtype.itemsize]
            assert np.array_equal(ends, self.names[x.value][positions(x.view)].reshape(-1)), f"result {i}"

    def step(self, node, step, title):
        """Runs a step of the plan; node: what it is in the graph, None for a copy."""
        if node is None:
            self.copy(step, title)
        else:
            self.node(node, step, title)

    def bytes_of(self, buffer):
        if buffer not in self.memory:
            self.memory[buffer] = np.full(self.sizes.get(buffer, self.largest), EMPTY)
        return self.memory[buffer]

    def where(self, value, view):
        """The buffer that holds a value, and the first byte of each element of a view of it."""
        place = self.plan.place(value)
        return (place.buffer, place.number), place.offset + positions(view) * value.dtype.itemsize

    def load(self, value, view):
        buffer, at = self.where(value, view)
        return self.bytes_of(buffer)[at]

    def store(self, value, view, content):
        self.put(*self.where(value, view), value.dtype, content)

    def put(self, buffer, at, dtype, content):
        for byte in range(dtype.itemsize):
            self.bytes_of(buffer)[at + byte] = EMPTY
        self.bytes_of(buffer)[at] = content.reshape(at.shape)

    def layout(self, value):
        return self.plan.layout(value)

    def overlap(self, x, y):
        (one, a), (other, b) = x, y
        return one == other and len(np.intersect1d(a, b)) > 0

    def copy(self, step, title):
        view = step.part or views.contiguous(step.read.view.shape)
        x, y = self.where(*step.read), self.where(step.target, view)
        assert not self.overlap(x, y) or np.array_equal(x[1].reshape(-1), y[1].reshape(-1)), title
        if step.read.value in self.names and self.layout(step.read.value) == views.contiguous(step.read.value.shape):
            expected = self.names[step.read.value][positions(step.read.view)]
            assert np.array_equal(self.load(*step.read), expected), title
        self.store(step.target, view, self.load(*step.read))

    def node(self, node, step, title):
        """node: of the graph; step: the same, reading each value as it lies."""
        pairs = [(node, step)] if isinstance(node, Node) else [(node.first, step.first), (node.last, step.last)]
        unread = set(node.first.outputs) if isinstance(node, FusedPair) else set()
        reads = []
        for part, laid in pairs:
            for i, (asked, x) in enumerate(zip(part.inputs, laid.inputs)):
                if not isinstance(x, Read) or x.value in unread:
                    continue
                found, expected = self.load(*x), self.names[asked.value][positions(asked.view)]
                assert np.array_equal(found.reshape(-1), expected.reshape(-1)), title
                if not self.plan.is_part(x.value):
                    reads.append((part, i, x))
                else:
                    assert node.call.primitive.name in ("concat", "unslice"), title
        names_it = is_copy(node) or is_wait(node)
        if not (names_it and self.plan.place(node.outputs[0]) == self.plan.place(step.inputs[0].value)):
            for value in step.outputs:
                assert all(self.may_overwrite(value, *read) for read in reads), title
        if node.call.primitive.name in ("concat", "unslice"):
            (value,) = node.outputs
            for x, part in zip(node.inputs, inside(node, value.shape)):
                if self.plan.is_part(x.value):
                    there = self.load(value, self.layout(value))[part]
                    assert np.array_equal(there, self.names[value].reshape(value.shape)[part]), title
        for value in step.outputs:
            self.store(value, self.layout(value), self.names[value])

    def may_overwrite(self, value, part, number, x):
        """Whether the memory of what a node makes is apart from an operand, or each element read just for its own."""
        operand, target = self.where(*x), self.where(value, self.layout(value))
        if not self.overlap(operand, target):
            return True
        if not is_elementwise(part):
            first = part.call.primitive.overwrites == number and value is part.outputs[0]
            return first and np.array_equal(operand[1], target[1])
        shape = part.call.out_shapes[0]
        shown = views.reshape(self.layout(value), shape)
        is_made = shown is not None and value in part.outputs
        return is_made and np.array_equal(np.broadcast_to(operand[1], shape), self.where(value, shown)[1])
