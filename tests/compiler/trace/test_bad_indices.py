"""Bad indices in compiled functions: they end a program with OutOfBounds, on any number of threads."""

import os
import subprocess
import sys

import numpy as np
import pytest

import tinyarr as ta
from tests.tiers import slow
from tinyarr import Tensor
from tinyarr.errors import OutOfBounds


@pytest.mark.parametrize("times", [10, slow(40)])
def test_a_bad_index_ends_a_program_on_many_threads(times):
    code = """if True:
        import sys
        import tinyarr as ta
        from tinyarr.errors import OutOfBounds

        def twice(table, i, j):
            return ta.take(table, i, axis=0) + ta.take(table, j, axis=0)

        def loss(table, i, j):
            hidden = ta.embedding(table, i) + ta.embedding(table, j)
            return ta.cross_entropy(hidden @ table.T, j)

        table, good = ta.ones((500, 32)), ta.arange(500)
        bad = ta.concat([good[:-1], ta.Tensor([500])])
        for function in ta.compile(twice), ta.compile(ta.value_and_grad(loss)):
            for i, j in [(good, bad), (bad, bad), (bad, good)] * int(sys.argv[1]):
                try:
                    function(table, i, j)
                except OutOfBounds as error:
                    assert "index 499 is 500" in str(error), error
                else:
                    raise AssertionError("no error")
            function(table, good, good)
    """
    command = [sys.executable, "-c", code, str(times)]
    # The limit is there for a hang alone: the threads are more than the cores, and other programs want those.
    run = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "8"}, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


def assert_state_is_left(step, *states, good, bad):
    """A call with bad indices raises and writes no state; a good one does as eager mode does."""
    compiled = ta.compile(step)
    compiled(*good)
    before = [x.numpy() for x in states]
    for _ in range(2):
        with pytest.raises(OutOfBounds):
            compiled(*bad)
        assert all(np.array_equal(x.numpy(), y) for x, y in zip(states, before, strict=True))
    compiled(*good)
    found = [x.numpy() for x in states]
    for x, y in zip(states, before, strict=True):
        x.assign(Tensor(y, dtype=x.dtype))
    step(*good)
    assert all(np.allclose(x, y.numpy()) for x, y in zip(found, states, strict=True))
    return compiled


@pytest.fixture
def table():
    return Tensor(np.arange(12.0).reshape(4, 3), dtype=ta.float32)


@pytest.mark.parametrize("where", ["first", "last"])
def test_given_indices_are_checked_before_state_is_written(where, table):
    state, count = ta.ones((3,)), ta.zeros((), dtype=ta.int64)

    def step(i, targets):
        count.assign(count + 1)
        state.assign(state * 2 + ta.take(table, i, axis=0).sum(axis=0))
        return ta.cross_entropy(table[:3] * state, targets)

    good = Tensor([0, 3, -4]), Tensor([0, 2, -100])
    bad = (Tensor([0, 4, 1]), good[1]) if where == "first" else (good[0], Tensor([0, 3, 1]))
    compiled = assert_state_is_left(step, state, count, good=good, bad=bad)
    names = [kernel.name for kernel in compiled.programs[0].kernels]
    assert [name for name in names if name.startswith("check_")] == ["check_take_kernel", "check_cross_entropy_kernel"]


def test_state_waits_for_the_last_index_that_is_computed(table):
    state, rows = ta.ones((3,)), ta.zeros((4, 3))

    def step(i):
        state.assign(state * 2)
        rows[1] = state
        return ta.take(table, i * 2, axis=0) + state

    assert_state_is_left(step, state, rows, good=(Tensor([0, 1]),), bad=(Tensor([0, 2]),))


def test_training_with_indices_that_come_with_the_call_copies_no_state():
    model = ta.nn.Embedding(5, 3)
    optimizer = ta.optim.AdamW(model.parameters(), lr=0.1)

    def step(tokens):
        ta.cross_entropy(model(tokens) @ model.weight.T, tokens).backward()
        optimizer.step()
        optimizer.zero_grad()

    compiled = ta.compile(step)
    compiled(Tensor([0, 4]))
    assert not any(kernel.name.startswith(("check_", "copy_")) for kernel in compiled.programs[0].kernels)
    before = model.weight.numpy()
    with pytest.raises(OutOfBounds):
        compiled(Tensor([0, 5]))
    assert np.array_equal(model.weight.numpy(), before)


@pytest.mark.parametrize("shape, axis", [((0, 3), 0), ((3, 0), 0), ((0, 3), 1), ((3, 0, 2), 1)])
def test_indices_into_nothing_are_checked(shape, axis):
    for function in (
        lambda x, i: ta.take(x, i, axis=axis),
        ta.grad(lambda x, i: ta.take(x, i, axis=axis).sum()),
        lambda x, i: ta.cross_entropy(x.reshape((-1, 2))[:0].reshape((2, 0)), i),
    ):
        for way in (function, ta.compile(function)):
            with pytest.raises(OutOfBounds):
                way(ta.ones(shape), Tensor([0, 9]))
