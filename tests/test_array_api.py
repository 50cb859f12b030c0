"""tinyarr beside array-api-strict, which does what the Array API standard 2024.12 says and nothing else."""

import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, mutually_broadcastable_shapes

import tinyarr
from tests.tiers import at_most
from tinyarr import Tensor
from tinyarr.namespace import STANDARD

pytestmark = pytest.mark.parity

NAMES = [d.name for d in STANDARD]
FLOATS = [d.name for d in STANDARD if d.is_float]
INTEGERS = [d.name for d in STANDARD if d.kind in ("signed", "unsigned")]
SIGNED = [d.name for d in STANDARD if d.kind == "signed"]
NUMBERS = INTEGERS + FLOATS
BITS = ["bool", *INTEGERS]
ANY = ["bool", *NUMBERS]

# What docs/array_api.md lists: names that are missing on purpose.
OUT_OF_SCOPE = {"complex64", "complex128", "conj", "imag", "real", "fft", "linalg"}
NOT_STANDARD = {
    "ArrayAPIStrictFlags", "get_array_api_strict_flags", "reset_array_api_strict_flags", "set_array_api_strict_flags",
    "isin", "broadcast_shapes",
}  # fmt: skip


@pytest.fixture(scope="module")
def strict():
    import array_api_strict

    array_api_strict.set_array_api_strict_flags(api_version="2024.12")
    return array_api_strict


def test_every_name_of_the_standard_in_scope_is_there(strict):
    assert [n for n in strict.__all__ if n not in OUT_OF_SCOPE | NOT_STANDARD and not hasattr(tinyarr, n)] == []


def test_parameters_have_the_standard_names_kinds_and_defaults(strict):
    differ = []
    for name in strict.__all__:
        theirs = getattr(strict, name)
        if name in OUT_OF_SCOPE | NOT_STANDARD or not inspect.isfunction(theirs):
            continue
        ours = inspect.signature(getattr(tinyarr, name)).parameters
        for i, (parameter, p) in enumerate(inspect.signature(theirs).parameters.items()):
            if p.kind is p.POSITIONAL_ONLY:
                fits = i < len(ours) and list(ours.values())[i].kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
            elif p.kind is p.VAR_POSITIONAL:
                fits = any(q.kind is p.VAR_POSITIONAL for q in ours.values())
            else:
                fits = parameter in ours and ours[parameter].kind in (p.kind, p.POSITIONAL_OR_KEYWORD)
            if not fits:
                differ.append(f"{name}: {parameter}")
    assert differ == []


class Call(NamedTuple):
    """A function, the arrays it gets (as NumPy's), and its other arguments."""

    name: str
    arrays: list[np.ndarray]
    run: Callable[..., Any]


SPECIAL = {
    "float": [0.0, -0.0, 1.0, -1.0, 0.5, -2.5, 3.0, math.inf, -math.inf, math.nan, 1e-3, 100.0],
    "signed": [0, 1, -1, 2, 3, -7, 100],
    "unsigned": [0, 1, 2, 3, 7, 100],
    "bool": [False, True],
}


def arrays(draw, shape, names) -> np.ndarray:
    dtype = draw(st.sampled_from(names))
    kind = tinyarr.dtypes.dtype(dtype).kind
    values = draw(st.lists(st.sampled_from(SPECIAL[kind]), min_size=math.prod(shape), max_size=math.prod(shape)))
    return np.array(values, dtype).reshape(shape)


shapes = array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
filled = array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=3)

