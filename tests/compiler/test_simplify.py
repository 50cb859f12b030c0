"""What the passes leave out; that they change no bit is tested with everything else in test_compile.py."""

import tinyarr as ta
from tinyarr import Tensor
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.simplify import common_subexpressions, dead_code


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
