"""Random numbers: each element follows from the key, the counter and its row-major position."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

import tinyarr
from tests.samples.record import (
    FLOATS,
    INTEGERS,
    SAMPLES,
    SIDE,
    Case,
    Operand,
    Sample,
    between,
    exact,
    floating,
    refused,
)
from tinyarr import Generator, ones
from tinyarr.dtypes import (
    ALL,
    float32,
    float64,
    uint32,
)
from tinyarr.errors import ArgumentError, ShapeError
from tinyarr.ops.more.sampling import _arrival_time
from tinyarr.testing import shapes

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
SAMPLES["arrival_time"] = Sample(
    lambda weight, key, counter: _arrival_time(weight, key, counter),
    lambda weight, key, counter: -np.log((philox(weight.shape, key, counter) + 0.5) / 2.0**32) / weight,
    st.builds(
        lambda shape, key: Case((Operand(shape, between(0.1, 2)),), {"key": key, "counter": 5}),
        shapes(max_side=SIDE),
        st.integers(0, 2**63 - 1),
    ),
    takes=(float64,),
    refuses=(),
    roundings=lambda *_, **__: 7,
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
    errors=(refused(lambda: tinyarr.dropout(ones(2), 1.5), ArgumentError, "dropout", "p is 1.5", "[0, 1]"),),
)