UNARY = {
    "abs": NUMBERS, "acos": FLOATS, "acosh": FLOATS, "asin": FLOATS, "asinh": FLOATS, "atan": FLOATS, "atanh": FLOATS,
    "bitwise_invert": BITS, "ceil": NUMBERS, "cos": FLOATS, "cosh": FLOATS, "exp": FLOATS, "expm1": FLOATS,
    "floor": NUMBERS, "isfinite": NUMBERS, "isinf": NUMBERS, "isnan": NUMBERS, "log": FLOATS, "log10": FLOATS,
    "log1p": FLOATS, "log2": FLOATS, "logical_not": ["bool"], "negative": SIGNED + FLOATS, "positive": NUMBERS,
    "reciprocal": FLOATS, "round": NUMBERS, "sign": NUMBERS, "signbit": FLOATS, "sin": FLOATS, "sinh": FLOATS,
    "sqrt": FLOATS, "square": NUMBERS, "tan": FLOATS, "tanh": FLOATS, "trunc": NUMBERS,
}  # fmt: skip
BINARY = {
    "add": NUMBERS, "atan2": FLOATS, "bitwise_and": BITS, "bitwise_or": BITS, "bitwise_xor": BITS, "copysign": FLOATS,
    "divide": FLOATS, "equal": ANY, "floor_divide": NUMBERS, "greater": NUMBERS, "greater_equal": NUMBERS,
    "hypot": FLOATS, "less": NUMBERS, "less_equal": NUMBERS, "logaddexp": FLOATS, "logical_and": ["bool"],
    "logical_or": ["bool"], "logical_xor": ["bool"], "maximum": NUMBERS, "minimum": NUMBERS, "multiply": NUMBERS,
    "nextafter": FLOATS, "not_equal": ANY, "pow": NUMBERS, "remainder": NUMBERS, "subtract": NUMBERS,
}  # fmt: skip


@st.composite
def unary(draw, name):
    return Call(name, [arrays(draw, draw(shapes), UNARY[name])], lambda xp, x: getattr(xp, name)(x))


@st.composite
def binary(draw, name):
    """Of one kind, as the standard mixes none; for integers without division by 0 or a negative exponent."""
    dtype = draw(st.sampled_from(BINARY[name]))
    kind = tinyarr.dtypes.dtype(dtype).kind
    alike = [n for n in BINARY[name] if tinyarr.dtypes.dtype(n).kind == kind]
    first, second = draw(mutually_broadcastable_shapes(num_shapes=2, max_dims=3, max_side=3, min_side=0)).input_shapes
    x, y = arrays(draw, first, alike), arrays(draw, second, alike)
    if kind != "float" and name in ("floor_divide", "remainder"):
        y = np.where(y == 0, 3, y).astype(y.dtype)
    if kind != "float" and name == "pow":
        y = (np.abs(y) % 3).astype(y.dtype)
    return Call(name, [x, y], lambda xp, x, y: getattr(xp, name)(x, y))


def axes_of(draw, ndim: int, several: bool = True):
    choices = [st.none()] + ([st.integers(-ndim, ndim - 1)] if ndim else [])
    if several:
        unique = {"unique_by": lambda a: a % ndim, "max_size": ndim} if ndim else {"max_size": 0}
        choices.append(st.lists(st.integers(-ndim, ndim - 1) if ndim else st.nothing(), **unique).map(tuple))
    return draw(st.one_of(choices))


@st.composite
def reduction(draw, name):
    names = {"all": ANY, "any": ANY, "count_nonzero": ANY, "mean": FLOATS, "var": FLOATS, "std": FLOATS}
    shape = draw(filled if name in ("max", "min", "argmax", "argmin") else shapes)
    x = arrays(draw, shape, names.get(name, NUMBERS))
    given = {"axis": axes_of(draw, x.ndim, name not in ("argmax", "argmin")), "keepdims": draw(st.booleans())}
    if name in ("argmax", "argmin") and x.dtype.kind == "f":
        x = np.nan_to_num(x)
    return Call(name, [x], lambda xp, x: getattr(xp, name)(x, **given))


@st.composite
def along_axis(draw, name):
    shape = draw(filled)
    x = arrays(draw, shape, NUMBERS)
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    given = {"axis": axis}
    if name in ("sort", "argsort"):
        given["descending"] = draw(st.booleans())
        x = np.nan_to_num(x) if x.dtype.kind == "f" else x
    if name in ("cumulative_sum", "cumulative_prod"):
        given["include_initial"] = draw(st.booleans())
    return Call(name, [x], lambda xp, x: getattr(xp, name)(x, **given))


