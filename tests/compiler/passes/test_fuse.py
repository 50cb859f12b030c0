"""Fusion: what becomes one kernel, and that no bit depends on it, in C too."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given
from hypothesis import strategies as st

import tinyarr as ta
from tests.compiler.test_compile import outcome
from tests.test_random_programs import programs
from tests.tiers import at_most, thinned
from tinyarr import Tensor
from tinyarr.compiler import Compiled

SLOW = [HealthCheck.too_slow]


@st.composite
def reductions(draw):
    """An expression of operands that broadcast, its reduction over some axes, and the operands."""
    shape = tuple(draw(st.lists(st.sampled_from([1, 2, 3, 8, 65, 130]), min_size=1, max_size=3)))
    if draw(st.booleans()):
        shape = (*shape[:-1], draw(st.sampled_from([4097, 20_000])))
    assume(math.prod(shape) <= 2**22)  # operands of 32 MiB
    axes = tuple(sorted(draw(st.sets(st.integers(0, len(shape) - 1)))))
    name = draw(st.sampled_from(["sum", "max", "min"]))
    dtype = draw(st.sampled_from([ta.float32, ta.bfloat16, ta.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    permuted = draw(st.permutations(range(len(shape))))
    operands = []
    for kind in ("whole", "permuted", "row", "column"):
        drop = {"row": range(len(shape) - 1), "column": [len(shape) - 1]}.get(kind, ())
        own = tuple(1 if a in drop else n for a, n in enumerate(shape))
        if kind == "permuted":
            own = tuple(shape[a] for a in permuted)
        x = Tensor(rng.uniform(-1, 1, own)).astype(dtype)
        operands.append(x.permute_dims(tuple(int(a) for a in np.argsort(permuted))) if kind == "permuted" else x)
    also = draw(st.booleans())
    reduce, keepdims = getattr(ta, name), draw(st.booleans())

    def function(a, b, c, d):
        y = ta.exp(a * b) + c * d
        total = reduce(y, axis=axes, keepdims=keepdims)
        return (y, total) if also else total

    return function, operands


@at_most(25, phases=[Phase.generate], suppress_health_check=SLOW, deadline=None)
@given(reductions())
def test_a_reduction_of_an_expression_gives_the_bits_of_the_expression_and_the_reduction(case):
    function, operands = case
    apart, fused = Compiled(function, ()), Compiled(function)
    assert outcome(fused, *operands) == outcome(apart, *operands)
    assert len(fused.programs[0].kernels) < len(apart.programs[0].kernels)


@at_most(15, phases=[Phase.generate], suppress_health_check=SLOW, deadline=None)
@given(programs())
def test_a_random_program_gives_the_bits_of_its_operations_one_by_one(program):
    with_gradients = program.with_gradients()
    inputs = [Tensor(x) for x in program.inputs]
    apart, fused = Compiled(with_gradients, ()), Compiled(with_gradients)
    expected = outcome(apart, *inputs)
    assume("comes from outside" not in str(expected))
    assert outcome(fused, *inputs) == expected


ROWS = {
    "softmax": lambda y, w: ta.softmax(y),
    "log_softmax": lambda y, w: ta.log_softmax(y),
    "layer_norm": lambda y, w: ta.layer_norm(y, w, w),
    "rms_norm": lambda y, w: ta.rms_norm(y, w),
}


OF_ROWS = [*itertools.product(ROWS, [1, 33, 4100], [ta.float32, ta.bfloat16, ta.float64])]


@pytest.mark.parametrize(("name", "width", "dtype"), thinned(OF_ROWS, 4))  # each width with each dtype, and all names
def test_a_kernel_of_rows_of_an_expression_gives_the_bits_of_both_one_by_one(name, width, dtype):
    rng = np.random.default_rng(0)
    x, y, w = (Tensor(rng.standard_normal(s)).astype(dtype) for s in ((3, 2, width), (3, width, 2), (width,)))

    def function(x, y, w):
        made = ta.exp(x) * y.mT + w
        return ROWS[name](made, w), made

    assert outcome(ta.compile(function), x, y, w) == outcome(Compiled(function, ()), x, y, w)


def names(compiled):
    return [kernel.name.split("_kernel")[0] for kernel in compiled.programs[0].kernels]


def test_what_lies_between_two_kernels_alone_is_in_no_memory():
    x, b = ta.ones((64, 256)), ta.ones(256)
    run = ta.compile(lambda x, b: ta.gelu((x + b) * 2).sum())
    run(x, b)
    assert names(run) == ["add_multiply_gelu_erf_sum"] and run.memory[0].arena == 0
    for function, expected in [
        (lambda x, b: ta.softmax(x + b) * 2, ["add_softmax", "multiply"]),
        (lambda x, b: [y := x + b, ta.layer_norm(y, b, b)], ["add_layer_norm"]),
        (lambda x, b: ta.layer_norm(x, b * 2, b + 1), ["multiply", "add", "layer_norm"]),
        (lambda x, b: (x + b, ta.exp(x + b)), ["add_exp"]),
        (lambda x, b: ta.exp(x).T * b[:64], ["exp", "multiply"]),
    ]:
        run = ta.compile(function)
        run(x, b)
        assert names(run) == expected


def test_half_types_are_rounded_where_they_would_have_been_stored():
    x = Tensor(np.linspace(0, 1, 1000)).astype(ta.bfloat16)

    def function(x):
        y = x * 1.01
        return (y == y + 0.001).sum(), y - x

    assert outcome(ta.compile(function), x) == outcome(function, x)


def test_copies_of_what_is_made_in_their_order_are_no_kernels():
    q = Tensor(np.random.default_rng(0).standard_normal((2, 5, 3 * 4 * 8)), dtype=ta.float32)

    def attend(packed):
        q, k, v = packed.reshape((2, 5, 12, 8)).permute_dims((0, 2, 1, 3)).split(4, axis=1)
        return ta.scaled_dot_product_attention(q, k, v).permute_dims((0, 2, 1, 3)).reshape((2, 5, 32))

    def with_gradient(packed):
        out, pull = ta.vjp(attend, packed)
        return out, pull(out)[0] * 2

    run = ta.compile(with_gradient)
    for found, expected in zip(run(q), with_gradient(q)):
        np.testing.assert_allclose(found.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
    attention = "scaled_dot_product_attention"
    assert names(run) == [attention, f"{attention}_gradient", "multiply"]
