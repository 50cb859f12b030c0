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


def gradient(function, at):
    x = Tensor(at, requires_grad=True)
    function(x).sum().backward()
    return x.grad.tolist() if x.grad is not None else None


def test_an_inlined_gradient_by_hand_belongs_to_that_operation_alone():
    @tinyarr.elementwise
    def straight_through(x):
        return tinyarr.round(x)

    straight_through.gradient(lambda g: g)
    assert gradient(tinyarr.elementwise(lambda x: straight_through(x) * 3), [0.3]) == [3.0]
    assert gradient(tinyarr.elementwise(lambda x: tinyarr.round(x) * 3 + 0 * x), [0.3]) == [0.0]
    assert gradient(tinyarr.round, [0.3]) in ([0.0], None)

    @tinyarr.elementwise
    def reversed_gradient(x):
        return x

    reversed_gradient.gradient(lambda g: -g)
    assert gradient(tinyarr.elementwise(lambda x: reversed_gradient(x) * 2), [1.0]) == [-2.0]

    @tinyarr.elementwise
    def stopped(x):
        return x * x

    stopped.no_gradient()
    assert gradient(tinyarr.elementwise(lambda x: stopped(x) + x), [5.0]) == [1.0]


def test_several_outputs_keep_their_gradient_by_hand_when_inlined():
    @tinyarr.elementwise(outputs=("twice", "thrice"))
    def multiples(x):
        return 2 * x, 3 * x

    multiples.gradient(lambda g_twice, g_thrice: 20 * g_twice + 30 * g_thrice)
    both = tinyarr.elementwise(lambda x: multiples(x)[0] + multiples(x)[1])
    assert gradient(both, [1.0]) == [50.0]


def test_a_default_parameter_reaches_the_gradient_by_hand():
    @tinyarr.elementwise
    def leaky(x, *, slope=0.25):
        return tinyarr.where(x > 0, x, slope * x)

    leaky.gradient(lambda g, x, *, slope: tinyarr.where(x > 0, g, slope * g))
    assert gradient(leaky, [-2.0, 2.0]) == [0.25, 1.0]
    assert gradient(lambda x: leaky(x, slope=0.5), [-2.0]) == [0.5]


def test_an_operation_can_be_pickled_by_name():
    import pickle

    assert pickle.loads(pickle.dumps(tinyarr.relu)) is tinyarr.relu
