import subprocess
import sys

import numpy as np
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

import tinyarr
from tinyarr import dtypes, views
from tinyarr.errors import ArgumentError, DtypeError
from tinyarr.testing import (
    GradientMismatch,
    broadcastable_shapes,
    gradcheck,
    gradgradcheck,
    shapes,
    tensors,
)
from tinyarr.testing import dtypes as dtypes_strategy

RNG = np.random.default_rng(0)
X, WEIGHT, BIAS = (tinyarr.Tensor(RNG.uniform(0.1, 0.9, shape)) for shape in [(3, 4), (4, 4), (4,)])


def layer(gradient):
    """tanh(x @ weight + bias) with the given gradient, (g, x, weight, out) -> gradients, g already through tanh."""

    @tinyarr.custom_gradient
    def planted(x, weight, bias):
        out = tinyarr.tanh(x @ weight + bias)
        return out, lambda g: gradient(g * (1 - out * out), x, weight, out)

    return planted


def right(g, x, weight, out):
    return g @ weight.T, x.T @ g, g.sum(axis=0)


WRONG = {  # what is wrong: (the gradient, the input that it is wrong for)
    "sign": (lambda g, x, weight, out: (g @ weight.T, -(x.T @ g), g.sum(axis=0)), 1),
    "factor": (lambda g, x, weight, out: (g @ weight.T * 1.001, x.T @ g, g.sum(axis=0)), 0),
    "dropped term": (lambda g, x, weight, out: (g @ weight.T, x.T @ (g / (1 - out * out)), g.sum(axis=0)), 1),
    "sum over the wrong axis": (lambda g, x, weight, out: (g @ weight.T, x.T @ g, g[0, :].sum() * BIAS), 2),
    "missing sum over the broadcast axis": (lambda g, x, weight, out: (g @ weight.T, x.T @ g, g[0]), 2),
    "missing transpose": (lambda g, x, weight, out: (g @ weight, x.T @ g, g.sum(axis=0)), 0),
    "no gradient": (lambda g, x, weight, out: (g @ weight.T, None, g.sum(axis=0)), 1),
    "NaN": (lambda g, x, weight, out: (g @ weight.T, x.T @ g, g.sum(axis=0) * float("nan")), 2),
}


@pytest.mark.parametrize("full", [False, True])
def test_right_gradients_pass(full):
    assert gradcheck(layer(right), X, WEIGHT, BIAS, full=full)
    assert gradgradcheck(lambda *inputs: tinyarr.tanh(tinyarr.linear(*inputs)), X, WEIGHT, BIAS, full=full)


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_gradient_fails_and_the_message_names_its_input(mistake, full):
    gradient, number = WRONG[mistake]
    shape = (X, WEIGHT, BIAS)[number].shape
    with pytest.raises(GradientMismatch) as caught:
        gradcheck(layer(gradient), X, WEIGHT, BIAS, full=full)
    assert str(caught.value).startswith(f"gradcheck: input {number} of shape {shape}")
    assert "the gradient is" in str(caught.value) and "finite differences give" in str(caught.value)


@tinyarr.custom_gradient
def cube_wrong_at_one_element(x):
    factor = tinyarr.Tensor(np.array([3.0, 3.0, 4.0]))
    return x**3, lambda g: g * factor * x**2


def test_the_message_names_the_element_and_both_values():
    x = tinyarr.Tensor(np.array([1.0, 2.0, 3.0]))
    with pytest.raises(AssertionError, match=r"at element \(2,\) the gradient is \S+, finite differences give \S+ "):
        gradcheck(cube_wrong_at_one_element, x)
    where = r"input 0 of shape \(3,\), element \(2,\), output 0, element \(2,\): "
    with pytest.raises(AssertionError, match=where + "the gradient is 108, finite differences give 81 "):
        gradcheck(cube_wrong_at_one_element, x, full=True)


@pytest.mark.parametrize("full", [False, True])
def test_a_gradient_that_is_right_but_whose_own_gradient_is_wrong_fails_gradgradcheck(full):
    @tinyarr.custom_gradient
    def square(x):
        return x * x, lambda g: g * 2 * x.detach()

    x = tinyarr.Tensor(np.array([1.0, 2.0]))
    assert gradcheck(square, x)
    with pytest.raises(GradientMismatch, match=r"gradgradcheck: input 0 of shape \(2,\).*the gradient is -?0, "):
        gradgradcheck(square, x, full=full)


