import operator

import numpy as np
import pytest

from tests.evaluation import evaluate
from tinyarr import dtypes
from tinyarr.errors import GradientError
from tinyarr.ops import scalar
from tinyarr.ops.scalar import OPERATIONS, cast, derivative, make, substitute, topological, variable, variables, where

X, Y, Z, G = map(variable, range(4))


def ops(expression):
    return [node.op for node in topological([expression])]


@pytest.mark.parametrize(
    "operation, name",
    [
        (operator.add, "add"), (operator.sub, "subtract"), (operator.mul, "multiply"), (operator.truediv, "divide"),
        (operator.floordiv, "floor_divide"), (operator.mod, "remainder"), (operator.pow, "power"),
        (operator.and_, "bitwise_and"), (operator.or_, "bitwise_or"), (operator.xor, "bitwise_xor"),
        (operator.lshift, "bitwise_left_shift"), (operator.rshift, "bitwise_right_shift"), (operator.lt, "less"),
        (operator.le, "less_equal"), (operator.gt, "greater"), (operator.ge, "greater_equal"),
        (operator.eq, "equal"), (operator.ne, "not_equal"),
    ],
)  # fmt: skip
def test_pythons_operators_trace_the_operation_of_the_table(operation, name):
    assert operation(X, Y) is make(name, X, Y)


def test_operators_take_python_numbers_on_either_side():
    assert 2 - X is make("subtract", 2, X)
    assert 2.0**X is make("power", 2.0, X)
    assert -X is make("negative", X) and abs(X) is make("abs", X) and ~X is make("bitwise_invert", X)


def test_equal_subexpressions_are_one_node():
    assert (X + Y) * Z is (X + Y) * Z
    assert ops((X + Y) * (X + Y)).count("add") == 1


def test_constants_that_python_calls_equal_stay_apart():
    constants = [scalar.as_expr(c) for c in (0, 0.0, -0.0, False, 1, 1.0, True)]
    assert len({id(c) for c in constants}) == len(constants)


def test_asking_for_the_truth_of_an_expression_names_where():
    with pytest.raises(TypeError, match="where"):
        if X > 0:
            pass
    with pytest.raises(TypeError, match="where"):
        0 < X < 1  # noqa: B015


def test_only_numbers_and_expressions_stand_in_an_expression():
    for alien in ("1", None, 1j, np.float32(1), [1]):
        with pytest.raises(TypeError, match="can't stand in an expression"):
            make("add", X, alien)


@pytest.mark.parametrize("exponent, products", [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (7, 4), (8, 3)])
def test_small_whole_powers_are_products(exponent, products):
    power = ops(X**exponent)
    assert power.count("multiply") == products and "power" not in power
    assert evaluate([X**exponent], np.array([3]))[0] == 3**exponent
    power = ops(X ** float(exponent))
    assert power.count("multiply") == products + 1 and "power" not in power
    assert evaluate([X ** float(exponent)], np.array([3]))[0].dtype == np.float32


def test_small_inverse_powers_are_products_of_the_reciprocal():
    assert ops(X**-1.0)[2:] == ["divide"] and ops(X**-2.0)[2:] == ["divide", "multiply"]
    assert evaluate([X**-2.0], np.array([2, 1]))[0].tolist() == [0.25, 1]


@pytest.mark.parametrize("exponent", [0, 9, -1, 9.0, -3.0, 0.5, True, Y])
def test_other_powers_are_not(exponent):
    assert ops(scalar.power(X, exponent))[-1] == "power"


def test_variables_are_listed_once_in_order():
    assert variables([Z + X, X * 2]) == [0, 2]


def test_substitute_exchanges_whole_subexpressions_everywhere():
    replaced = substitute([make("exp", X + Y) * (X + Y), Y], {X + Y: Z})
    assert replaced == (make("exp", Z) * Z, Y)


def test_substitute_takes_the_outermost_match():
    assert substitute([make("exp", X + 1)], {make("exp", X + 1): Y, X: Z})[0] is Y


def test_deep_expressions_do_not_exhaust_the_stack():
    deep = X
    for _ in range(20_000):
        deep = deep * 1.0
    assert len(list(topological([deep]))) == 20_002
    assert derivative((deep,), (G,), [0])[0] is not None


