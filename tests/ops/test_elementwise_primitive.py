"""Operations made by @elementwise: what is inlined, what is refused, and what users may call theirs."""

import pytest

import tinyarr
from tinyarr import Tensor
from tinyarr.errors import ArgumentError
from tinyarr.testing import gradcheck, gradgradcheck


@tinyarr.elementwise
def squared_sigmoid(x):
    return tinyarr.sigmoid(x) ** 2


def test_a_gradient_written_by_hand_stays_when_its_operation_is_inlined():
    x = Tensor([0.0, 0.5], dtype=tinyarr.float64)  # at 0, the derivative through |x| would be 0
    gradcheck(squared_sigmoid, x)
    gradgradcheck(squared_sigmoid, x)


def test_a_user_may_name_an_operation_like_one_of_tinyarrs_own_and_define_it_again():
    for factor in (2.0, 3.0):

        @tinyarr.elementwise
        def exp(x):
            return x * factor  # noqa: B023

        assert exp(Tensor([1.0])).tolist() == [factor]
    assert tinyarr.exp(Tensor(0.0)).item() == 1.0


def test_an_expression_names_what_it_is_not():
    with pytest.raises(AttributeError, match="stands for one element and has no 'sum'"):
        tinyarr.elementwise(lambda x: x / x.sum())(Tensor([1.0]))
    with pytest.raises(TypeError, match="use tinyarr's functions"):
        import math

        tinyarr.elementwise(lambda x: math.exp(x))(Tensor([1.0]))


def test_parameters_that_are_no_operands_are_refused_at_once():
    with pytest.raises(ArgumentError, match="n is no plain operand: put options behind a"):
        tinyarr.elementwise(lambda x, n=2: x**n)
    half = tinyarr.elementwise(lambda x: x / 2)
    with pytest.raises(ArgumentError, match="'y' is none of"):
        half.gradient(lambda g, y: g)


def test_the_signature_and_repr_tell_how_to_call_it():
    assert repr(tinyarr.maximum) == "<elementwise operation maximum(x, y, /)>"
