import ml_dtypes
import numpy as np
import pytest

from tests.evaluation import evaluate
from tinyarr import dtypes
from tinyarr.dtypes import bfloat16, float16, float32, float64, int8, int32, int64, uint8, uint64
from tinyarr.errors import DtypeError
from tinyarr.ops import scalar
from tinyarr.ops.scalar import as_expr, make, variable, where
from tinyarr.ops.typing import type_expression

X, Y, Z = map(variable, range(3))


def typed(expression, *operands, uniform=None):
    return type_expression("test", (expression,), operands, uniform or (False,) * len(operands))


def result(expression, *operands):
    (dtype,) = typed(expression, *operands).dtypes
    return dtype


@pytest.mark.parametrize(
    "expression, operands, expected",
    [
        (X + Y, (int32, float32), float32),
        (X + Y, (bfloat16, float16), float32),
        (X + Y, (uint8, int8), dtypes.int16),
        (X + Y, (dtypes.bool, int32), int32),
        (X / Y, (int64, int64), float32),
        (make("exp", X), (dtypes.bool,), float32),
        (make("sqrt", X), (float64,), float64),
        (make("floor", X), (int32,), int32),
        (X // Y, (bfloat16, bfloat16), bfloat16),
        (X < Y, (int32, float64), dtypes.bool),
        (make("isnan", X), (int64,), dtypes.bool),
        (X & Y, (dtypes.bool, dtypes.bool), dtypes.bool),
        (X & Y, (uint8, uint8), uint8),
        (make("maximum", X, Y), (dtypes.bool, dtypes.bool), dtypes.bool),
        (where(X, Y, Z), (dtypes.bool, int32, float32), float32),
        (where(X, Y, Z), (float64, int32, int32), int32),
        (scalar.cast(X, int8), (float64,), int8),
        (scalar.random_bits(X, Y), (int64, int64), dtypes.uint32),
        (scalar.index(0) + X, (int32,), int64),
    ],
)
def test_results_follow_promotion(expression, operands, expected):
    assert result(expression, *operands) is expected


@pytest.mark.parametrize(
    "expression, operand, expected",
    [
        (X * 2.0, bfloat16, bfloat16),
        (X * 2, bfloat16, bfloat16),
        (X * 2, uint8, uint8),
        (X * 0.5, int64, float32),
        (X + 1, dtypes.bool, int64),
        (X + True, uint8, uint8),
        (where(X > 0, X, 0), float16, float16),
        (X == 0.5, float64, dtypes.bool),
        (X * (as_expr(1) / 3), float64, float64),
    ],
)
def test_python_scalars_are_weak(expression, operand, expected):
    assert result(expression, operand) is expected


@pytest.mark.parametrize(
    "expression, expected",
    [(as_expr(1.5) * 2, float32), (as_expr(1) + 2, int64), (as_expr(1) / 2, float32), (as_expr(1) < 2, dtypes.bool)],
)
def test_weak_scalars_among_themselves_give_the_default_dtype(expression, expected):
    assert result(expression) is expected


def test_operands_that_are_python_scalars_are_weak_too():
    assert result(X * Y, bfloat16, "float") is bfloat16
    assert result(X * Y, int32, "float") is float32
    assert result(scalar.weak(X) * Y, float32, bfloat16) is bfloat16


def test_weak_scalars_are_computed_in_float64_until_they_meet_a_tensor():
    (value,) = evaluate([X * (as_expr(1) / 3 * 3)], np.ones(1, np.float32))
    assert value[0] == 1
    assert [v.dtype for v in typed(X * (as_expr(1) / 3), float32).values if v.op == "divide"] == [float64]


def test_half_types_compute_in_float32_and_round_once():
    for half in (float16, bfloat16, dtypes.float8_e5m2):
        program = typed(X * Y + 1.0, half, half)
        assert {v.dtype for v in program.values if v.op in ("multiply", "add")} == {float32}
        assert program.dtypes == (half,)
    # 1.0078125 squared is 1.01568603515625: rounded before 1 is subtracted it would lose its last bits.
    (value,) = evaluate([X * X - 1], np.array([1.0078125], ml_dtypes.bfloat16))
    assert value[0] == ml_dtypes.bfloat16(0.01568603515625)


def test_a_cast_rounds_in_the_middle_of_an_expression():
    (value,) = evaluate([scalar.cast(X * X, bfloat16) - 1], np.array([1.0078125], np.float32))
    assert value.dtype == ml_dtypes.bfloat16 and value[0] == 0.015625


def test_a_constant_is_rounded_by_a_cast_like_any_value():
    (value,) = evaluate([scalar.cast(0.1, bfloat16) * X], np.ones(1, np.float32))
    assert value[0] == np.float32(ml_dtypes.bfloat16(0.1))
    (value,) = evaluate([scalar.cast(0.1, float32) * X], np.ones(1))
    assert value[0] == np.float32(0.1)
    (value,) = evaluate([scalar.cast(float("nan"), int32) + X], np.zeros(1, np.int32))
    assert value[0] == -(2**31)


def test_bitcasts_see_the_stored_bits():
    (bits,) = evaluate([scalar.bitcast(X, dtypes.uint16)], np.array([1.0], ml_dtypes.bfloat16))
    assert bits.tolist() == [0x3F80]
    (number,) = evaluate([scalar.bitcast(X, bfloat16) * 2], np.array([0x3F80], np.uint16))
    assert number.dtype == ml_dtypes.bfloat16 and number[0] == 2


@pytest.mark.parametrize(
    "dtype, fits, too_much",
    [(uint8, 255, 256), (uint8, 0, -1), (int8, -128, -129), (uint64, 2**64 - 1, 2**64)],
)
def test_an_integer_constant_that_does_not_fit_is_an_error(dtype, fits, too_much):
    typed(X + fits, dtype)
    with pytest.raises(DtypeError, match=f"test: the Python integer {too_much} does not fit {dtype.name}: use astype"):
        typed(X + too_much, dtype)


@pytest.mark.parametrize(
    "expression, operands, message",
    [
        (X + Y, (dtypes.bool, dtypes.bool), "test: add of bool, bool: .* use & |"),
        (-X, (dtypes.bool,), "negative of bool"),
        (X & Y, (float32, int32), "bitwise_and of float32, int32: .* bool or integers"),
        (X << Y, (dtypes.bool, dtypes.bool), "bitwise_left_shift of bool, bool: .* integers"),
        (X + Y, (uint64, int64), "no common integer dtype"),
        (X + Y, (dtypes.float8_e5m2, float32), "float8 has no implicit casts"),
        (scalar.bitcast(X, int8), (float32,), "of int8's size"),
        (scalar.bitcast(X, int64), ("signed",), "of int64's size"),
    ],
)
def test_dtypes_that_do_not_fit_are_named(expression, operands, message):
    with pytest.raises(DtypeError, match=message):
        typed(expression, *operands)


def test_what_depends_on_0_d_operands_alone_is_uniform():
    program = typed(X * 0.9**Y, float32, float32, uniform=(False, True))
    assert {v.op: v.uniform for v in program.values if v.op != "input"} == {
        "constant": True,
        "power": True,
        "multiply": False,
    }


def test_positions_and_random_bits_are_never_uniform():
    for expression in (scalar.index(0), scalar.random_bits(X, Y)):
        program = typed(expression, uint64, uint64, uniform=(True, True))
        assert not program.values[program.outputs[0]].uniform


def test_every_value_is_used_and_stands_once():
    expression = where(X > 0, X * 2, X * 2 + Y)
    program = typed(expression, bfloat16, int32)
    keys = [(v.op, v.args, v.dtype, repr(v.value)) for v in program.values]
    assert len(set(keys)) == len(keys)
    used = {a for v in program.values for a in v.args} | set(program.outputs)
    assert used >= {number for number, v in enumerate(program.values) if v.op != "constant"}


def test_an_operand_that_is_a_result_is_stored_as_it_came():
    program = typed(X, bfloat16)
    assert program.values[program.outputs[0]].op == "input"