# Points away from kinks, inside each function's domain; the others are taken between 0.2 and 0.8.
POINTS = {"acosh": [1.3, 2.5], "log": [0.3, 2.5], "abs": [-0.4, 0.7], "atan2": [-0.6, 0.9], "remainder": [3.7, -2.3]}
NOT_SMOOTH = {"floor_divide", "sign", "floor", "ceil", "trunc", "round"}
SMOOTH = [name for name, o in OPERATIONS.items() if o.vjp and name not in NOT_SMOOTH | {"where", "cast", "weak"}]


@pytest.mark.parametrize("name", SMOOTH)
def test_each_derivative_is_that_of_finite_differences(name):
    first = np.array(POINTS.get(name, [0.23, 0.71]))
    points = [first, np.array([0.79, 0.37])][: OPERATIONS[name].arity]
    inputs = [X, Y][: len(points)]
    out = make(name, *inputs)
    grads = derivative((out,), (G,), range(len(points)))
    # Central differences are best at a step of about eps^(1/3), with an error near eps^(2/3) times the third
    # derivative, which stays below 1000 at these points.
    step = np.finfo(float).eps ** (1 / 3)
    for k, grad in enumerate(grads):
        if grad is None:
            assert name in ("copysign", "nextafter") and k == 1
            continue
        unused = [first] * (3 - len(points))
        (computed,) = evaluate([grad], *points, *unused, np.full_like(first, 1.5))
        above, below = (
            evaluate([out], *(p + shift * (i == k) for i, p in enumerate(points)))[0] for shift in (step, -step)
        )
        assert computed == pytest.approx(1.5 * (above - below) / (2 * step), rel=0, abs=1000 * step**2)


@pytest.mark.parametrize("name", sorted(NOT_SMOOTH))
def test_no_gradient_flows_through_steps(name):
    arity = OPERATIONS[name].arity
    assert derivative((make(name, *[X, Y][:arity]),), (G,), range(arity)) == [None] * arity


def test_no_gradient_flows_through_comparisons_and_integers():
    assert derivative((cast(X > Y, dtypes.float32) + cast(X & 1, dtypes.float32),), (G,), [0, 1]) == [None, None]


def test_where_sends_the_gradient_to_the_branch_taken():
    grads = derivative((where(X > 0, Y, Z),), (G,), [0, 1, 2])
    assert grads == [None, where(X > 0, G, 0), where(X > 0, 0, G)]


def test_the_gradient_passes_casts_between_floating_dtypes_and_weak():
    assert derivative((scalar.weak(cast(X, dtypes.bfloat16)),), (G,), [0]) == [G]


def test_gradients_of_several_outputs_add_up():
    (grad,) = derivative((X * Y, X + Z), (G, variable(4)), [0])
    assert grad is G * Y + variable(4) or grad is variable(4) + G * Y


def test_a_tie_of_maximum_splits_the_gradient():
    grads = derivative((make("maximum", X, Y),), (G,), [0, 1])
    x, y = np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0])
    dx, dy = evaluate(grads, x, y, x, np.ones(3))
    assert dx.tolist() == [0, 0.5, 1] and dy.tolist() == [1, 0.5, 0]


def test_the_derivative_of_a_power_is_finite_at_zero():
    grads = derivative((make("power", X, Y),), (G,), [0, 1])
    dx, dy = evaluate(grads, np.array([0.0, 0.0]), np.array([0.0, 2.0]), np.zeros(2), np.ones(2))
    assert dx.tolist() == [0, 0] and dy.tolist() == [0, 0]


def test_a_derivative_reuses_what_the_expression_computes():
    gelu = 0.5 * X * (1 + make("tanh", 0.8 * (X + 0.04 * X**3)))
    (grad,) = derivative((gelu,), (G,), [0])
    assert [node.op for node in topological([gelu, grad])].count("tanh") == 1


@pytest.mark.parametrize("expression", [scalar.bitcast(X, dtypes.uint32), scalar.random_bits(X, 0)])
def test_what_has_no_derivative_says_to_write_one(expression):
    with pytest.raises(GradientError, match=r"@f\.gradient"):
        derivative((expression,), (G,), [0])
