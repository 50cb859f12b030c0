"""Large draws of eager mode: in C they have the bits that they have in NumPy."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import at_most
from tinyarr import dtypes
from tinyarr.backends.c import draw
from tinyarr.backends.c.draw import LARGE
from tinyarr.ops.scalar import cast, exp, random_bits, variable
from tinyarr.ops.typing import type_expression

FLOATS = [d for d in dtypes.ALL if d.is_float]
INTEGERS = [d for d in dtypes.ALL if d.kind in ("signed", "unsigned")]


def edges(size, dtype):
    """Numbers of a dtype, NaN and infinity among them."""
    values = np.array([0.0, -0.0, 1.5, -3.0, 1e-3, np.inf, -np.inf, np.nan])
    return ta.Tensor(np.resize(values, size)).astype(dtype)


def rounded_update(size, generator):
    p = ta.Tensor(np.resize(np.linspace(-3, 3, 1009), size), dtype=ta.bfloat16, requires_grad=True)
    optimizer = ta.optim.AdamW([p], lr=1e-2, stochastic_rounding=True, generator=generator)
    (p * p).sum().backward()
    optimizer.step()
    return p.detach()


@ta.elementwise
def of_a_constant_key(x, counter):
    drawn = random_bits(7, counter, stream=3)
    return cast(drawn, dtypes.float32) * x - cast(random_bits(7, counter), dtypes.float32)


DRAWS = {
    "bits": lambda size, g: ta.random_bits(size, generator=g),
    "stochastic rounding": rounded_update,
    "constant key": lambda size, g: of_a_constant_key(edges(size, ta.float32), g.take()[1]),
}
for _d in FLOATS:
    DRAWS[f"uniform {_d.name}"] = lambda size, g, d=_d: ta.uniform(size, -2.0, 3.0, generator=g, dtype=d)
    DRAWS[f"normal {_d.name}"] = lambda size, g, d=_d: ta.normal(size, 1.0, 2.0, generator=g, dtype=d)
    DRAWS[f"dropout {_d.name}"] = lambda size, g, d=_d: edges(size, d).dropout(0.3, generator=g)
for _d in INTEGERS:
    DRAWS[f"randint {_d.name}"] = lambda size, g, d=_d: ta.randint(3, 100, size, generator=g, dtype=d)


def bits(x):
    """The elements as integers, with one bit pattern for every NaN."""
    found = x.numpy()
    if x.dtype.is_float:
        found = np.where(np.isnan(found), found.dtype.type(np.nan), found)
    return found.view(f"u{found.itemsize}")


def by(monkeypatch, threads, draws, size, generator):
    """A draw on some threads of C, or, on none, in NumPy."""
    kernels = []

    def kernel(typed, make=draw._kernel):
        kernels.append(make(typed) if threads else None)
        return kernels[-1]

    with monkeypatch.context() as patched:
        patched.setattr(draw, "thread_count", lambda: threads)
        patched.setattr(draw, "_kernel", kernel)
        result = draws(size, generator)
    assert kernels and all((k is not None) == bool(threads) for k in kernels)
    return bits(result)


@pytest.mark.parametrize("draws", DRAWS.values(), ids=DRAWS)
@pytest.mark.parametrize("size", [LARGE, 3 * LARGE + 1021])
def test_a_draw_has_the_same_bits_in_c_and_numpy(monkeypatch, draws, size):
    expected = by(monkeypatch, 0, draws, size, ta.Generator(5))
    assert np.array_equal(by(monkeypatch, 3, draws, size, ta.Generator(5)), expected)


SOME = ["bits", "uniform float32", "normal float32", "normal bfloat16", "dropout float16", "randint int64"]


@at_most(15)
@given(
    st.sampled_from(SOME),
    st.integers(LARGE, 4 * LARGE),
    st.integers(0, 2**63 - 1),
    st.integers(0, 2**62),
    st.integers(1, 7),
)
def test_keys_counters_sizes_and_threads_give_the_same_bits(name, size, key, counter, threads):
    found = []
    for n in (0, threads):
        generator = ta.Generator(key)
        generator.counter = counter
        with pytest.MonkeyPatch.context() as patch:
            found.append(by(patch, n, DRAWS[name], size, generator))
    assert np.array_equal(*found)


def test_dropout_of_a_tensor_with_gaps_draws_the_mask_of_a_dense_one():
    x = ta.rand(700, 800).T + 1
    gaps = ta.rand(800, 1400)[:, ::2] + 1
    for operand in (x.T, x, gaps):
        kept = operand.dropout(0.5, generator=ta.Generator(1)) != 0
        expected = ta.ones(operand.shape).dropout(0.5, generator=ta.Generator(1)) != 0
        assert np.array_equal(kept.numpy(), expected.numpy())


def test_what_numpy_and_c_compute_differently_is_left_to_numpy():
    key, x = variable(0), variable(1)

    def typed(expression):
        return type_expression("test", (expression,), ("signed", dtypes.float32), (True, False))

    drawn = cast(random_bits(key, 0), dtypes.float32)
    assert draw.has_equal_bits(typed(drawn * x))
    assert draw.has_equal_bits(typed(drawn * x + exp(cast(key, dtypes.float32))))  # computed once, by NumPy
    assert not draw.has_equal_bits(typed(exp(x) * drawn))
    assert not draw.has_equal_bits(typed(x * 2.0 + cast(key, dtypes.float32)))


LATER = """
import os, warnings, tinyarr as ta
warnings.simplefilter("error")
drawn = ta.randn(1_000_003)
print(hash(drawn.numpy().tobytes()))
"""


def output(code, **environment):
    environment = {**os.environ, "PYTHONHASHSEED": "0", **environment}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_without_a_compiler_draws_are_numpys_and_nothing_is_said():
    assert output(LATER, TINYARR_CC="no-such-compiler") == output(LATER)


def test_a_forked_process_draws_too():
    forked = """
if os.fork() == 0:
    print(hash(ta.randn(1_000_003, generator=ta.Generator(0)).numpy().tobytes()), flush=True)
else:
    os.wait()
"""
    parent, child = output(LATER + forked).split()
    assert parent == child
