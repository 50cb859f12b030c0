"""Programs composed at random: values against the same program run by NumPy, gradients against finite differences.

A program is a list of steps, each on values made before it, so values are shared, viewed and written into as they are
in a model. Every step is written once, for a namespace `xp` that is tinyarr or NumPy; both follow the Array API.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

import tinyarr
from tests.samples import SAMPLES
from tests.tiers import at_most
from tinyarr import Tensor
from tinyarr.testing import gradcheck, shapes

LARGEST = 20.0  # values beyond are squeezed, so that errors stay near the rounding of float64


class Step(NamedTuple):
    """function(xp, *values) gives a list of values; `frozen` if they have no gradient and are computed only once."""

    operands: tuple[int, ...]
    function: Callable[..., list]
    frozen: bool = False

    def run(self, xp: Any, values: list) -> list:
        results = self.function(xp, *(values[i] for i in self.operands))
        return results if xp is tinyarr else [np.asarray(x) for x in results]  # NumPy's 0-d results are scalars


class Program(NamedTuple):
    inputs: list[np.ndarray]
    steps: list[Step]
    outputs: list[int]

    def evaluate(self, xp: Any, inputs, kept: dict[int, list] | None = None) -> list:
        """All values; what is frozen is taken from `kept`, or put there the first time."""
        values = list(inputs)
        for number, step in enumerate(self.steps):
            if step.frozen and kept is not None:
                if number not in kept:
                    kept[number] = step.run(xp, values)
                values += kept[number]
            else:
                values += step.run(xp, values)
        return values

    def function(self) -> Callable[..., tuple]:
        """Of inputs the outputs, by tinyarr; what is frozen is what the first call computes."""
        kept: dict[int, list] = {}

        def function(*inputs):
            values = self.evaluate(tinyarr, inputs, kept)
            return tuple(values[i] for i in self.outputs)

        return function

    def with_gradients(self) -> Callable[..., tuple]:
        """Of inputs the outputs, and the gradients of their sum."""
        function = self.function()

        def with_gradients(*inputs):
            out, pull = tinyarr.vjp(function, *inputs)
            return *out, *pull(*(tinyarr.ones_like(x) for x in out))

        return with_gradients


# Onto which part of the real line the argument of a function is brought first.
ANY = "sin cos tanh sinh cosh atan asinh erf exp expm1 negative square sigmoid silu softplus gelu_erf gelu_tanh".split()
POSITIVE = "sqrt log log2 log10 rsqrt reciprocal log1p".split()
ABOVE_ONE = ["acosh"]
INSIDE_ONE = "asin acos atanh tan".split()
INTO = (
    dict.fromkeys(ANY, lambda xp, x: xp.tanh(x) * 2)
    | dict.fromkeys(POSITIVE, lambda xp, x: x * x + 0.5)
    | dict.fromkeys(ABOVE_ONE, lambda xp, x: x * x + 1.5)
    | dict.fromkeys(INSIDE_ONE, lambda xp, x: xp.tanh(x) * 0.9)
)
BINARY = {
    "add": lambda xp, x, y: x + y,
    "subtract": lambda xp, x, y: x - y,
    "multiply": lambda xp, x, y: x * y,
    "divide": lambda xp, x, y: x / (y * y + 1),
    "pow": lambda xp, x, y: (x * x + 0.5) ** xp.tanh(y),
    "atan2": lambda xp, x, y: xp.atan2(x, y * y + 1),
    "hypot": lambda xp, x, y: xp.hypot(x, y * y + 1),
    # Not x > y: where y is a frozen copy of x the program would jump just there, and have no gradient.
    "where": lambda xp, x, y: xp.where(x > y + 0.01, x * y, y),
    "where of dead branches": lambda xp, x, y: xp.where(y > 0, xp.where(y > 0, y, 1) ** 0.5, x),
}


def named(xp: Any, name: str) -> Callable:
    """An operation under tinyarr, or what its sample record says that it is."""
    return SAMPLES[name].function if xp is tinyarr else SAMPLES[name].reference


def unary(draw, values) -> Step:
    name = draw(st.sampled_from(list(INTO)))
    return Step((pick(draw, values),), lambda xp, x: [named(xp, name)(INTO[name](xp, x))])


def binary(draw, values) -> Step:
    i = pick(draw, values)
    j = pick(draw, values, lambda y: broadcasts(values[i].shape, y.shape))
    run = BINARY[draw(st.sampled_from(list(BINARY)))]
    return Step((i, j), lambda xp, x, y: [run(xp, x, y)])


def reduction(draw, values) -> Step:
    i = pick(draw, values, lambda x: x.size)
    axes = draw(st.none() | st.sets(st.integers(0, max(values[i].ndim - 1, 0)), max_size=values[i].ndim))
    given = {"axis": None if axes is None else tuple(axes), "keepdims": draw(st.booleans())}
    name = draw(st.sampled_from(("sum", "mean", "var")))
    return Step((i,), lambda xp, x: [getattr(xp, name)(x, **given)])


def arrangement(draw, values) -> Step:
    """A view of a value, or the pieces of one."""
    i = pick(draw, values)
    x = values[i]
    kind = draw(st.sampled_from(("reshape", "permute", "slice", "flip", "broadcast", "expand", "split")))
    if kind == "reshape":
        shape = draw(st.sampled_from([(-1,), (1, *x.shape), (*x.shape, 1), x.shape[::-1]]))
        return Step((i,), lambda xp, x: [xp.reshape(x, shape if -1 not in shape else (x.size,))])
    if kind == "permute":
        axes = tuple(draw(st.permutations(range(x.ndim))))
        return Step((i,), lambda xp, x: [xp.permute_dims(x, axes)])
    if kind == "slice":
        key = draw(basic_indices(x.shape, allow_newaxis=True))
        return Step((i,), lambda xp, x: [x[key]])
    if kind == "flip":
        return Step((i,), lambda xp, x: [xp.flip(x)])
    if kind == "broadcast":
        shape = (draw(st.integers(1, 2)), *x.shape)
        return Step((i,), lambda xp, x: [xp.broadcast_to(x, shape)])
    if kind == "expand" or not x.ndim or x.shape[0] < 2:
        return Step((i,), lambda xp, x: [xp.expand_dims(x, axis=0)])
    return Step((i,), lambda xp, x: [x[:1], x[1:]])


def join(draw, values) -> Step:
    i = pick(draw, values, lambda x: x.ndim)
    j = pick(draw, values, lambda y: y.shape == values[i].shape)
    axis = draw(st.integers(-values[i].ndim, values[i].ndim - 1))
    name = draw(st.sampled_from(("concat", "stack")))
    return Step((i, j), lambda xp, x, y: [getattr(xp, name)([x, y], axis=axis)])


def product(draw, values) -> Step:
    i = pick(draw, values, lambda x: x.ndim >= 2 and x.size)
    return Step((i,), lambda xp, x: [xp.matmul(x, xp.matrix_transpose(x))])


def gather(draw, values) -> Step:
    i = pick(draw, values, lambda x: x.ndim and x.shape[-1])
    indices = np.array(draw(st.lists(st.integers(0, values[i].shape[-1] - 1), max_size=4)), np.int64)
    return Step((i,), lambda xp, x: [xp.take(x, xp.asarray(indices), axis=-1)])


def row_function(draw, values) -> Step:
    """What normalizes along the last axis, and attention over it."""
    i = pick(draw, values, lambda x: x.ndim and x.shape[-1])
    kind = draw(st.sampled_from(("softmax", "layer_norm", "attention")))
    if kind == "softmax":
        return Step((i,), lambda xp, x: [tinyarr.softmax(x) if xp is tinyarr else softmax(x)])
    ones = np.ones(values[i].shape[-1])
    if kind == "layer_norm":
        return Step((i,), lambda xp, x: [named(xp, "layer_norm")(x, xp.asarray(ones), xp.asarray(ones), eps=1.0)])
    rows = math.prod(values[i].shape[:-1])
    if not rows:
        return Step((i,), lambda xp, x: [x])

    def attend(xp, x):
        q = xp.reshape(x, (1, 1, rows, x.shape[-1]))
        return [named(xp, "scaled_dot_product_attention")(q, q, q, is_causal=True)]

    return Step((i,), attend)


def write(draw, values) -> Step:
    """A copy without gradient, of which a part is written through a view; both the copy and the view go on."""
    i = pick(draw, values)
    key = draw(basic_indices(values[i].shape, allow_newaxis=False))
    value = draw(st.floats(-1, 1))

    def run(xp, x):
        whole = tinyarr.copy(x.detach()) if xp is tinyarr else x.copy()
        part = whole[..., :] if x.ndim else whole
        part[key] = value
        return [whole, part]

    return Step((i,), run, frozen=True)


KINDS = (unary, unary, binary, binary, reduction, arrangement, arrangement, join, product, gather, row_function, write)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def broadcasts(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return all(n == m or 1 in (n, m) for n, m in zip(a[::-1], b[::-1]))


def pick(draw, values, suits: Callable = lambda x: True) -> int:
    """The number of a value that suits, or NotFound where there is none."""
    choices = [i for i, x in enumerate(values) if suits(x)]
    if not choices:
        raise NotFound
    return choices[draw(st.integers(0, len(choices) - 1))]


class NotFound(Exception):
    """No value made so far suits the step."""


@st.composite
def programs(draw, kinds=KINDS) -> Program:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    inputs = [rng.normal(size=draw(shapes(max_ndim=3, max_side=3))) for _ in range(draw(st.integers(1, 3)))]
    values, steps = list(inputs), []
    for _ in range(draw(st.integers(1, 10))):
        try:
            step = draw(st.sampled_from(kinds))(draw, values)
        except NotFound:
            continue
        with np.errstate(all="ignore"):
            made = step.run(np, values)
        if all(x.size <= 64 and np.isfinite(x).all() and np.abs(x).max(initial=0) <= LARGEST for x in made):
            steps.append(step)
            values += made
    outputs = draw(st.lists(st.integers(0, len(values) - 1), min_size=1, max_size=3, unique=True))
    return Program(inputs, steps, outputs)


@at_most(150)
@given(programs())
def test_a_program_has_the_values_that_numpy_gives_it(program):
    values = program.evaluate(tinyarr, map(Tensor, program.inputs))
    for x, expected in zip(values, program.evaluate(np, program.inputs), strict=True):
        assert x.shape == expected.shape
        # Ten steps on values up to 20, each of a condition below 100, from roundings of 1e-16.
        np.testing.assert_allclose(x.numpy(), expected, rtol=1e-10, atol=1e-10)


@at_most(60)
@given(programs())
def test_a_program_has_the_gradients_that_finite_differences_give_it(program):
    assert gradcheck(program.function(), *map(Tensor, program.inputs))
