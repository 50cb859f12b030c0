"""The planner: which values share their bytes, and how much memory all take."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyarr as ta
from tests.compiler.memory.plan_checker import follow
from tests.compiler.test_compile import outcome
from tinyarr import views
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.memory.layout import in_order_of, read_in
from tinyarr.compiler.memory.plan import _stretches, allocate, plan
from tinyarr.program import Copy, Stretch, Value
from tinyarr.views import View


def planned(function, *inputs):
    """The steps that are left by name, and the arena. The plan, and what the program computes, are checked."""
    run = ta.compile(function)
    found = outcome(run, *inputs)
    (graph,) = run.graphs
    assert graph.states or found == outcome(Compiled(function, build=Interpreter), *inputs)
    follow(graph, plan(graph))
    found = plan(graph)
    return ["copy" if isinstance(s, Copy) else s.call.primitive.name for s in found.steps], found.arena


def weights_and_data():
    rng = np.random.default_rng(0)
    return [ta.Tensor(rng.integers(-3, 4, shape).astype(np.float32)) for shape in ((8, 32), (8, 16), (32, 16))]


def test_transposed_gradients_are_made_in_their_places_in_a_segment():
    x, g, _ = weights_and_data()
    bias = ta.Tensor(np.arange(16, dtype=np.float32))

    def gradients(x, g):
        weight = ta.copy((x.T @ g).T)  # the gradient of a weight (16, 32)
        return ta.concat([ta.reshape(weight, (-1,)), ta.sum(g, axis=0) * bias])

    names, arena = planned(gradients, x, g)
    assert "copy" not in names
    assert arena < 2 * 16 * 4 + 512, "the sum of g alone"


def test_a_transposed_product_is_made_in_columns_of_a_matrix():
    x, g, _ = weights_and_data()
    names, arena = planned(lambda x, g: ta.concat([(x.T @ g).T, g @ (x.T @ g).T], axis=0).sum(axis=1), x, g)
    columns, _ = planned(lambda x, g: ta.concat([ta.copy((x.T @ g).T), (g.T @ x) * 2], axis=1) @ ta.ones((64, 2)), x, g)
    assert "copy" not in names + columns


def test_a_sum_is_made_over_its_operand_in_a_part():
    x, g, w = weights_and_data()

    def joined(x, g, w):
        product = x.T @ g
        taken = ta.exp(product[:4] * 0) @ ta.ones((16, 1))  # so that the sum is no epilogue
        return ta.concat([ta.reshape(ta.where(product > 0, product, -w), (-1,)), ta.reshape(taken, (-1,))])

    names, arena = planned(joined, x, g, w)
    assert arena < 4 * 32 * 16, "the product is made in the result"


def test_parts_are_added_to_state_in_place():
    state = ta.zeros((64,))
    x = ta.Tensor(np.arange(64, dtype=np.float32).reshape((8, 8)))

    def accumulate(x):
        a, b = x[:4] @ x, x[4:] @ x
        state.assign(ta.concat([state[:32] + ta.reshape(a, (-1,)), state[32:] + ta.reshape(b, (-1,))]))
        return a

    names, arena = planned(accumulate, x)
    assert "copy" not in names and arena <= 2 * 128


def test_an_addition_to_other_positions_of_state_is_not_made_in_place():
    state = ta.Tensor(np.arange(64, dtype=np.float32))
    x = ta.Tensor(np.ones(64, np.float32))

    def swap(x):
        state.assign(ta.concat([state[32:] * x[:32], state[:32] + x[32:]]))
        return state + 0

    names, _ = planned(swap, x)
    assert "copy_add" in names


def test_a_narrow_operand_is_not_overwritten_by_a_wider_result_of_as_many_bytes():
    x = ta.Tensor(np.arange(64 * 64, dtype=np.float32).reshape((64, 64)) % 7)

    def widened(x):
        half = x.astype(ta.bfloat16)
        product = half @ half
        wide = ta.reshape(product, (-1,))[: 32 * 64].astype(ta.float32)
        return wide @ ta.reshape(x, (-1,))[: 32 * 64], wide * 2

    planned(widened, x)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_value_that_is_made_in_an_order_shows_it_there(data):
    shape = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple))
    axes = data.draw(st.permutations(range(len(shape))))
    seen = views.permute(views.contiguous(shape), tuple(axes))
    wider = tuple(n + data.draw(st.integers(0, 2)) for n in seen.shape)
    strides = views.contiguous_strides(wider)
    layout = in_order_of(shape, seen, strides)
    if layout is not None:
        assert [s for s, n in zip(read_in(layout, seen).strides, seen.shape) if n > 1] == [
            s for s, n in zip(strides, seen.shape) if n > 1
        ]
    assert layout is not None or wider != seen.shape, "a dense order can always be had"


ROOT = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 900)), min_size=1, max_size=3)


@settings(max_examples=100, deadline=None)
@given(st.lists(ROOT, max_size=25))
def test_what_is_needed_together_is_apart(roots):
    lives = {}
    for number, parts in enumerate(roots):
        ends = np.cumsum([0, *(n for *_, n in parts)]).tolist()
        last = max(max(a, b) for a, b, _ in parts)
        value = Value(number, (ends[-1],), ta.uint8, ta.Device("cpu"))
        lives[value] = [Stretch(low, high, a, last) for low, high, (a, *_) in zip(ends, ends[1:], parts)]
    offsets, size = allocate(lives)
    assert all(offsets[v] % 128 == 0 and offsets[v] + v.shape[0] <= size for v in lives)
    taken = [(v, s._replace(low=offsets[v] + s.low, high=offsets[v] + s.high)) for v in lives for s in lives[v]]
    for (v, a), (w, b) in itertools.combinations(taken, 2):
        assert v is w or a.last < b.first or b.last < a.first or a.high <= b.low or b.high <= a.low


def test_the_example_of_an_allocation():
    sizes_and_lives = ((1024, 0, 1), (512, 1, 2), (256, 2, 3))
    lives = {Value(i, (n,), ta.uint8, ta.Device("cpu")): [Stretch(0, n, *life)]
             for i, (n, *life) in enumerate(sizes_and_lives)}  # fmt: skip
    offsets, size = allocate(lives)
    assert list(offsets.values()) == [0, 1024, 0] and size == 1536


def test_the_memory_of_a_join_is_free_until_its_parts_are_made():
    assert _stretches([(5, 0, 24), (0, 0, 16), (3, 16, 24)]) == [(0, 16, 0), (16, 24, 3)]
    x = ta.Tensor(np.arange(64, dtype=np.float32).reshape((8, 8)) % 3)

    def products(x):
        found, y = [], x
        for _ in range(6):
            y = y @ x
            found.append(y + x.T)
        return ta.concat(found) @ x

    _, arena = planned(products, x)
    assert arena <= (6 + 2) * 256


def test_the_example_of_a_layout():
    layout = View((2, 3), (1, 2), 0)
    assert read_in(layout, View((2,), (3,), 2)) == View((2,), (1,), 4)
    assert in_order_of((3, 4), View((4, 3), (1, 4)), (3, 1)) == View((3, 4), (1, 3))
    assert in_order_of((3, 4), View((4, 3), (1, 4)), (8, 1)) == View((3, 4), (1, 8))


pytestmark = pytest.mark.filterwarnings("error")
