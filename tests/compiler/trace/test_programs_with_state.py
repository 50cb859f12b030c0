"""Random programs that write and replace state, compiled in every way: in C and NumPy, without passes, on a budget."""

import warnings
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.compiler.devices import CUDA, GUARDED, OWN_KERNELS, calls, exact, examples
from tests.compiler.memory.plan_checker import follow
from tinyarr import Tensor
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.memory.plan import plan
from tinyarr.compiler.passes.order import passes_within
from tinyarr.ops.create import _copy
from tinyarr.program import Copy

N = 6
WAYS = ["cpu", CUDA, OWN_KERNELS, GUARDED]


def padded(x):
    """x (N, N) but its first and last row, inside zeros: the gradient of a slice."""
    _, pull = ta.vjp(lambda t: t[1 : N - 1], ta.zeros((N, N), dtype=ta.float64))
    return pull(x[1 : N - 1] * 2)[0]


def picked(x, i):
    """The gradient of rows of a part of x."""
    _, pull = ta.vjp(lambda t: ta.embedding(t[:, 1:4].reshape((N // 2, N)), Tensor([0, i % 3, 0])), x.detach())
    return pull(x[:3])[0]


# What is made of two values a and b (N, N) and an integer i.
MAKERS = {
    "add": lambda a, b, i: ta.tanh(a + b),
    "multiply": lambda a, b, i: ta.tanh(a * b),
    "select": lambda a, b, i: ta.where(a > b, a, b * 0.3),
    "product": lambda a, b, i: ta.tanh(a @ b),
    "rows joined": lambda a, b, i: ta.concat([a, b], axis=0)[i : N + i],
    "columns joined": lambda a, b, i: ta.concat([a, b], axis=1)[:, N - i : 2 * N - i] * 1.0,
    "turned": lambda a, b, i: a.T,
    "copied": lambda a, b, i: ta.copy(a.T if i % 2 else a),
    "permuted": lambda a, b, i: a.reshape((N // 2, 2, N)).permute_dims((1, 0, 2)).reshape((N, N)),
    "stacked": lambda a, b, i: ta.stack([a, b], axis=i % 3).sum(axis=i % 3),
    "padded": lambda a, b, i: padded(a),
    "scaled by a sum": lambda a, b, i: ta.tanh(a * ta.sum(b * a, axis=i % 2, keepdims=True) * 0.1),
    "normalized": lambda a, b, i: ta.layer_norm(a + b * 0.1, ta.ones(N, dtype=ta.float64), b[0]),
    "softmax": lambda a, b, i: ta.softmax(a * 0.3 + b),
    "row added": lambda a, b, i: ta.tanh(a + b[i]),
    "softmax turned": lambda a, b, i: ta.softmax(a).T,
    "in another shape": lambda a, b, i: ((a * 2).reshape((4, 9)) + b.reshape((4, 9))).reshape((N, N)),
    "a vector normalized": lambda a, b, i: a + ta.layer_norm(b[i] * 2, b[i], a[i]),
    "rows picked": lambda a, b, i: ta.tanh(a + picked(b, i)),
    "positions": lambda a, b, i: a * ta.arange(N, dtype=ta.float64).reshape((N, 1) if i % 2 else (N,)),
}
WRITERS = {
    "assign": lambda state, name, a, i: state[name].assign(a),
    "write a row": lambda state, name, a, i: state[name].__setitem__(i, a[0]),
    "write columns": lambda state, name, a, i: state[name].T.__setitem__(slice(1, i + 1), a[:i]),
    "replace": lambda state, name, a, i: state.__setitem__(name, a * 1.5),
}
NAMES = ("s", "t", "u")


def run(steps, x, state):
    """The last value, one in the middle, and views of some."""
    values, views = [x, x * 0.5], []
    for kind, first, second, i in steps:
        a, b = values[first % len(values)], values[second % len(values)]
        if kind in MAKERS:
            values.append(MAKERS[kind](a, b, i))
        elif kind in WRITERS:
            WRITERS[kind](state, NAMES[i % 3], a, i)
        elif kind == "read":
            values.append(state[NAMES[i % 3]] * (1.0 if i % 2 else a))
        else:
            views.append(a.T if i % 2 else a[1:])
    return [values[-1], values[len(values) // 2], *views]


def outcome(function, inputs) -> list[np.ndarray]:
    """All results of some calls, and the state after each."""
    state = {name: Tensor(np.full((N, N), 0.1 * k + 0.1)) for k, name in enumerate(NAMES)}
    found = []
    for x in inputs:
        found += [np.array(t.numpy()) for t in function(x, state)]
        found += [np.array(state[name].numpy()) for name in NAMES]
    return found


kinds = st.sampled_from([*MAKERS, *WRITERS, "read", "read", "return a view"])
numbers = st.integers(0, 99)
programs = st.lists(st.tuples(kinds, numbers, numbers, st.integers(0, N - 1)), min_size=4, max_size=16)


def check(function, seed):
    """The function in every way of running it, some times each, beside eager mode."""
    with ta.use_device("cpu"):
        x = Tensor(np.random.default_rng(seed).standard_normal((N, N)))
    inputs = [x for (x,) in calls([x])]
    expected = outcome(function, inputs)
    planned = Compiled(function, build=Interpreter)
    outcome(planned, inputs[:1])
    budgets = None, planned.memory[0].arena // 2, 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "compile: memory_budget")
        for passes in ((), *map(passes_within, budgets)):
            found = outcome(Compiled(function, passes, exact()), inputs)
            assert all(map(partial(np.array_equal, equal_nan=True), found, expected))
        if ta.default_device().kind == "cpu":
            check_in_c(function, inputs, expected)


def check_in_c(function, inputs, expected):
    ways = [Compiled(function, passes) for passes in ((), passes_within(None), passes_within(0))]
    in_c = [outcome(way, inputs) for way in ways]
    for graph in (graph for way in ways for graph in way.graphs):
        follow(graph, plan(graph))
    assert [x.tobytes() for x in in_c[0]] == [x.tobytes() for x in in_c[1]] == [x.tobytes() for x in in_c[2]]
    for found, right in zip(in_c[0], expected, strict=True):  # each value is small, and of few roundings
        np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-9)


@pytest.mark.property
@pytest.mark.parametrize("device", WAYS, indirect=True)
def test_programs_with_state_are_eager_mode(device):
    @examples(15, 12)
    @given(programs, st.integers(0, 99))
    def check_one(steps, seed):
        check(partial(run, steps), seed)

    check_one()


def normalized_by_what_it_is_made_of(x, state):
    z = ta.sum(x, axis=0)
    y = z * 2
    return ta.layer_norm(y, z, x[0]), ta.cumulative_sum(y, axis=0)


def read_under_two_names(x, state):
    y = x @ x
    return [(ta.copy(y.T) + y) @ x]


def stored_transposed(x, state):
    state["s"].assign(ta.softmax(state["s"]).T)
    return [x]


def gradient_of_rows_in_another_shape(x, state):
    w = x.detach()
    w.requires_grad = True
    rows = ta.embedding(w[:, 1:4].reshape((N // 2, N)), Tensor([1, 2, 2]))
    (ta.sum(rows**2) + ta.sum(w * w * w)).backward()
    return [w.grad]


def views_of_what_is_copied_transposed(x, state):
    a, b = x[:4].reshape((2, 3, 4)), x[2:].reshape((2, 4, 3))[:, :, :2]
    y = (a @ b).reshape((6, 2))
    return ta.copy(y.T) * 1.0, y[1:5] * 2.0


def read_in_another_shape_and_kept(x, state):
    y = x * 2
    return y, y.reshape((4, 9)) + 1, y + 2, ta.sum(y.reshape((9, 4)), axis=0)


def joined_and_read_in_another_shape(x, state):
    y = x * 2
    return ta.concat([y, x], axis=1), ta.concat([x, y.reshape((4, 9)).reshape((N, N)).T], axis=0)


def written_a_part_at_a_time(x, state):
    s = state["s"]
    s[0] = x[0]
    s[2] = x[1] + s[0]
    s[:, 3] = x[2]
    old = s[1] * 2
    s[1] = x[3]
    return [old]


def made_over_itself(x, state):
    state["s"].assign(ta.softmax(ta.softmax(state["s"])))
    return [x]


def made_over_itself_but_read_meanwhile(x, state):
    once = ta.softmax(state["s"])
    product = x @ state["s"]
    state["s"].assign(ta.softmax(once))
    return [product]


def made_over_what_is_read_later(x, state):
    once = ta.softmax(state["s"])
    state["s"].assign(ta.softmax(once))
    return [x @ once]


def of_what_does_not_lie_in_rows(x, state):
    y = x * 2
    whole = ta.cumulative_sum(y[::-1], axis=0), ta.softmax(y.T)
    return *whole, y[:, ::2] @ y[1:4], ta.take(y.T, Tensor([3, 0]), axis=0), ta.layer_norm(y.T[1:], x[:, 0], y[:, 1])


def written_in_part_and_kept_whole(x, state):
    for name in NAMES:
        state[name].assign(x)
    state["s"][1] = x[0]
    return [x]


def of_one_number(x, state):
    y = x[0, 0] * 2
    return y, ta.sum(y), ta.max(y * 3), y + x


SPECIAL = (
    made_over_itself, made_over_itself_but_read_meanwhile, made_over_what_is_read_later,
    normalized_by_what_it_is_made_of, read_under_two_names, stored_transposed, gradient_of_rows_in_another_shape,
    views_of_what_is_copied_transposed, read_in_another_shape_and_kept, joined_and_read_in_another_shape,
    written_a_part_at_a_time, written_in_part_and_kept_whole, of_what_does_not_lie_in_rows, of_one_number,
)  # fmt: skip


@pytest.mark.parametrize("device", WAYS, indirect=True)
@pytest.mark.parametrize("function", SPECIAL, ids=lambda f: f.__name__)
def test_what_reads_a_value_in_an_unusual_way_is_eager_mode(function, device):
    check(function, 0)


def test_what_becomes_state_is_made_in_its_memory_from_the_first_step_on():
    state = ta.zeros((N, N))

    @ta.compile
    def compiled():
        state.assign(ta.softmax(ta.softmax(ta.softmax(state))))

    compiled()
    planned = plan(compiled.graphs[0])
    assert planned.arena == 0 and not any(isinstance(step, Copy) for step in planned.steps)


def test_writing_parts_of_state_copies_the_rest_of_it_at_no_time():
    """And if all parts are written, they are made there."""
    for rows, expected in ((N - 1, N - 1), (N, 0)):
        state = ta.zeros((N, N))

        def step(x, state=state, rows=rows):
            for row in range(rows):
                state[row] = x * row

        compiled = ta.compile(step)
        compiled(ta.ones(N))
        copies = [k.call.outputs[0] for k in compiled.programs[0].kernels if k.call.call.primitive is _copy]
        assert len(copies) == expected and all(copy.shape == (N,) for copy in copies)
        assert state.tolist() == [[float(row % rows)] * N if row < rows else [0.0] * N for row in range(N)]
