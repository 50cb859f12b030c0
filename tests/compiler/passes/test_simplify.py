"""What the passes leave out; that they change no bit is tested with everything else in test_compile.py."""

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyarr as ta
from tinyarr import Tensor
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.passes.simplify import common_subexpressions, dead_code, join_writes
from tinyarr.program import Write


def names(compiled):
    (graph,) = compiled.graphs
    return [node.call.primitive.name for node in graph.nodes]


def test_equal_calls_are_made_once():
    def function(x):
        return (x * 2) + (x * 2), x * 2.0, x[1:] * 2, x[1:].exp() + x[1:].exp()

    compiled = Compiled(function, (common_subexpressions,))
    compiled(Tensor([1.0, 2.0]))
    assert sorted(names(compiled)) == ["add", "add", "exp", "multiply", "multiply", "multiply"]


def test_zeros_of_both_signs_and_numbers_of_all_kinds_are_told_apart():
    compiled = Compiled(lambda x: (x / 0.0, x / -0.0, x + 1, x + 1.0, x + True), (common_subexpressions,))
    assert [t.item() for t in compiled(Tensor([1.0]))] == [float("inf"), float("-inf"), 2, 2, 2]
    assert len(names(compiled)) == 5


def test_draws_are_not_equal_calls():
    compiled = Compiled(lambda: (ta.rand(3), ta.rand(3)), (common_subexpressions,))
    a, b = compiled()
    assert a.tolist() != b.tolist()


def test_what_nothing_needs_is_not_computed():
    state = Tensor([1.0])

    def function(x):
        x.exp().sum()
        state.assign(state * 3)
        state.assign(x + 1)
        return x * 2

    compiled = Compiled(function, (dead_code,))
    assert compiled(Tensor([2.0])).item() == 4 and state.item() == 3
    assert names(compiled) == ["add", "copy", "multiply"]


def test_the_gradient_of_an_embedding_is_added_row_by_row():
    table, tokens = Tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [0.0, 0.0]]), Tensor([[2, 0], [2, 2]])

    def gradient(x):
        def loss(table):
            return (ta.embedding(table[:3], tokens) * x).sum() + (table * table).sum()

        return ta.grad(loss)(table)

    x = Tensor([[[0.1, 1e8], [3.0, 1.0]], [[0.7, 1.0], [1.1, -1e8]]])
    for compiled in (Compiled(gradient, build=Interpreter), Compiled(gradient)):
        assert compiled(x).tolist() == gradient(x).tolist()
        assert "index_add" in names(compiled) and "take_gradient" not in names(compiled)


@settings(max_examples=30)
@given(st.data())
def test_writes_that_replace_all_of_a_memory_are_one_join(data):
    """In any order, some twice, with what is read between them; bits and the memory are those of eager mode."""
    cuts = sorted(data.draw(st.sets(st.integers(1, 11), max_size=4)) | {0, 12})
    parts = [slice(a, b) for a, b in itertools.pairwise(cuts)]
    written = data.draw(st.lists(st.sampled_from(parts), max_size=4))
    written = data.draw(st.permutations(parts + written))[: data.draw(st.integers(1, 12))]
    read = data.draw(st.lists(st.tuples(st.integers(0, 11), st.integers(1, 12)), min_size=12, max_size=12))

    def function(memory, x):
        found = []
        for i, (part, (start, end)) in enumerate(zip(written, read)):
            memory[part] = memory[part] * 2 + x[part] + i
            found.append(memory[start:end] + 1)
        return found, memory * 2

    def outcome(run):
        memory, x = Tensor(np.arange(12.0)), Tensor(np.linspace(-3, 5, 12))
        found, last = run(memory, x)
        return [t.tolist() for t in (*found, last, memory)]

    compiled = Compiled(function, (join_writes, dead_code), Interpreter)
    assert outcome(compiled) == outcome(function) == outcome(ta.compile(function))


def test_the_join_of_writes_reads_what_was_there_before():
    def function(memory, x):
        for part in (slice(0, 4), slice(4, 8)):
            ta.add(memory[part], x[part], out=memory[part])

    compiled = Compiled(function, (join_writes, dead_code))
    memory = Tensor(np.ones(8))
    compiled(memory, Tensor(np.arange(8.0)))
    assert names(compiled) == ["add", "add", "concat"] and memory.tolist() == list(range(1, 9))


def test_writes_of_a_part_stay_writes():
    def function(memory, x):
        ta.add(memory[:4], x[:4], out=memory[:4])
        return memory[4:] * 2

    compiled = Compiled(function, (join_writes, dead_code))
    compiled(Tensor(np.ones(8)), Tensor(np.ones(8)))
    (graph,) = compiled.graphs
    assert sum(isinstance(node, Write) for node in graph.nodes) == 1
    assert graph.nodes[-1].inputs[0].value is graph.nodes[1].output  # read behind the write, which so can be in place
