"""What NumPy's evaluation must do beyond calling a ufunc. test_elementwise.py compares all of it with C."""

import numpy as np
import pytest

from tests.evaluation import evaluate, evaluate_into
from tinyarr import dtypes
from tinyarr.backends.numpy.functions import FUNCTIONS
from tinyarr.ops.scalar import make, random_bits, variable, where
from tinyarr.ops.typing import type_expression

X, Y, Z = map(variable, range(3))
CONDITION = np.array([True, False, True, False])


def in_place(expression, number, *operands):
    """The value of an expression that is written to the memory of operand `number`."""
    operands = [x.copy() for x in operands]
    in_dtypes = tuple(dtypes.dtype(x.dtype) for x in operands)
    typed = type_expression("test", (expression,), in_dtypes, (False,) * len(operands))
    out = operands[number].view()
    evaluate_into([out], typed, operands)
    return out.tolist()


@pytest.mark.parametrize("number", [1, 2])
def test_where_can_overwrite_either_branch(number):
    x, y = np.arange(4.0), -np.arange(4.0)
    assert in_place(where(X, Y, Z), number, CONDITION, x, y) == [0, -1, 2, -3]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_where_of_bool_can_overwrite_any_operand(number):
    y = np.array([False, False, True, True])
    assert in_place(where(X, Y, Z), number, CONDITION, ~CONDITION, y) == [False, False, False, True]


@pytest.mark.parametrize("dtype", dtypes.ALL, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize("step", [1, -2])
def test_where_takes_the_bits_of_many_elements_wherever_they_lie(dtype, step):
    rng, size = np.random.default_rng(0), 10_000
    x, y = (np.frombuffer(rng.bytes(dtype.itemsize * size), dtype.numpy)[::step] for _ in range(2))  # NaNs among them
    if dtype is dtypes.bool:
        x, y = (rng.random(size)[::step] < 0.5 for _ in range(2))
    condition = rng.random(size)[::step] < 0.5
    for operands in ([condition, x, y], [condition, x[0], y], [condition, x, y[0]]):
        expected, out = np.where(*operands).tobytes(), np.empty_like(x)
        FUNCTIONS["where"](*operands, out=out)
        assert out.tobytes() == expected
        for number in (1, 2):
            own = [a.copy() for a in operands]
            if own[number].ndim:
                FUNCTIONS["where"](*own, out=own[number])
                assert own[number].tobytes() == expected


@pytest.mark.parametrize("number", [0, 1])
def test_power_can_overwrite_either_operand(number):
    x, y = np.array([2, -1, -1, 3, 0]), np.array([3, -3, -2, -1, -1])
    assert in_place(make("power", X, Y), number, x, y) == [8, -1, 1, 0, 0]


def test_a_negative_power_is_zero_even_where_the_positive_one_wraps_to_one():
    x, y = np.array([3, 3, -1, 1], np.int8), np.array([-64, -128, -128, -128], np.int8)
    assert evaluate([make("power", X, Y)], x, y)[0].tolist() == [0, 0, 1, 1]


def test_random_bits_reach_an_output_of_any_strides():
    typed = type_expression("test", (random_bits(X, Y),), ("signed", "signed"), (True, True))
    dense, transposed = np.zeros((3, 5), np.uint32), np.zeros((5, 3), np.uint32).T
    for out in (dense, transposed):
        evaluate_into([out], typed, [1, 2])
    assert dense.all() and (dense == transposed).all()


def test_erf_keeps_nan_infinities_and_the_sign_of_zero():
    for dtype in (np.float32, np.float64):
        (value,) = evaluate([make("erf", X)], np.array([np.nan, np.inf, -np.inf, -0.0, 5e-324], dtype))
        assert np.isnan(value[0]) and value[1:].tolist() == [1, -1, 0, dtype(5e-324)]
        assert np.signbit(value[3])
