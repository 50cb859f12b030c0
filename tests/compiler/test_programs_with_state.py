"""Random programs that write and replace state, compiled in every way: in C and NumPy, without passes, on a budget."""

import warnings
from functools import partial

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tinyarr as ta
from tinyarr import Tensor
from tinyarr.compiler import Compiled, Interpreter
from tinyarr.compiler.passes import passes_within

N = 6


def padded(x):
    """x (N, N) but its first and last row, inside zeros: the gradient of a slice."""
    _, pull = ta.vjp(lambda t: t[1 : N - 1], ta.zeros((N, N), dtype=ta.float64))
    return pull(x[1 : N - 1] * 2)[0]


# What is made of two values a and b (N, N) and an integer i.
MAKERS = {
    "add": lambda a, b, i: a + b,
    "multiply": lambda a, b, i: a * b,
    "select": lambda a, b, i: ta.where(a > b, a, b * 0.3),
    "product": lambda a, b, i: a @ b,
    "rows joined": lambda a, b, i: ta.concat([a, b], axis=0)[i : N + i],
    "columns joined": lambda a, b, i: ta.concat([a, b], axis=1)[:, N - i : 2 * N - i] * 1.0,
    "turned": lambda a, b, i: a.T,
    "copied": lambda a, b, i: ta.copy(a.T if i % 2 else a),
    "permuted": lambda a, b, i: a.reshape((N // 2, 2, N)).permute_dims((1, 0, 2)).reshape((N, N)),
    "stacked": lambda a, b, i: ta.stack([a, b], axis=i % 3).sum(axis=i % 3),
    "padded": lambda a, b, i: padded(a),
    "scaled by a sum": lambda a, b, i: a * ta.sum(b * a, axis=i % 2, keepdims=True) * 0.1,
    "normalized": lambda a, b, i: ta.layer_norm(a + b * 0.1, ta.ones(N, dtype=ta.float64), b[0]),
    "softmax": lambda a, b, i: ta.softmax(a * 0.3 + b),
    "row added": lambda a, b, i: a + b[i],
}
WRITERS = {
    "assign": lambda state, name, a, i: state[name].assign(a),
    "write a row": lambda state, name, a, i: state[name].__setitem__(i, a[0]),
    "replace": lambda state, name, a, i: state.__setitem__(name, a * 1.5),
}
NAMES = ("s", "t", "u")


def run(steps, x, state):
    """The last value, one in the middle, and views of some."""
    values, views = [x, x * 0.5], []
    for kind, first, second, i in steps:
        a, b = values[first % len(values)], values[second % len(values)]
        if kind in MAKERS:
            values.append(ta.tanh(MAKERS[kind](a, b, i)))
        elif kind in WRITERS:
            WRITERS[kind](state, NAMES[i % 3], a, i)
        elif kind == "read":
            values.append(state[NAMES[i % 3]] * (1.0 if i % 2 else a))
        else:
            views.append(a.T if i % 2 else a[1:])
    return [values[-1], values[len(values) // 2], *views]


def outcome(function, inputs) -> list[np.ndarray]:
    """All results of two calls, and the state after each."""
    state = {name: Tensor(np.full((N, N), 0.1 * k + 0.1)) for k, name in enumerate(NAMES)}
    found = []
    for x in inputs:
        found += [np.array(t.numpy()) for t in function(x, state)]
        found += [np.array(state[name].numpy()) for name in NAMES]
    return found


kinds = st.sampled_from([*MAKERS, *WRITERS, "read", "read", "return a view"])
numbers = st.integers(0, 99)
programs = st.lists(st.tuples(kinds, numbers, numbers, st.integers(0, N - 1)), min_size=4, max_size=16)


@settings(max_examples=15, phases=[Phase.generate], deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(programs, st.integers(0, 99))
def test_programs_with_state_are_eager_mode(steps, seed):
    rng = np.random.default_rng(seed)
    inputs = [Tensor(rng.standard_normal((N, N))) for _ in range(2)]
    function = partial(run, steps)
    expected = outcome(function, inputs)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "compile: memory_budget")
        for passes in (passes_within(None), passes_within(0)):
            exact = outcome(Compiled(function, passes, Interpreter), inputs)
            assert all(map(partial(np.array_equal, equal_nan=True), exact, expected))
        in_c = [outcome(Compiled(function, passes), inputs) for passes in ((), passes_within(None), passes_within(0))]
    assert [x.tobytes() for x in in_c[0]] == [x.tobytes() for x in in_c[1]] == [x.tobytes() for x in in_c[2]]
    for found, right in zip(in_c[0], expected, strict=True):  # each value is at most 1, and of few roundings
        np.testing.assert_allclose(found, right, rtol=1e-9, atol=1e-9)
