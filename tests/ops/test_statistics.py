"""Variances and norms by rows, by columns and by elements: one definition, whichever the size chooses."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose

import tinyarr as ta
from tests.tiers import at_most
from tinyarr import Tensor
from tinyarr.ops.more import statistics
from tinyarr.testing import gradcheck, gradgradcheck

EPS = 2.0**-23
FUNCTIONS = {"var": ta.var, "std": ta.std, "vector_norm": ta.vector_norm}
AXES = st.sampled_from([None, 0, 1, -1, (0, 1), (1, 2), (0, 2)])
each = pytest.mark.parametrize("name", FUNCTIONS)


def take_any_size_as_large(set_attribute):
    for limit in ("MANY", "WIDE", "LARGE"):
        set_attribute(statistics, limit, 1)


@pytest.fixture(autouse=True)
def any_size_is_large(monkeypatch):
    take_any_size_as_large(monkeypatch.setattr)


def exact(name, x, axis):
    if name == "vector_norm":
        return np.sqrt((x * x).sum(axis=axis))
    return getattr(np, name)(x, axis=axis)


@each
@at_most(12)
@given(axis=AXES, mean=st.sampled_from([0.0, 1.0, 1e6]), factor=st.sampled_from([1.0, 1e-24, 1e24]))
def test_values_are_those_of_float64_eager_and_compiled(name, axis, mean, factor):
    if name == "var" and factor != 1:
        return  # a variance of such numbers is no float32
    x = ((np.random.default_rng(0).standard_normal((4, 3, 5)) + mean) * factor).astype(np.float32)
    right = exact(name, x.astype(np.float64), axis)
    for f in (FUNCTIONS[name], ta.compile(FUNCTIONS[name])):
        # Each element is rounded once when the mean is subtracted, and 60 are added.
        assert_allclose(f(Tensor(x), axis=axis).numpy(), right, rtol=64 * EPS)


@each
@pytest.mark.parametrize("axis", [None, 0, -1, (1, 2)])
def test_equal_elements_spread_by_exactly_0_and_have_no_gradient(name, axis):
    x = ta.full((4, 3, 5), 0.0 if name == "vector_norm" else 12345.678)
    assert not FUNCTIONS[name](x, axis=axis).any()
    assert not ta.grad(lambda x: FUNCTIONS[name](x, axis=axis).sum())(x).any()


@each
@at_most(6)
@given(axis=AXES)
def test_gradients_of_first_and_second_order_agree_with_finite_differences(name, axis):
    x = Tensor(np.random.default_rng(0).uniform(1, 2, (3, 2, 4)))
    gradcheck(lambda x: FUNCTIONS[name](x, axis=axis), x)
    gradgradcheck(lambda x: FUNCTIONS[name](x, axis=axis), x)
    half = ta.grad(lambda x: FUNCTIONS[name](x, axis=axis).sum())  # of float32, which takes other ways than float64
    assert_allclose(half(x.astype(ta.float32)).numpy(), half(x).numpy(), rtol=64 * EPS, atol=64 * EPS)
