"""Elementwise operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import (
    BITS,
    FLOATS,
    INTEGERS,
    NUMBERS,
    SAMPLES,
    SIDE,
    Case,
    Operand,
    Sample,
    apart,
    between,
    boolean,
    cases_of,
    exact,
    floating,
    refused,
    same,
    whole,
)
from tinyarr import ones, zeros
from tinyarr.dtypes import (
    ALL,
    bool,
    float32,
    float64,
)
from tinyarr.errors import DtypeError, ShapeError
from tinyarr.ops.activation import _leaky_relu
from tinyarr.ops.attention import power
from tinyarr.ops.loss import _mean_of_counted
from tinyarr.ops.more.in_place import _lerp
from tinyarr.ops.more.statistics import scale_of
from tinyarr.testing import broadcastable_shapes, shapes


def elementwise(
    name: str,
    reference: Callable,
    *values: Callable,
    takes=NUMBERS,
    gives=same,
    function: Callable | None = None,
    called: str | None = None,
    counts=False,
    **more,
) -> None:
    """A record for `name`, whose function is named `called`, with operands that broadcast.

    Integers of all but the first are counts, not negative, where `counts` says so.
    """
    function = function or getattr(tinyarr, name)
    arity = len(values)
    ranges = [(0, 7) if counts and i else (-6, 7) for i in range(arity)]
    drawn = broadcastable_shapes(arity, max_side=SIDE)
    cases = drawn.map(lambda shapes: Case(tuple(map(Operand, shapes, values, ranges))))
    unequal = [zeros((2, 3 + i), dtype=takes[0]) for i in range(arity)]
    errors = (
        refused(lambda: function(*[[1.0]] * arity), TypeError, called or name, "list", "tensor"),
        refused(lambda: function(*unequal), ShapeError, name, "(2, 3)", "(2, 4)", "axis -1"),
    )
    SAMPLES[name] = Sample(
        function, reference, cases, takes, gives=gives, errors=errors if arity > 1 else errors[:1], **more
    )


for _name, _reference in {
    "negative": np.negative, "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
    "round": np.round, "square": np.square,
}.items():  # fmt: skip
    elementwise(_name, _reference, apart(0))

for _name, _reference, _low, _high in (
    ("sqrt", np.sqrt, 0.2, 3), ("exp", np.exp, -3, 3), ("expm1", np.expm1, -3, 3), ("log", np.log, 0.2, 3),
    ("log1p", np.log1p, -0.8, 3), ("log2", np.log2, 0.2, 3), ("log10", np.log10, 0.2, 3), ("sin", np.sin, -3, 3),
    ("cos", np.cos, -3, 3), ("tan", np.tan, -1.2, 1.2), ("asin", np.arcsin, -0.9, 0.9), ("acos", np.arccos, -0.9, 0.9),
    ("atan", np.arctan, -3, 3), ("sinh", np.sinh, -3, 3), ("cosh", np.cosh, -3, 3), ("tanh", np.tanh, -3, 3),
    ("asinh", np.arcsinh, -3, 3), ("acosh", np.arccosh, 1.2, 4), ("atanh", np.arctanh, -0.9, 0.9),
    ("erf", np.vectorize(math.erf, otypes=[float]), -3, 3), ("reciprocal", lambda x: 1 / x, 0.2, 3),
    ("rsqrt", lambda x: x**-0.5, 0.2, 3),
):  # fmt: skip
    elementwise(_name, _reference, between(_low, _high), takes=ALL, gives=floating)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


for _name, _reference in {
    "sigmoid": sigmoid, "silu": lambda x: x * sigmoid(x), "softplus": lambda x: np.log(1 + np.exp(x)),
}.items():  # fmt: skip
    elementwise(_name, _reference, between(-4, 4), takes=ALL, gives=floating)
elementwise(
    "gelu_tanh",
    lambda x: x * sigmoid(2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)),
    between(-3, 3),
    takes=ALL,
    gives=floating,
    function=partial(tinyarr.gelu, approximate="tanh"),
    called="gelu",
    scale=np.abs,
)
elementwise(
    "gelu_erf",
    lambda x: x * (1 + np.vectorize(math.erf, otypes=[float])(x / np.sqrt(2))) / 2,
    between(-3, 3),
    takes=ALL,
    gives=floating,
    function=tinyarr.gelu,
    called="gelu",
    scale=np.abs,
)
elementwise(
    "leaky_relu",
    lambda x, slope: np.where(x > 0, x, x * slope),
    apart(0),
    between(0.1, 0.5),
    function=lambda x, slope: _leaky_relu(x, slope),
    called="leaky_relu",
    takes=FLOATS,
    refuses=(),
)
elementwise("relu", lambda x: np.maximum(x, 0), apart(0), refuses=())


def integer_or_float_power(x, y):
    """x**y, for integers with negative y rounded toward zero, and 0 where that divides by zero."""
    if np.result_type(x, y).kind != "i":
        return np.power(x, y)
    return np.where(y < 0, np.where(np.abs(x) == 1, x, 0) ** np.abs(y), x ** np.abs(y))


for _name, _reference in {
    "add": np.add, "subtract": np.subtract, "multiply": np.multiply,
}.items():  # fmt: skip
    elementwise(_name, _reference, apart(0), apart(1))
for _name, _reference in {"floor_divide": np.floor_divide, "remainder": np.remainder}.items():
    elementwise(_name, _reference, apart(0), whole)
elementwise("pow", integer_or_float_power, between(0.2, 3), between(-2, 2))
for _operation, _reference in {
    power: lambda score, largest: np.exp(score - largest),
    _mean_of_counted: lambda total, count: total / np.maximum(count, 1),
    _lerp: lambda x, end, weight: x + weight * (end - x),
}.items():
    _values = [apart(0), between(0.2, 3), between(0.2, 3)][: len(_operation.inputs)]
    elementwise(_operation.name, _reference, *_values, function=_operation, takes=FLOATS, refuses=())
for _name, _reference in {"maximum": np.maximum, "minimum": np.minimum}.items():
    elementwise(_name, _reference, apart(0), apart(1), takes=ALL)
for _name, _reference in {
    "divide": np.divide, "atan2": np.arctan2, "hypot": np.hypot, "copysign": np.copysign, "logaddexp": np.logaddexp,
}.items():  # fmt: skip
    elementwise(_name, _reference, apart(0), apart(1), takes=ALL, gives=floating)
elementwise("nextafter", lambda x, y: x + 0 * y, apart(0), apart(1), takes=(float32, float64))
for _name, _reference in {
    "equal": np.equal, "not_equal": np.not_equal, "less": np.less, "less_equal": np.less_equal,
    "greater": np.greater, "greater_equal": np.greater_equal,
    "logical_and": np.logical_and, "logical_or": np.logical_or, "logical_xor": np.logical_xor,
}.items():  # fmt: skip
    elementwise(_name, _reference, apart(0), apart(0), takes=ALL, gives=boolean)
for _name, _reference in {
    "isnan": np.isnan, "isinf": np.isinf, "isfinite": np.isfinite, "signbit": lambda x: x < 0,
    "logical_not": np.logical_not,
}.items():  # fmt: skip
    elementwise(_name, _reference, apart(0), takes=ALL, gives=boolean)
for _name, _reference in {
    "bitwise_and": np.bitwise_and, "bitwise_or": np.bitwise_or, "bitwise_xor": np.bitwise_xor,
}.items():  # fmt: skip
    elementwise(_name, _reference, apart(0), apart(0), takes=BITS)
elementwise("bitwise_invert", np.invert, apart(0), takes=BITS)
for _name, _reference in {"bitwise_left_shift": np.left_shift, "bitwise_right_shift": np.right_shift}.items():
    elementwise(_name, _reference, apart(0), apart(0), takes=INTEGERS, counts=True)

elementwise("clip", np.clip, between(-2, 2), between(-1.5, -0.5), between(0.5, 1.5), takes=ALL, counts=True)


def where_cases(draw) -> Case:
    condition, x, y = draw(broadcastable_shapes(3, max_side=SIDE))
    return Case((Operand(condition, dtype=bool), Operand(x), Operand(y)))


SAMPLES["where"] = Sample(
    tinyarr.where,
    np.where,
    cases_of(where_cases),
    takes=ALL,
    errors=(
        refused(lambda: tinyarr.where(ones((2, 3)), ones((2, 4)), 0), ShapeError, "where", "(2, 3)", "(2, 4)"),
        refused(lambda: tinyarr.where([True], 1, 0), TypeError, "where", "condition", "list"),
    ),
)
SAMPLES["scale_of"] = Sample(
    scale_of,
    np.ones_like,
    st.builds(lambda shape: Case((Operand(shape, between(0.2, 3)),)), shapes(max_side=SIDE)),
    takes=(float32, float64),
    refuses=(),
    roundings=exact,
)
SAMPLES["integer_power"] = Sample(
    lambda x, n: x**n,
    lambda x, n: x**n,
    st.builds(lambda shape, n: Case((Operand(shape),), {"n": n}), shapes(max_side=SIDE), st.integers(2, 8)),
    takes=NUMBERS,
)
SAMPLES["inverse_power"] = Sample(
    lambda x, n: x**-n,
    lambda x, n: np.power(x, -float(n)),
    st.builds(
        lambda shape, n: Case((Operand(shape, between(0.2, 3)),), {"n": n}), shapes(max_side=SIDE), st.integers(1, 2)
    ),
    takes=FLOATS,
    refuses=(),
)
SAMPLES["astype"] = Sample(
    lambda x, dtype: tinyarr.astype(x, dtype),
    lambda x, dtype: x.astype(dtype.numpy),
    st.builds(lambda s, d: Case((Operand(s, integers=(0, 7)),), {"dtype": d}), shapes(), st.sampled_from(ALL)),
    takes=ALL,
    gives=lambda _, dtype: dtype,
    smooth={"dtype": float64},
    errors=(refused(lambda: ones(2).astype("complex64"), DtypeError, "complex64", "use one of", "float32"),),
)
SAMPLES["copy"] = Sample(tinyarr.copy, lambda x: x, st.builds(lambda s: Case((Operand(s),)), shapes()), takes=ALL)
