"""The work of compiling grows with the number of operations, and no faster: counted as calls, not timed."""

import sys

import pytest

import tinyarr as ta
from tests.compiler.test_compile import outcome
from tinyarr import nn
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.lower import lower
from tinyarr.compiler.memory.plan import plan
from tinyarr.compiler.passes.fuse import MOST_OPERATIONS
from tinyarr.compiler.passes.order import ARRANGE, PASSES, SIMPLIFY
from tinyarr.compiler.passes.recompute import recompute
from tinyarr.compiler.passes.simplify import dead_code
from tinyarr.compiler.uses import is_elementwise


def chain(n):
    def function(x):
        for _ in range(n):
            x = x * 1.0001 + 0.5
        return x

    return function


def gradient_of_a_chain(n):
    def loss(x):
        for _ in range(n):
            x = ta.sin(x * 1.0001)
        return x.sum()

    return ta.grad(loss)


def recurrence(n):
    def loss(x):
        h, states = x, []
        for _ in range(n):
            h = ta.tanh(h @ x + x)
            states.append(h)
        return ta.stack(states).sum()

    return ta.grad(loss)


def branches(n):
    return lambda x: sum(ta.exp(x * float(i)) for i in range(n))


def steps_in_place(n):
    def function(x):
        for _ in range(n):
            x = ta.softmax(x)
        return x

    return function


def growing_concat(n):
    def function(x):
        made = x
        for i in range(n):
            made = ta.concat([made, x * float(i)])
        return made

    return function


def writes_of_parts(n):
    state = ta.zeros((n, 4))

    def function(x):
        for i in range(n):
            state[i] = state[i] * 0.5 + x[0]
        return state.sum()

    return function


def many_states(n):
    whole = ta.zeros((n, 4))
    states = [whole[i] for i in range(n)]

    def function(x):
        for state in states:
            state.assign(state * 0.5 + x[0])
        return x.sum()

    return function


def training(n):
    layers = [nn.Linear(4, 4) for _ in range(n // 4)]
    optimizer = ta.optim.AdamW([p for layer in layers for p in layer.parameters()], lr=1e-3)

    def function(x):
        for layer in layers:
            x = ta.tanh(layer(x))
        loss = (x * x).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return function


PROGRAMS = (
    chain, gradient_of_a_chain, recurrence, branches, steps_in_place, growing_concat, writes_of_parts, many_states,
    training,
)  # fmt: skip


class Counted(Exception):
    """Ends a compilation. calls: of Python and C functions, from the graph to the source."""

    def __init__(self, calls: int):
        self.calls = calls


def calls_of(function) -> int:
    count = 0

    def counted(*event):
        nonlocal count
        count += 1

    def begin(graph):
        sys.setprofile(counted)
        return graph

    def end(graph):
        backend = ta.Device("cpu").backend
        backend.scratch(graph, lower(plan(graph), backend))  # which writes the source
        raise Counted(count)

    try:
        with pytest.raises(Counted) as found:
            Compiled(function, [begin, *PASSES], end)(ta.ones((4, 4)))
    finally:
        sys.setprofile(None)
    return found.value.calls


@pytest.mark.parametrize("program", PROGRAMS)
def test_four_times_as_many_operations_take_four_times_as_many_calls(program):
    assert calls_of(program(160)) < 5 * calls_of(program(40))


def test_a_long_chain_is_a_few_functions_with_eager_bits():
    x = ta.ones((5, 7))
    for make in chain, gradient_of_a_chain:
        function = make(200)
        run = ta.compile(function)
        assert outcome(run, x) == outcome(Compiled(function, ()), x)
        kernels = run.programs[0].kernels
        assert len({k.name for k in kernels}) < 8 < len(kernels)
        assert all(operations(node) <= MOST_OPERATIONS for node in run.graphs[0].nodes if is_elementwise(node))


def operations(node):
    typed = node.call.primitive.typed(node.call.in_shapes, node.call.in_dtypes, node.call.params)
    return sum(v.op not in ("input", "constant") for v in typed.values)


@pytest.mark.parametrize("program", [steps_in_place, growing_concat])
def test_a_graph_may_be_deeper_than_the_recursion_limit(program):
    depth = sys.getrecursionlimit() + 100
    run = Compiled(program(depth), PASSES, Interpreter)
    run(ta.ones((1, 2)))
    assert str(run.graphs[0]).count("\n") >= depth
    assert str(run.memory[0]).startswith("arena")  # which writes the source too


@pytest.mark.filterwarnings("ignore:compile. memory_budget")
def test_a_budget_is_found_with_few_plans():
    arenas = []

    def taken(graph):
        for change in (dead_code, *ARRANGE):
            graph = change(graph)
        arenas.append(plan(graph).arena)
        return arenas[-1]

    def fit(graph):
        least = taken(recompute(graph, 0, taken))
        budget = (arenas[0] + least) // 2
        arenas.clear()
        return recompute(graph, budget, taken)

    Compiled(recurrence(40), [*SIMPLIFY, fit], Interpreter)(ta.ones((64, 64)))
    assert len(arenas) <= 4, "one without recomputation, and two where it just fits or does not"