@st.composite
def arrangement(draw, name):
    x = arrays(draw, draw(shapes), ANY)
    n = x.ndim
    axis = st.integers(-n, n - 1) if n else st.nothing()
    if name == "expand_dims":
        a = draw(st.integers(-n - 1, n))
        return Call(name, [x], lambda xp, x: xp.expand_dims(x, axis=a))
    if name == "flip":
        a = axes_of(draw, n)
        return Call(name, [x], lambda xp, x: xp.flip(x, axis=a))
    if name == "permute_dims":
        order = tuple(draw(st.permutations(range(n))))
        return Call(name, [x], lambda xp, x: xp.permute_dims(x, order))
    if name == "reshape":
        shape = draw(st.sampled_from([x.shape[::-1], (*x.shape, 1), (x.size,)]))
        return Call(name, [x], lambda xp, x: xp.reshape(x, shape))
    if name == "roll":
        a, shift = draw(st.none() | axis), draw(st.integers(-5, 5))
        return Call(name, [x], lambda xp, x: xp.roll(x, shift, axis=a))
    if name == "tile":
        times = tuple(draw(st.lists(st.integers(0, 2), max_size=4)))
        return Call(name, [x], lambda xp, x: xp.tile(x, times))
    if name == "repeat":
        a, times = draw(st.none() | axis), draw(st.integers(0, 3))
        return Call(name, [x], lambda xp, x: xp.repeat(x, times, axis=a))
    if name == "broadcast_to":
        shape = (draw(st.integers(0, 2)), *x.shape)
        return Call(name, [x], lambda xp, x: xp.broadcast_to(x, shape))
    if name in ("tril", "triu", "matrix_transpose"):
        x = arrays(draw, draw(array_shapes(min_dims=2, max_dims=3, min_side=0, max_side=3)), ANY)
        k = draw(st.integers(-4, 4))
        more = {} if name == "matrix_transpose" else {"k": k}
        return Call(name, [x], lambda xp, x: getattr(xp, name)(x, **more))
    if name == "moveaxis":
        x = arrays(draw, draw(filled), ANY)
        a, b = (draw(st.integers(-x.ndim, x.ndim - 1)) for _ in "ab")
        return Call(name, [x], lambda xp, x: xp.moveaxis(x, a, b))
    if name == "squeeze":
        x = x.reshape((1, *x.shape))
        return Call(name, [x], lambda xp, x: xp.squeeze(x, axis=0))
    if name == "unstack":
        x = arrays(draw, draw(filled), ANY)
        a = draw(st.integers(-x.ndim, x.ndim - 1))
        return Call(name, [x], lambda xp, x: xp.unstack(x, axis=a))
    x = arrays(draw, draw(filled), ANY)
    y = arrays(draw, x.shape, [x.dtype.name])
    a = draw(st.integers(-x.ndim, x.ndim - 1))
    a = draw(st.sampled_from((a, None))) if name == "concat" else a
    return Call(name, [x, y], lambda xp, x, y: getattr(xp, name)([x, y], axis=a))


def product_arrays(draw, *pair):
    """Small whole numbers, so that sums are exact in any order."""
    dtype = draw(st.sampled_from(NUMBERS))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return [rng.integers(0, 4, shape).astype(dtype) for shape in pair]


@st.composite
def product(draw, name):
    m, k, n, b = (draw(st.integers(0, 3)) for _ in range(4))
    if name == "matmul":
        pairs = [((m, k), (k, n)), ((b, m, k), (k, n)), ((k,), (b, k, n)), ((m, k), (k,)), ((k,), (k,))]
        pair = draw(st.sampled_from(pairs))
        return Call(name, product_arrays(draw, *pair), lambda xp, x, y: xp.matmul(x, y))
    if name == "vecdot":
        pair = draw(st.sampled_from([((m, k), (m, k)), ((b, m, k), (m, k)), ((k,), (m, k))]))
        return Call(name, product_arrays(draw, *pair), lambda xp, x, y: xp.vecdot(x, y))
    choices = [(2, ((b, m, k), (m, k, n))), (1, ((m, k), (k, n))), (0, ((m,), (k,))),
               (((0, 2), (1, 0)), ((k, m, n), (n, k, b)))]
    axes, pair = draw(st.sampled_from(choices))
    return Call(name, product_arrays(draw, *pair), lambda xp, x, y: xp.tensordot(x, y, axes=axes))


