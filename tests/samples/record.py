"""What a sample record holds, and what the families of records share."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from tinyarr import Tensor, vjp
from tinyarr.dtypes import (
    ALL,
    Dtype,
    bool,
    float32,
)

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


def cases_of(build: Callable) -> st.SearchStrategy:
    return st.composite(build)()


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