def test_gradgradcheck_names_the_output_gradient_that_is_used_wrongly():
    @tinyarr.custom_gradient
    def twice(x):
        return 2 * x, lambda g: half(g) * 2

    @tinyarr.custom_gradient
    def half(g):
        return g, lambda h: h / 2

    assert gradcheck(twice, X)
    with pytest.raises(GradientMismatch, match=r"gradgradcheck: the gradient of output 0 of shape \(3, 4\)"):
        gradgradcheck(twice, X)


def test_every_floating_output_counts_and_other_arguments_are_passed_as_they_are():
    def function(x, axis, index, factor):
        return tinyarr.take(x, index, axis=axis) * factor, x.sum(), tinyarr.argmax(x)

    assert gradcheck(function, X, 1, tinyarr.Tensor([0, 2, 2]), 2.0, full=True)

    @tinyarr.custom_gradient
    def second_output_forgotten(x):
        return (2 * x, 3 * x), lambda g, h: 2 * g

    with pytest.raises(GradientMismatch, match="input 0"):
        gradcheck(second_output_forgotten, X)


def test_a_kink_at_the_input_is_reported_as_one():
    with pytest.raises(GradientMismatch, match="twice the step: the function may have a kink there"):
        gradcheck(tinyarr.abs, tinyarr.Tensor(np.array([1e-6])))


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e6])
def test_right_gradients_pass_at_every_magnitude(scale):
    assert gradcheck(lambda x, y: x * y + x / y, X * scale, X.mT.reshape(X.shape) * scale)


def test_what_can_not_be_checked_is_refused():
    with pytest.raises(DtypeError, match="gradcheck: input 1 has dtype float32: finite differences need float64"):
        gradcheck(tinyarr.add, X, X.astype(tinyarr.float32))
    with pytest.raises(DtypeError, match="output 0 has dtype bfloat16"):
        gradcheck(lambda x: x.astype(tinyarr.bfloat16), X)
    with pytest.raises(ArgumentError, match="no floating tensor among the 1 inputs"):
        gradcheck(tinyarr.negative, tinyarr.Tensor([1, 2]))


def test_sizes_0_and_1_and_views_are_checked_like_any_other():
    for x in (X[:0], X[1, 1], X.mT[::-1], X[1].broadcast_to((2, 4))):
        assert gradcheck(tinyarr.exp, x) and gradcheck(tinyarr.exp, x, full=True)


def test_checks_need_no_hypothesis():
    source = "import sys; sys.modules['hypothesis'] = None; import tinyarr.testing as t; t.gradcheck(t.Tensor, 1)"
    run = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True)
    assert "ArgumentError: gradcheck: no floating tensor" in run.stderr


@given(broadcastable_shapes(3))
def test_broadcastable_shapes_broadcast(drawn):
    assert tinyarr.views.broadcast_shapes("test", *drawn) == np.broadcast_shapes(*drawn)


@given(st.data(), shapes(), dtypes_strategy())
def test_tensors_hold_the_given_values_in_memory_of_any_layout(data, shape, dtype):
    x = data.draw(tensors(shape, dtype, values=lambda rng, s: np.arange(np.prod(s)).reshape(s) % 2, repeats=False))
    assert (x.shape, x.dtype) == (shape, dtype)
    np.testing.assert_array_equal(x.numpy().astype(float), np.arange(np.prod(shape)).reshape(shape) % 2)


LAYOUTS = {
    "contiguous": lambda x: views.is_contiguous(x.array.view),
    "permuted": lambda x: 0 < x.array.strides[0] < x.array.strides[1],
    "spaced": lambda x: abs(x.array.strides[1]) == 2,
    "reversed": lambda x: min(x.array.strides) < 0,
    "repeated": lambda x: 0 in x.array.strides,
    "offset": lambda x: x.array.offset > 0,
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_come_in_every_layout(layout):
    # The rarest is 3 % of what is drawn: one run in 10^13 finds none among 1,000.
    find(tensors((2, 3)), LAYOUTS[layout], settings=settings(max_examples=1000, database=None))


@given(dtypes_strategy(["float"], float8=False))
def test_dtypes_are_of_the_given_kinds(dtype):
    assert dtype in (dtypes.float16, dtypes.bfloat16, dtypes.float32, dtypes.float64)
