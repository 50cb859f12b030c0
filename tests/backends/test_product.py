"""The matrix product in C: at every edge of its blocks, with any strides, for any number of threads."""

import os
import subprocess
import sys

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import tinyarr as ta
from tinyarr import Tensor

SIZES = st.sampled_from([1, 2, 7, 8, 9, 16, 31, 48, 49, 95, 97, 144, 200])
DEPTHS = st.sampled_from([1, 3, 15, 16, 17, 64, 255, 256, 257, 600])


def matrix(rng, rows: int, columns: int, form: str, dtype) -> Tensor:
    """Random elements; row-major, transposed, or with gaps between the columns."""
    shape = {"rows": (rows, columns), "columns": (columns, rows), "gaps": (rows, 2 * columns)}[form]
    x = Tensor(rng.standard_normal(shape)).astype(dtype)
    return {"rows": x, "columns": x.T, "gaps": x[:, ::2]}[form]


@settings(max_examples=12, phases=[Phase.generate], deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_products_of_every_size_and_order_are_numpys(data):
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


def test_a_stack_of_products_and_special_values():
    rng = np.random.default_rng(0)
    a, b = (Tensor(rng.standard_normal(s), dtype=ta.float32) for s in ((3, 1, 40, 70), (5, 70, 33)))
    product = ta.compile(lambda a, b: a @ b)
    np.testing.assert_allclose(product(a, b).numpy(), a.numpy() @ b.numpy(), rtol=1e-4, atol=1e-4)
    x = np.zeros((50, 50), np.float32)
    x[3, 4], x[49, 49] = np.nan, np.inf
    found = ta.compile(lambda x, y: x @ y)(Tensor(x), Tensor(np.ones((50, 9), np.float32))).numpy()
    assert np.isnan(found[3]).all() and (found[49] == np.inf).all() and not found[[0, 1, 2, *range(4, 49)]].any()


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