@st.composite
def gathering(draw, name):
    x = arrays(draw, draw(filled), ANY)
    axis = draw(st.integers(-x.ndim, x.ndim - 1))
    n = x.shape[axis]
    if name == "take":
        i = np.array(draw(st.lists(st.integers(0, n - 1), max_size=4)), np.int64)
        return Call(name, [x, i], lambda xp, x, i: xp.take(x, i, axis=axis))
    if name == "take_along_axis":
        i = np.random.default_rng(0).integers(0, n, x.shape)
        return Call(name, [x, i], lambda xp, x, i: xp.take_along_axis(x, i, axis=axis))
    if name == "where":
        c = arrays(draw, x.shape, ["bool"])
        return Call(name, [c, x, x[::-1].copy()], lambda xp, c, x, y: xp.where(c, x, y))
    if name == "searchsorted":
        sorted_, found = np.sort(product_arrays(draw, (draw(st.integers(0, 5)),))[0]), np.arange(6.0)
        side = draw(st.sampled_from(("left", "right")))
        found = found.astype(sorted_.dtype)
        return Call(name, [sorted_, found], lambda xp, a, v: xp.searchsorted(a, v, side=side))
    if name == "masking":
        mask = arrays(draw, x.shape[: draw(st.integers(1, x.ndim))], ["bool"])
        return Call(name, [x, mask], lambda xp, x, mask: x[mask])
    if name == "clip":
        x = arrays(draw, x.shape, FLOATS + SIGNED)
        low, high = sorted(draw(st.tuples(st.integers(-3, 3), st.integers(-3, 3))))
        return Call(name, [x], lambda xp, x: xp.clip(x, low, high))
    x = np.nan_to_num(x) if x.dtype.kind == "f" else x
    return Call(name, [x], lambda xp, x: getattr(xp, name)(x))


FAMILIES = (
    (unary, list(UNARY)),
    (binary, list(BINARY)),
    (reduction, "sum prod max min mean var std any all count_nonzero argmax argmin".split()),
    (along_axis, "cumulative_sum cumulative_prod sort argsort diff".split()),
    (arrangement, "expand_dims flip permute_dims reshape roll tile repeat broadcast_to tril triu matrix_transpose "
                  "moveaxis squeeze unstack concat stack".split()),
    (product, "matmul vecdot tensordot".split()),
    (gathering, "take take_along_axis where searchsorted masking clip nonzero unique_all unique_counts unique_inverse "
                "unique_values".split()),
)


def in_tuple(result) -> tuple:
    return tuple(result) if isinstance(result, tuple | list) else (result,)


@pytest.mark.property
@pytest.mark.parametrize(("family", "name"), [pytest.param(f, n, id=n) for f, names in FAMILIES for n in names])
def test_shape_dtype_and_values_are_those_of_the_standard(strict, family, name):
    @at_most(40)
    @given(family(name))
    def check(call):
        with np.errstate(all="ignore"):
            expected = in_tuple(call.run(strict, *map(strict.asarray, call.arrays)))
        found = in_tuple(call.run(tinyarr, *map(Tensor, call.arrays)))
        assert len(found) == len(expected)
        for x, y in zip(found, expected):
            assert x.shape == y.shape
            assert x.dtype.name == str(y.dtype).removeprefix("array_api_strict.")
            # Both round a few times each, so they may differ by some units in the last place.
            exact = (x.dtype.is_float and 16 * tinyarr.finfo(x.dtype).eps) or 0
            np.testing.assert_allclose(x.numpy(), np.asarray(y._array), rtol=exact, atol=exact)

    check()
