"""The matrix product in C: at every edge of its blocks, with any strides, for any number of threads."""

import os
import platform
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

import tinyarr as ta
from tests.tiers import at_most, slow
from tinyarr import Tensor
from tinyarr.backends.c.compiler import find_compiler

SIZES = st.sampled_from([1, 2, 7, 8, 9, 16, 31, 32, 33, 48, 49, 64, 95, 97, 144, 200])
DEPTHS = st.sampled_from([1, 3, 15, 16, 17, 32, 33, 64, 65, 255, 256, 257, 600, 1400])


WITHOUT = ["no matrix unit"] if platform.machine() in ("x86_64", "AMD64") else []  # others have none that is used


@pytest.fixture(params=["the processor's instructions", *WITHOUT])
def instructions(request, monkeypatch):
    """With a matrix unit, where there is one, and without."""
    if request.param in WITHOUT:
        monkeypatch.setenv("TINYARR_CC", " ".join([*find_compiler(), "-mno-amx-bf16"]))


def matrix(rng, rows: int, columns: int, form: str, dtype) -> Tensor:
    """Random elements; row-major, transposed, or with gaps between the columns."""
    shape = {"rows": (rows, columns), "columns": (columns, rows), "gaps": (rows, 2 * columns)}[form]
    x = Tensor(rng.standard_normal(shape)).astype(dtype)
    return {"rows": x, "columns": x.T, "gaps": x[:, ::2]}[form]


def product(a: Tensor, b: Tensor) -> np.ndarray:
    """Compiled anew, by the compiler that is chosen now."""
    return ta.compile(lambda a, b: a @ b)(a, b).numpy()


every = at_most(
    12, first=2, phases=[Phase.generate], deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)  # fmt: skip


@every
@given(st.data())
def test_products_of_every_size_and_order_are_numpys(instructions, data):
    """Ten in one program, so that the compiler runs once."""
    rng, pairs = np.random.default_rng(data.draw(st.integers(0, 99))), []
    for _ in range(10):
        (m, n), k = data.draw(st.tuples(SIZES, SIZES)), data.draw(DEPTHS)
        dtype = data.draw(st.sampled_from([ta.float32, ta.float64, ta.bfloat16]))
        forms = data.draw(st.tuples(*[st.sampled_from(["rows", "columns", "gaps"])] * 2))
        pairs.append((matrix(rng, m, k, forms[0], dtype), matrix(rng, k, n, forms[1], dtype)))
    turned = data.draw(st.booleans())

    @ta.compile
    def products(pairs):
        return [(a @ b).T if turned else a @ b for a, b in pairs]

    for (a, b), found in zip(pairs, products(pairs)):
        wide = [x.astype(ta.float64).numpy() for x in (a, b)]
        exact = wide[0] @ wide[1]
        bound = np.abs(wide[0]) @ np.abs(wide[1])  # Higham 2002, eq. 3.13: k roundings at most
        allowed = (a.shape[1] * ta.finfo(a.dtype.compute).eps + ta.finfo(a.dtype).eps) * bound
        result = found.astype(ta.float64).numpy()
        assert (np.abs((result.T if turned else result) - exact) <= allowed).all()


@pytest.mark.parametrize("shape", [(50, 300, 100), slow((100, 300, 50)), slow((64, 1300, 64))])
def test_how_operands_and_result_lie_changes_no_bit(instructions, shape):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal(shape[:2]).astype(np.float32), rng.standard_normal(shape[1:]).astype(np.float32)

    @ta.compile
    def both(a, b):
        return a @ b, ta.copy((a @ b).T)

    found = set()
    for left in (Tensor(a), Tensor(a.T).T):
        for right in (Tensor(b), Tensor(b.T).T):
            straight, turned = both(left, right)
            found |= {straight.numpy().tobytes(), turned.numpy().T.tobytes()}
    assert len(found) == 1


def test_a_stack_of_products(instructions):
    rng = np.random.default_rng(0)
    a, b = (Tensor(rng.standard_normal(s), dtype=ta.float32) for s in ((3, 1, 40, 70), (5, 70, 33)))
    np.testing.assert_allclose(product(a, b), a.numpy() @ b.numpy(), rtol=1e-4, atol=1e-4)


@every
@given(st.integers(0, 99), st.tuples(st.booleans(), st.booleans()))
def test_infinities_nan_and_the_largest_numbers_stay_in_their_rows_and_columns(instructions, seed, turned):
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(-1, 2, s).astype(np.float32) for s in ((100, 150), (150, 70)))
    for x, large in ((a, 1.8e38), (b, 1.5e38)):  # both in one sum are still finite
        for value in (np.nan, np.inf, -np.inf, large):
            x[rng.integers(x.shape[0]), rng.integers(x.shape[1])] = value
    left, right = (Tensor(x.T).T if t else Tensor(x) for x, t in zip((a, b), turned))
    found = product(left, right)
    with np.errstate(all="ignore"):
        exact = a.astype(np.float64) @ b.astype(np.float64)
        np.testing.assert_allclose(found, exact.astype(np.float32), rtol=1e-6)


@pytest.mark.parametrize("exponent", [0, -30, 15])
def test_long_products_err_no_more_than_twice_numpys(instructions, exponent):
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal(s).astype(np.float32) * np.float32(10.0**exponent) for s in ((64, 3000), (3000, 64)))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    error, numpys = (np.sqrt(np.mean((x - exact) ** 2)) for x in (product(Tensor(a), Tensor(b)), a @ b))
    assert error <= 2 * numpys


def test_threads_change_no_bit_of_a_product():
    code = """
import numpy as np, tinyarr as ta
rng = np.random.default_rng(0)
a, b = (ta.Tensor(rng.standard_normal(s), dtype=ta.float32) for s in ((300, 700), (700, 1000)))
both = ta.compile(lambda a, b: (a @ b, (b.T @ a.T)))
print(hash(b"".join(x.numpy().tobytes() for x in both(a, b))))
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True,
            env={**os.environ, "OMP_NUM_THREADS": threads, "PYTHONHASHSEED": "0"}, check=True,
        ).stdout
        for threads in ("1", "2", "3", "7")
    }  # fmt: skip
    assert len(found) == 1
