"""Anomaly mode names the forward line whose gradient became NaN."""

import inspect

import pytest

import tinyarr as ta
from tinyarr import Tensor
from tinyarr.errors import GradientError, TraceError


def spoiled(x):
    y = 1 / x  # the slope at 0 is infinite
    return (y * 0).sum()


LINE = inspect.getsourcelines(spoiled)[1] + 1


def test_the_line_that_computed_the_value_is_named():
    x = Tensor([0.0, 1.0], requires_grad=True)
    with ta.detect_anomaly():
        loss = spoiled(x)
        with pytest.raises(GradientError, match=rf"divide became NaN.*test_anomaly\.py:{LINE}: y = 1 / x"):
            loss.backward()


def test_it_also_speaks_where_backward_comes_after_the_block():
    x = Tensor([0.0], requires_grad=True)
    with ta.detect_anomaly():
        loss = spoiled(x)
    with pytest.raises(GradientError, match="divide became NaN"):
        loss.backward()


def test_without_it_and_without_nan_gradients_are_what_they_were():
    x = Tensor([0.0], requires_grad=True)
    spoiled(x).backward()
    assert x.grad.isnan().all()
    y = Tensor([4.0], requires_grad=True)
    with ta.detect_anomaly():
        ta.sqrt(y).sum().backward()
    assert y.grad.tolist() == [0.25]


def test_a_nan_that_came_from_outside_is_not_blamed_on_an_operation():
    x = Tensor([1.0], requires_grad=True)
    with ta.detect_anomaly():
        (x * 2).backward(Tensor([float("nan")]))
    assert x.grad.isnan().all()


def test_a_compiled_step_names_the_line_too():
    weight = Tensor([0.0, 1.0], requires_grad=True)
    step = ta.compile(lambda: spoiled(weight).backward())
    step()
    with ta.detect_anomaly(), pytest.raises(GradientError, match=rf"divide became NaN.*test_anomaly\.py:{LINE}: "):
        step()


def test_a_block_in_a_compiled_function_is_refused():
    def function(x):
        with ta.detect_anomaly():
            return ta.grad(spoiled)(x)

    with pytest.raises(TraceError, match=rf"not there yet.*test_anomaly\.py:{LINE + 1}: .*open it around the call"):
        ta.compile(function)(Tensor([1.0]))
