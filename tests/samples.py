"""One record for each primitive: how it is called, what it means in NumPy, what it takes, gives and refuses.

Everything that test_primitives.py proves about a primitive it proves for every record here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

import tinyarr
from tinyarr import Generator, Tensor, ones, vjp, zeros
from tinyarr.dtypes import (
    ALL,
    FLOAT8,
    Dtype,
    bfloat16,
    bool,
    float16,
    float32,
    float64,
    int32,
    int64,
    uint8,
    uint32,
    uint64,
)
from tinyarr.errors import ArgumentError, DtypeError, OutOfBounds, ShapeError
from tinyarr.testing import broadcastable_shapes, shapes

FLOATS = tuple(d for d in ALL if d.is_float)
INTEGERS = tuple(d for d in ALL if d.kind in ("signed", "unsigned"))
NUMBERS = INTEGERS + FLOATS
BITS = (bool, *INTEGERS)
SIDE = 3  # longest axis of an operand


class Operand(NamedTuple):
    """A tensor operand. values(rng, shape) and integers (a range) fill it, by its dtype: `dtype`, or the one tested."""

    shape: tuple[int, ...]
    values: Callable = lambda rng, shape: rng.uniform(-2, 2, shape)
    integers: tuple[int, int] = (-6, 7)
    dtype: Dtype | None = None
    repeats: bool = True  # whether elements may share memory, and so tie


class Case(NamedTuple):
    operands: tuple[Operand, ...]
    params: dict[str, Any] = {}


class Error(NamedTuple):
    """A call that must raise `kind` with a message that holds each of the fragments."""

    call: Callable
    kind: type[Exception]
    fragments: tuple[str, ...]


def refused(call: Callable, kind: type[Exception], *fragments: str) -> Error:
    return Error(call, kind, fragments)


@dataclass(frozen=True)
class Sample:
    """function(*tensors, **params) is public; reference(*arrays, **params) gets float64 in place of floating dtypes.

    cases: strategy of Case. takes: dtypes of operands; refuses: all others, unless given. gives(dtype, **params): that
    of the results, or of each. roundings(*arrays, **params): how many roundings make a result, one upon the other;
    None: what the expression says. scale(*arrays): magnitude of what is rounded on the way, where that exceeds the
    result. precision(dtype): in what is computed. smooth: parameters to differentiate with. large: operands large
    enough that rounding errors are statistics.
    """

    function: Callable
    reference: Callable
    cases: st.SearchStrategy
    takes: tuple[Dtype, ...] = FLOATS
    refuses: tuple[Dtype, ...] | None = None
    gives: Callable = lambda dtype, **params: dtype
    roundings: Callable | None = None
    scale: Callable | None = None
    precision: Callable = lambda dtype: dtype.compute
    smooth: dict[str, Any] = field(default_factory=dict)
    errors: tuple[Error, ...] = ()
    large: Case | None = None


SAMPLES: dict[str, Sample] = {}


def same(dtype: Dtype, **_) -> Dtype:
    return dtype


def floating(dtype: Dtype, **_) -> Dtype:
    return dtype if dtype.is_float else float32


def boolean(dtype: Dtype, **_) -> Dtype:
    return bool


def exact(*_, **__) -> int:
    return 0


def between(low: float, high: float) -> Callable:
    return lambda rng, shape: rng.uniform(low, high, shape)


def apart(number: int) -> Callable:
    """Operand 0 in k + [0.1, 0.4], operand 1 in k + [0.6, 0.9], k whole: no ties, zeros, whole or half numbers."""
    return lambda rng, shape: rng.integers(-2, 2, shape) + rng.uniform(0.1, 0.4, shape) + 0.5 * (number % 2)


def whole(rng: np.random.Generator, shape) -> np.ndarray:
    return rng.choice([-3.0, -2.0, -1.0, 1.0, 2.0, 3.0], shape)


def distinct(rng: np.random.Generator, shape) -> np.ndarray:
    n = math.prod(shape)
    return (rng.permutation(n).reshape(shape) - n / 2) / 8


# Elementwise


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
for _name, _reference in {"maximum": np.maximum, "minimum": np.minimum}.items():
    elementwise(_name, _reference, apart(0), apart(1), takes=ALL)
for _name, _reference in {"divide": np.divide, "atan2": np.arctan2, "hypot": np.hypot, "copysign": np.copysign}.items():
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


def cases_of(build: Callable) -> st.SearchStrategy:
    return st.composite(build)()


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
SAMPLES["integer_power"] = Sample(
    lambda x, n: x**n,
    lambda x, n: x**n,
    st.builds(lambda shape, n: Case((Operand(shape),), {"n": n}), shapes(max_side=SIDE), st.integers(2, 8)),
    takes=NUMBERS,
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

# Creation


def creation(function: Callable, reference: Callable, params: st.SearchStrategy, **more) -> Sample:
    def made(dtype, **given):
        return np.asarray(reference(**given)).astype(dtype.numpy)

    with_dtype = st.builds(lambda given, dtype: Case((), given | {"dtype": dtype}), params, st.sampled_from(ALL))
    return Sample(function, made, with_dtype, (), gives=lambda _, dtype, **rest: dtype, roundings=exact, **more)


SAMPLES["full"] = creation(
    lambda shape, value, dtype: tinyarr.full(shape, value, dtype=dtype),
    lambda shape, value: np.full(shape, value),
    st.fixed_dictionaries({"shape": shapes(), "value": st.sampled_from((0, 1, 3, 1.5, True))}),
    errors=(
        refused(lambda: tinyarr.full((2, -1), 0), ShapeError, "full", "(2, -1)", "0 or more"),
        refused(lambda: tinyarr.full(2, "x"), ArgumentError, "full", "value", "'x'"),
        refused(lambda: tinyarr.full(2, 300, dtype=uint8), DtypeError, "300", "uint8"),
    ),
)
SAMPLES["arange"] = creation(
    lambda start, stop, step, dtype: tinyarr.arange(start, stop, step, dtype=dtype),
    np.arange,
    st.fixed_dictionaries(
        {"start": st.integers(0, 5), "stop": st.integers(0, 9), "step": st.sampled_from((1, 2, 0.5, -1, -0.25))}
    ),
    errors=(refused(lambda: tinyarr.arange(1, 2, 0), ArgumentError, "arange", "step is 0"),),
)
SAMPLES["eye"] = creation(
    lambda n, m, k, dtype: tinyarr.eye(n, m, k=k, dtype=dtype),
    lambda n, m, k: np.eye(n, m, k),
    st.fixed_dictionaries({"n": st.integers(0, 4), "m": st.none() | st.integers(0, 4), "k": st.integers(-3, 3)}),
    errors=(refused(lambda: tinyarr.eye(-1), ShapeError, "eye", "(-1, -1)"),),
)

# Random: each element follows from the key, the counter and its row-major position

PHILOX = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85)
HALF = 0xFFFFFFFF


def philox(shape, key: int, counter: int, stream: int = 0) -> np.ndarray:
    """Philox 4x32-10 (Salmon et al. 2011) word by word, in Python's integers."""
    (m0, m1), weyl = PHILOX
    words: list[int] = []
    for block in range(-(-math.prod(shape) // 4)):
        c = [block & HALF, (block >> 32) + (stream << 16), counter & HALF, counter >> 32]
        k = [key & HALF, key >> 32]
        for _ in range(10):
            p0, p1 = m0 * c[0], m1 * c[2]
            c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & HALF, (p0 >> 32) ^ c[3] ^ k[1], p0 & HALF]
            k = [(a + b) & HALF for a, b in zip(k, weyl)]
        words += c
    return np.array(words[: math.prod(shape)], np.uint32).reshape(shape)


def unit(*at, stream: int = 0) -> np.ndarray:
    return (philox(*at, stream=stream) >> 8) / 2.0**24


def generator(key: int, counter: int) -> Generator:
    result = Generator(key)
    result.load_state_dict({"key": key, "counter": counter})
    return result


def draws(function: Callable, reference: Callable, params: dict, dtypes, **more) -> Sample:
    state = {"shape": shapes(), "key": st.integers(0, 2**63 - 1), "counter": st.integers(0, 2**63 - 1)}
    drawn = st.fixed_dictionaries(state | params | {"dtype": st.sampled_from(dtypes)})
    cases = drawn.map(lambda given: Case((), given))

    def call(key, counter, **given):
        return function(generator=generator(key, counter), **given)

    return Sample(call, reference, cases, (), gives=lambda _, dtype, **rest: dtype, **more)


def uniform(shape, key, counter, low, high, dtype):
    drawn = low + unit(shape, key, counter) * (high - low)
    return np.where(drawn.astype(dtype.numpy).astype(float) < high, drawn, low)  # high itself is left out


def normal(shape, key, counter, mean, std, dtype):
    """Box and Muller 1958."""
    radius = np.sqrt(-2 * np.log(1 - unit(shape, key, counter)))
    return mean + radius * np.cos(2 * np.pi * unit(shape, key, counter, stream=1)) * std


SAMPLES["uniform"] = draws(
    tinyarr.uniform,
    uniform,
    {"low": st.floats(-2, 0), "high": st.floats(1, 2)},
    FLOATS,
    precision=lambda dtype: float32,
    roundings=lambda **_: 3,
    scale=lambda: 4,
    errors=(refused(lambda: tinyarr.uniform((-1,)), ShapeError, "uniform", "(-1,)"),),
)
SAMPLES["normal"] = draws(
    tinyarr.normal,
    normal,
    {"mean": st.floats(-2, 2), "std": st.floats(0, 2)},
    FLOATS,
    precision=lambda dtype: float32,
    scale=lambda: 2 + 6 * 2,  # the largest radius is sqrt(2 * 24 * log 2) < 6
    errors=(refused(lambda: tinyarr.normal((2, -2)), ShapeError, "normal", "(2, -2)"),),
)
SAMPLES["bits"] = draws(
    lambda dtype, **given: tinyarr.random_bits(**given),
    lambda shape, key, counter, dtype: philox(shape, key, counter),
    {},
    (uint32,),
    roundings=exact,
)
SAMPLES["integers"] = draws(
    tinyarr.randint,
    lambda shape, key, counter, low, high, dtype: (
        low + (philox(shape, key, counter) * np.uint64(high - low) >> np.uint64(32)).astype(dtype.numpy)
    ),
    {"low": st.integers(0, 3), "high": st.integers(4, 100)},
    INTEGERS,
    roundings=exact,
    errors=(refused(lambda: tinyarr.randint(3, 3, 2), ArgumentError, "randint", "low is 3", "high is 3"),),
)
SAMPLES["dropout"] = Sample(
    lambda x, p, key, counter: tinyarr.dropout(x, p, generator=generator(key, counter)),
    lambda x, p, key, counter: np.where(philox(x.shape, key, counter) < int(p * 2**32), 0, x / (1 - p)),
    st.builds(
        lambda shape, p, key: Case((Operand(shape),), {"p": p, "key": key, "counter": 5}),
        shapes(max_side=SIDE),
        st.floats(0.1, 0.9),
        st.integers(0, 2**63 - 1),
    ),
    takes=ALL,
    gives=floating,
    roundings=lambda x, **_: 2,  # of 1 / (1 - p), and of the product
    errors=(refused(lambda: tinyarr.dropout(ones(2), 1.0), ArgumentError, "dropout", "p is 1.0", "[0, 1)"),),
)

# Shapes


def reshape_cases(draw) -> Case:
    shape = draw(shapes(max_side=SIDE))
    size = math.prod(shape)
    targets = [shape[::-1], (1, *shape), (size,), shape[:1] + (math.prod(shape[1:]),)] + [(-1,), (1, -1)] * (size > 0)
    return Case((Operand(shape),), {"shape": draw(st.sampled_from(targets))})


def permute_cases(draw) -> Case:
    shape = draw(shapes(max_ndim=4, max_side=SIDE))
    axes = draw(st.permutations(range(len(shape))))
    return Case((Operand(shape),), {"axes": tuple(a - draw(st.sampled_from((0, len(shape)))) for a in axes)})


def broadcast_cases(draw) -> Case:
    x, y = draw(broadcastable_shapes(2, max_side=SIDE))
    return Case((Operand(x),), {"shape": np.broadcast_shapes(x, y)})


def index_cases(draw) -> Case:
    shape = draw(shapes(max_side=5))
    return Case((Operand(shape),), {"key": draw(basic_indices(shape, allow_newaxis=True))})


def unslice_cases(draw) -> Case:
    (x,), params = draw(cases_of(index_cases))
    return Case((Operand(np.empty(x.shape)[params["key"]].shape),), params | {"shape": x.shape})


def in_zeros(g: np.ndarray, key, shape) -> np.ndarray:
    result = np.zeros(shape, g.dtype)
    result[key] = g
    return result


def concat_cases(draw) -> Case:
    shape = draw(shapes(min_ndim=1, max_side=SIDE))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    parts = [list(shape) for _ in range(draw(st.integers(1, 3)))]
    for part in parts:
        part[axis] = draw(st.integers(0, SIDE))
    return Case(tuple(Operand(tuple(part)) for part in parts), {"axis": draw(st.sampled_from((axis, None)))})


def split_cases(draw) -> Case:
    shape = draw(shapes(min_ndim=1))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    cut = draw(st.integers(0, shape[axis]))
    return Case((Operand(shape),), {"sizes": draw(st.sampled_from(([cut, shape[axis] - cut], cut + 1))), "axis": axis})


def split_reference(x: np.ndarray, sizes, axis: int) -> tuple[np.ndarray, ...]:
    ends = np.cumsum(sizes) if isinstance(sizes, list) else np.arange(sizes, x.shape[axis], sizes)
    return tuple(np.split(x, ends[:-1] if isinstance(sizes, list) else ends, axis=axis))


def arrangement(function: Callable, reference: Callable, build: Callable, *errors: Error) -> Sample:
    return Sample(function, reference, cases_of(build), takes=ALL, roundings=exact, errors=errors)


SAMPLES["reshape"] = arrangement(
    tinyarr.reshape,
    np.reshape,
    reshape_cases,
    refused(lambda: zeros((2, 3)).reshape((4, 2)), ShapeError, "reshape", "(2, 3)", "(4, 2)", "equally many"),
    refused(lambda: zeros((2, 3)).reshape((4, -1)), ShapeError, "reshape", "(2, 3)", "(4, -1)"),
)
SAMPLES["permute_dims"] = arrangement(
    tinyarr.permute_dims,
    np.transpose,
    permute_cases,
    refused(lambda: zeros((2, 3)).permute_dims((0, 0)), ShapeError, "permute_dims", "(0, 0)", "once"),
    refused(lambda: zeros((2, 3)).permute_dims((0, 2)), OutOfBounds, "permute_dims", "axis is 2", "-2 to 1"),
)
SAMPLES["broadcast_to"] = arrangement(
    tinyarr.broadcast_to,
    np.broadcast_to,
    broadcast_cases,
    refused(lambda: zeros((2, 3)).broadcast_to((4, 3)), ShapeError, "broadcast_to", "(2, 3)", "(4, 3)"),
    refused(lambda: zeros((2, 3)).broadcast_to((3,)), ShapeError, "broadcast_to", "(2, 3)", "(3,)"),
)
SAMPLES["slice"] = arrangement(
    lambda x, key: x[key],
    lambda x, key: x[key],
    index_cases,
    refused(lambda: zeros((2, 3))[2], OutOfBounds, "index", "2", "axis 0", "size 2", "-2 to 1"),
    refused(lambda: zeros((2, 3))[0, 0, 0], OutOfBounds, "index", "3 indices", "(2, 3)"),
)
SAMPLES["unslice"] = Sample(
    lambda g, key, shape: vjp(lambda x: x[key], zeros(shape, dtype=g.dtype))[1](g)[0],
    in_zeros,
    cases_of(unslice_cases),
    roundings=exact,
)
SAMPLES["concat"] = arrangement(
    lambda *parts, axis: tinyarr.concat(parts, axis=axis),
    lambda *parts, axis: np.concatenate(parts, axis=axis),
    concat_cases,
    refused(lambda: tinyarr.concat([]), ShapeError, "concat", "at least one"),
    refused(
        lambda: tinyarr.concat([zeros((2, 3)), zeros((2, 4))]),
        ShapeError, "concat", "tensor 1", "(2, 4)", "axes but 0",
    ),
    refused(lambda: tinyarr.concat([zeros(2)], axis=1), OutOfBounds, "concat", "axis is 1"),
)
SAMPLES["split"] = arrangement(
    tinyarr.split,
    split_reference,
    split_cases,
    refused(lambda: zeros(5).split([2, 2]), ShapeError, "split", "(5,)", "(2, 2)", "sum to 5"),
    refused(lambda: zeros(5).split(0), ShapeError, "split", "sizes is 0"),
)

# Reductions


def reduction_cases(draw, ties: bool = True) -> Case:
    """Any axes; without ties, for an extremum, none that is empty."""
    shape = draw(shapes(max_side=SIDE))
    choices = [a for a, n in enumerate(shape) if n or ties]
    axes = draw(st.lists(st.sampled_from(choices), unique=True)) if choices else []
    axis = axes[0] - len(shape) if len(axes) == 1 else tuple(axes)
    if len(choices) == len(shape):
        axis = draw(st.sampled_from((axis, None)))
    x = Operand(shape) if ties else Operand(shape, distinct, repeats=False)
    return Case((x,), {"axis": axis, "keepdims": draw(st.booleans())})


def extremum_cases(draw) -> Case:
    return reduction_cases(draw, ties=False)


def arg_cases(draw) -> Case:
    shape = draw(shapes(max_side=SIDE))
    choices = [a for a, n in enumerate(shape) if n] + [None] * (0 not in shape)
    if not choices:
        shape, choices = (2,), [0]
    return Case((Operand(shape),), {"axis": draw(st.sampled_from(choices)), "keepdims": draw(st.booleans())})


SAMPLES["sum"] = Sample(
    tinyarr.sum,
    np.sum,
    cases_of(reduction_cases),
    takes=ALL,
    gives=lambda dtype, **_: dtype if dtype.is_float else uint64 if dtype.kind == "unsigned" else int64,
    roundings=lambda x, **_: x.size,
    errors=(
        refused(lambda: zeros((2, 3)).sum(axis=2), OutOfBounds, "sum", "axis is 2", "2 dimensions"),
        refused(lambda: zeros((2, 3)).sum(axis=(0, -2)), ShapeError, "sum", "(0, -2)", "twice"),
    ),
)
def extremum(function: Callable, reference: Callable, build: Callable, **more) -> Sample:
    errors = (
        refused(lambda: function(zeros((2, 0)), axis=1), ShapeError, function.__name__, "(2, 0)", "empty"),
        refused(lambda: function(zeros(2), axis=1), OutOfBounds, function.__name__, "axis is 1"),
    )
    return Sample(function, reference, cases_of(build), takes=ALL, roundings=exact, errors=errors, **more)


SAMPLES["max"] = extremum(tinyarr.max, np.max, extremum_cases)
SAMPLES["min"] = extremum(tinyarr.min, np.min, extremum_cases)
SAMPLES["argmax"] = extremum(tinyarr.argmax, np.argmax, arg_cases, gives=lambda dtype, **_: int64)
SAMPLES["argmin"] = extremum(tinyarr.argmin, np.argmin, arg_cases, gives=lambda dtype, **_: int64)

# Products and indices


def matmul_cases(draw) -> Case:
    m, k, n = (draw(st.integers(0, SIDE)) for _ in range(3))
    x, y = draw(broadcastable_shapes(2, max_ndim=2, max_side=2))
    x, y = draw(st.sampled_from([(x + (m, k), y + (k, n)), ((k,), y + (k, n)), (x + (m, k), (k,)), ((k,), (k,))]))
    return Case((Operand(x), Operand(y)))


SAMPLES["matmul"] = Sample(
    tinyarr.matmul,
    np.matmul,
    cases_of(matmul_cases),
    takes=NUMBERS,
    roundings=lambda x, y: x.shape[-1] + 1,
    errors=(
        refused(
            lambda: zeros((3, 4)) @ zeros((5, 6)),
            ShapeError, "matmul", "(3, 4)", "(5, 6)", "last axis (4)", "(5)",
        ),
        refused(lambda: zeros((2, 3, 4)) @ zeros((3, 4, 5)), ShapeError, "matmul", "(2,)", "(3,)"),
        refused(lambda: Tensor(1.0) @ zeros(2), ShapeError, "matmul", "x is 0-d", "at least 1 dimension"),
        refused(lambda: tinyarr.matmul(zeros(2), 3.0), TypeError, "matmul", "y is float", "make it a tensor"),
    ),
)


def take_cases(draw, min_side: int = 0) -> Case:
    shape = draw(shapes(min_ndim=1, min_side=min_side, max_side=SIDE))
    axis = draw(st.sampled_from((None, *range(-len(shape), len(shape)))))
    n = math.prod(shape) if axis is None else shape[axis]
    picked = draw(shapes(max_ndim=2, max_side=SIDE)) if n else (0,)
    dtype = draw(st.sampled_from((int64, int32, uint8)))
    low = 0 if dtype is uint8 else -n
    return Case((Operand(shape), Operand(picked, integers=(low, max(n, 1)), dtype=dtype)), {"axis": axis})


def take_gradient_cases(draw) -> Case:
    (x, indices), params = take_cases(draw, min_side=1)
    taken = np.take(np.empty(x.shape), np.zeros(indices.shape, int), **params)
    return Case((Operand(taken.shape), indices), params | {"shape": x.shape})


def added_at(g: np.ndarray, indices: np.ndarray, axis, shape) -> np.ndarray:
    result = np.zeros(shape)
    number = np.arange(result.size).reshape(shape)
    np.add.at(result.reshape(-1), np.take(number, indices, axis=axis), g)
    return result


SAMPLES["take"] = Sample(
    tinyarr.take,
    np.take,
    cases_of(take_cases),
    takes=ALL,
    roundings=exact,
    errors=(
        refused(lambda: zeros((2, 3)).take(Tensor([0, 3]), axis=1), OutOfBounds, "take", "indices[1] is 3", "size 3"),
        refused(lambda: zeros(2).take(Tensor([-3])), OutOfBounds, "take", "indices[0] is -3", "size 2"),
        refused(lambda: zeros(2).take(Tensor([0.0])), DtypeError, "take", "float32", "integer"),
        refused(lambda: zeros(2).take(Tensor([0]), axis=1), OutOfBounds, "take", "axis is 1"),
    ),
)
SAMPLES["take_gradient"] = Sample(
    lambda g, indices, axis, shape: vjp(lambda x: x.take(indices, axis=axis), zeros(shape, dtype=g.dtype))[1](g)[0],
    added_at,
    cases_of(take_gradient_cases),
    roundings=lambda g, indices, **_: indices.size,
)

# Fused operations, and their gradients as operations of the output's gradient and the inputs


def gradient_of(function: Callable, differentiated: int) -> Callable:
    def gradient(g: Tensor, *inputs: Tensor, **params):
        _, pull = vjp(lambda *x: function(*x, *inputs[differentiated:], **params), *inputs[:differentiated])
        return pull(g) if differentiated > 1 else pull(g)[0]

    return gradient


def with_cotangent(cases: st.SearchStrategy, shape: Callable) -> st.SearchStrategy:
    return cases.map(lambda case: Case((Operand(shape(*case.operands)), *case.operands), case.params))


def product_of_largest(*arrays: np.ndarray) -> float:
    return math.prod(max(float(np.max(np.abs(x), initial=0)), 1) for x in arrays)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def attention_weights(q, k, is_causal, scale) -> tuple[np.ndarray, float]:
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q @ k.swapaxes(-1, -2) * scale
    return softmax(np.where(np.tri(*scores.shape[-2:]), scores, -np.inf) if is_causal else scores), scale


def attention(q, k, v, is_causal=False, scale=None):
    return attention_weights(q, k, is_causal, scale)[0] @ v


def attention_gradient(g, q, k, v, is_causal=False, scale=None):
    p, scale = attention_weights(q, k, is_causal, scale)
    slope = g @ v.swapaxes(-1, -2)
    ds = p * (slope - (slope * p).sum(axis=-1, keepdims=True)) * scale
    return ds @ k, ds.swapaxes(-1, -2) @ q, p.swapaxes(-1, -2) @ g


def attention_cases(draw) -> Case:
    b, h, t = (draw(st.integers(0, 2)) for _ in range(3))
    s, d, e = (draw(st.integers(1, SIDE)) for _ in range(3))
    causal = draw(st.booleans())
    t, s = (max(t, 1), max(t, 1)) if causal else (t, s)
    operands = tuple(Operand((b, h, *last)) for last in ((t, d), (s, d), (s, e)))
    return Case(operands, {"is_causal": causal, "scale": draw(st.sampled_from((None, 0.5)))})


LARGE_HEADS = tuple(Operand((1, 2, 48, 16)) for _ in range(3))


def attention_error(shapes, kind: type[Exception], *fragments: str, dtypes=(float32,) * 3, **params) -> Error:
    def call():
        return tinyarr.scaled_dot_product_attention(*map(lambda s, d: zeros(s, dtype=d), shapes, dtypes), **params)

    return refused(call, kind, "scaled_dot_product_attention", *fragments)


LAST_AXES = (1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3, 5)
MORE_KEYS = (1, 1, 2, 3), (1, 1, 4, 3), (1, 1, 4, 3)
MIXED = (float32, float64, float32)
ATTENTION_ERRORS = (
    attention_error(LAST_AXES, ShapeError, "(1, 2, 3, 4)", "(1, 2, 3, 5)", "last axes"),
    attention_error([(2, 3)] * 3, ShapeError, "(2, 3)", "(B, H, T, D)"),
    attention_error([(1, 1, 0, 3)] * 3, ShapeError, "(1, 1, 0, 3)", "at least one key"),
    attention_error(MORE_KEYS, ShapeError, "causal", "equally long", is_causal=True),
    attention_error([(1, 1, 2, 2)] * 3, DtypeError, "k float64", "one floating dtype", dtypes=MIXED),
)
SAMPLES["scaled_dot_product_attention"] = Sample(
    tinyarr.scaled_dot_product_attention,
    attention,
    cases_of(attention_cases),
    roundings=lambda q, k, v, **_: q.shape[-1] + k.shape[-2] + 12,
    scale=product_of_largest,
    errors=ATTENTION_ERRORS,
    large=Case(LARGE_HEADS, {"is_causal": True}),
)
SAMPLES["scaled_dot_product_attention_gradient"] = Sample(
    gradient_of(tinyarr.scaled_dot_product_attention, 3),
    attention_gradient,
    with_cotangent(cases_of(attention_cases), lambda q, k, v: q.shape[:-1] + v.shape[-1:]),
    precision=same,  # the output is an operand, as it was rounded when it was stored
    roundings=lambda g, q, k, v, **_: sum(q.shape) + sum(k.shape) + sum(v.shape) + 12,
    scale=product_of_largest,
    large=Case((LARGE_HEADS[0], *LARGE_HEADS), {"is_causal": True}),
)


def cross_entropy(logits, targets, reduction, ignore_index):
    counted = targets != ignore_index
    picked = np.take_along_axis(np.log(softmax(logits)), np.where(counted, targets, 0)[..., None], axis=-1)[..., 0]
    losses = np.where(counted, -picked, 0)
    return losses if reduction == "none" else losses.sum() / (counted.sum() if reduction == "mean" else 1)


def cross_entropy_gradient(g, logits, targets, reduction, ignore_index):
    hit = targets[..., None] == np.arange(logits.shape[-1])
    return np.where((targets != ignore_index)[..., None], g[..., None] * (softmax(logits) - hit), 0)


def cross_entropy_cases(draw, reductions=("none", "sum", "mean")) -> Case:
    reduction = draw(st.sampled_from(reductions))
    rows = draw(shapes(max_ndim=2, max_side=SIDE, min_side=reduction == "mean"))
    classes = draw(st.integers(2, 5))
    ignored = -100 if reduction == "mean" else draw(st.sampled_from((-100, 0)))
    targets = Operand(rows, integers=(0, classes), dtype=draw(st.sampled_from((int64, uint8))))
    return Case((Operand((*rows, classes)), targets), {"reduction": reduction, "ignore_index": ignored})


def losses_cases(draw) -> Case:
    return cross_entropy_cases(draw, ("none",))


LARGE_LOGITS = (Operand((64, 100), between(-6, 6)), Operand((64,), integers=(0, 100), dtype=int64))
LOSSES = {"reduction": "none", "ignore_index": 7}
SAMPLES["cross_entropy"] = Sample(
    tinyarr.cross_entropy,
    cross_entropy,
    cases_of(cross_entropy_cases),
    gives=lambda dtype, **_: dtype.compute,
    roundings=lambda logits, targets, **_: logits.size + 12,
    scale=product_of_largest,
    errors=(
        refused(
            lambda: tinyarr.cross_entropy(zeros((2, 3)), Tensor([0, 3])),
            OutOfBounds, "cross_entropy", "target 1 is 3", "0 to 2",
        ),
        refused(
            lambda: tinyarr.cross_entropy(zeros((2, 3)), Tensor([0])),
            ShapeError, "cross_entropy", "(2, 3)", "(1,)",
        ),
        refused(
            lambda: tinyarr.cross_entropy(zeros((2, 3)), zeros(2)),
            DtypeError, "cross_entropy", "targets", "integers",
        ),
        refused(
            lambda: tinyarr.cross_entropy(zeros((2, 3)), Tensor([0, 1]), reduction="max"),
            ArgumentError, "cross_entropy", "reduction", "'max'",
        ),
    ),
    large=Case(LARGE_LOGITS, LOSSES),
)
SAMPLES["cross_entropy_gradient"] = Sample(
    gradient_of(tinyarr.cross_entropy, 1),
    cross_entropy_gradient,
    with_cotangent(cases_of(losses_cases), lambda logits, targets: targets.shape),
    takes=(float32, float64),
    refuses=(),  # the loss of half types is float32, and g with it
    roundings=lambda g, logits, targets, **_: logits.shape[-1] + 12,
    scale=product_of_largest,
    large=Case((Operand((64,), dtype=float32), *LARGE_LOGITS), LOSSES),
)


def layer_norm(x, weight, bias, eps):
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / np.sqrt((centered**2).mean(axis=-1, keepdims=True) + eps) * weight + bias


def layer_norm_gradient(g, x, weight, bias, eps):
    h = layer_norm(x, 1, 0, eps)
    rstd = 1 / np.sqrt(x.var(axis=-1, keepdims=True) + eps)
    d = g * weight
    dx = rstd * (d - d.mean(axis=-1, keepdims=True) - h * (d * h).mean(axis=-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return dx, (g * h).sum(axis=rows), g.sum(axis=rows)


def layer_norm_cases(draw) -> Case:
    shape = (*draw(shapes(max_ndim=2, max_side=SIDE)), draw(st.integers(1, 5)))
    return Case((Operand(shape), Operand(shape[-1:]), Operand(shape[-1:])), {"eps": draw(st.sampled_from((1e-2, 0.5)))})


LARGE_NORM = (Operand((32, 96)), Operand((96,)), Operand((96,)))
SAMPLES["layer_norm"] = Sample(
    tinyarr.layer_norm,
    layer_norm,
    cases_of(layer_norm_cases),
    takes=ALL,
    gives=floating,
    roundings=lambda x, weight, bias, **_: 2 * x.shape[-1] + 12,
    scale=product_of_largest,
    errors=(
        refused(
            lambda: tinyarr.layer_norm(zeros((2, 3)), zeros(2), zeros(3)),
            ShapeError, "layer_norm", "(2, 3)", "weight has shape (2,)", "last axis",
        ),
        refused(
            lambda: tinyarr.layer_norm(Tensor(1.0), zeros(1), zeros(1)),
            ShapeError, "layer_norm", "x has shape ()",
        ),
    ),
    large=Case(LARGE_NORM, {"eps": 1e-5}),
)
SAMPLES["layer_norm_gradient"] = Sample(
    gradient_of(tinyarr.layer_norm, 3),
    layer_norm_gradient,
    with_cotangent(cases_of(layer_norm_cases), lambda x, weight, bias: x.shape),
    roundings=lambda g, x, weight, bias, **_: 2 * x.shape[-1] + x.size + 12,
    scale=product_of_largest,
    large=Case((LARGE_NORM[0], *LARGE_NORM), {"eps": 1e-5}),
)

# Updates of optimizers


def update(optimizer: Callable, *, master: bool) -> Callable:
    """The new parameter and state after one step, from the parameter, its gradient, and the state before."""

    def function(p: Tensor, g: Tensor, *state: Tensor, step: int = 0, **options):
        p = Tensor(p, requires_grad=True)
        p.grad = g
        stepped = optimizer([p], **options)
        kept = stepped.state_dict()
        kept["step"].assign(step)
        views = {name.split(".")[-1]: x for name, x in kept.items() if "." in name}
        for x, value in zip([x for name, x in views.items() if name != "master"], state, strict=True):
            x.assign(value.detach())
        stepped.step()
        return p.detach(), *([views.pop("master")] if master else []), *views.values()

    return function


def adamw(p, g, m, v, step, lr, betas, eps, weight_decay):
    m, v, t = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g**2, step + 1
    change = lr * (m / (1 - betas[0] ** t)) / (np.sqrt(v / (1 - betas[1] ** t)) + eps)
    return p - lr * weight_decay * p - change, m, v


def sgd(p, g, velocity, lr, momentum, weight_decay, nesterov):
    g = g + weight_decay * p
    velocity = momentum * velocity + g
    return p - lr * (g + momentum * velocity if nesterov else velocity), velocity


def with_master(reference: Callable) -> Callable:
    """The new parameter is the new master copy, rounded."""

    def function(*arrays, **options):
        p, *state = reference(*arrays, **options)
        return p, p, *state

    return function


def updates(name: str, optimizer: Callable, reference: Callable, options: st.SearchStrategy, *state: Callable) -> None:
    """The records of an optimizer's update, alone and with a master copy; its state lies in `state`."""

    def case(shape, options, dtype=None) -> Case:
        p, g = Operand(shape), Operand(shape)
        return Case((p, g, *(Operand(shape, values, dtype=dtype) for values in state)), options)

    plain, masters = (st.builds(case, shapes(max_side=SIDE), options, st.just(d)) for d in (None, float32))
    shared: dict[str, Any] = {"refuses": BITS, "scale": product_of_largest}
    SAMPLES[f"{name}_update"] = Sample(
        update(optimizer, master=False), reference, plain, takes=(float32, float64), **shared
    )
    SAMPLES[f"{name}_master_update"] = Sample(
        update(optimizer, master=True),
        with_master(reference),
        masters,
        takes=(float16, bfloat16),
        gives=lambda dtype, **_: (dtype, float32, *[float32] * len(state)),
        **shared,
    )


ADAMW = {"step": 4, "lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.1}
SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}
updates("adamw", tinyarr.optim.AdamW, adamw, st.just(ADAMW), between(-1, 1), between(0.1, 1))
updates("sgd", tinyarr.optim.SGD, sgd, st.booleans().map(lambda b: SGD | {"nesterov": b}), between(-1, 1))


def scaled(g: Tensor, max_norm: float) -> Tensor:
    p = zeros(g.shape, dtype=g.dtype)
    p.grad = Tensor(g)
    tinyarr.optim.clip_grad_norm([p], max_norm)
    return p.grad


SAMPLES["scaled"] = Sample(
    scaled,
    lambda g, max_norm: g * min(max_norm / (np.linalg.norm(g) + 1e-6), 1),
    st.builds(lambda s, n: Case((Operand(s),), {"max_norm": n}), shapes(max_side=SIDE), st.sampled_from((0.5, 100.0))),
    takes=tuple(d for d in FLOATS if d not in FLOAT8),
    refuses=(),
    roundings=lambda g, **_: g.size + 6,
    errors=(refused(lambda: scaled(ones(2), 0), ArgumentError, "clip_grad_norm", "max_norm is 0", "positive"),),
)
