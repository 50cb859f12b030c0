"""What cuBLASLt does beside plain products: accumulation, epilogues, float8, recorded algorithms, TF32."""

import numpy as np
import pytest

import tinyarr
from tinyarr import Tensor, dtypes
from tinyarr.backends.cuda import cublaslt
from tinyarr.backends.cuda.registry import Input, LibraryCall, Output, Plan, Scratch

pytestmark = pytest.mark.cuda
M, N, K = 96, 160, 64


def run(spec, inputs, out):
    backend = tinyarr.Device("cuda").backend
    arguments = (Input(0), Input(1), Output(0), Scratch(0), *(Input(i) for i in range(2, len(inputs))))
    plan = Plan([LibraryCall("cublaslt", spec, arguments)], (cublaslt.WORKSPACE,))
    backend.loader.bind(plan)([x.array.data.address for x in inputs], [out.array.data.address])
    return out.astype("float64").numpy()


def draw(*shape, dtype="bfloat16"):
    return Tensor(np.random.default_rng(sum(shape)).standard_normal(shape), dtype=dtype, device="cuda")


def spec(**options):
    half = dtypes.bfloat16
    given = {"out_dtype": half, "x_transposed": False, "y_transposed": False, "x_ld": K, "y_ld": N, "out_ld": N}
    return cublaslt.Product(M, N, K, half, **(given | options))


def wide(*tensors):
    return [x.astype("float64").numpy() for x in tensors]


def test_a_gradient_is_accumulated_in_float32():
    x, y, out = draw(M, K), draw(K, N), draw(M, N, dtype="float32")
    a, b, c = wide(x, y, out)
    found = run(spec(out_dtype=dtypes.float32, accumulate=True), [x, y], out)
    assert np.abs(found - (c + a @ b)).max() < K * 2.0**-24 * np.abs(a @ b).max() * 4


def test_bias_and_gelu_are_applied_before_the_result_is_stored():
    x, y, bias, out, aux = draw(M, K), draw(K, N), draw(N), draw(M, N), draw(M, N)
    a, b, c = wide(x, y, bias)
    exact = a @ b + c
    assert np.abs(run(spec(epilogue="bias"), [x, y, bias], out) - exact).max() <= 2.0**-8 * np.abs(exact).max()
    gelu = 0.5 * exact * (1 + np.tanh(np.sqrt(2 / np.pi) * (exact + 0.044715 * exact**3)))
    found = run(spec(epilogue="gelu_aux_bias"), [x, y, bias, aux], out)
    assert np.abs(found - gelu).max() <= 2.0**-7 * np.abs(gelu).max()
    assert np.abs(aux.astype("float64").numpy() - exact).max() <= 2.0**-8 * np.abs(exact).max()


def test_a_recorded_algorithm_is_honoured():
    import ctypes

    prepared = cublaslt._Prepared(spec())
    algorithm = ctypes.string_at(prepared.algorithm, 64)
    x, y, out = draw(M, K), draw(K, N), draw(M, N)
    first = run(spec(), [x, y], out).tobytes()
    assert run(spec(algorithm=algorithm), [x, y], out).tobytes() == first
    assert ctypes.string_at(cublaslt._Prepared(spec(algorithm=algorithm)).algorithm, 64) == algorithm


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_float8_matrices_are_multiplied_with_their_scales(dtype):
    x, w = (draw(*shape, dtype="float32").astype("float8_e4m3fn") for shape in ((5, M, K), (N, K)))
    scales = [Tensor(s, dtype=dtypes.float32, device="cuda") for s in (0.25, 3.0)]
    assert cublaslt.has_float8()
    found = tinyarr.scaled_matmul(x, w, *scales, dtype=dtype).astype("float64").numpy()
    exact = np.matmul(x.astype("float64").numpy(), w.astype("float64").numpy().T) * 0.75
    # Fast accumulation keeps at least 13 bits of the products' sum.
    bound = 2.0**-12 + (2.0**-8 if dtype == "bfloat16" else 0)
    assert np.abs(found - exact).max() <= bound * np.abs(exact).max() * 2


def test_float32_is_not_multiplied_as_tf32_unless_asked_for(monkeypatch):
    x, y, out = draw(M, K, dtype="float32"), draw(K, N, dtype="float32"), draw(M, N, dtype="float32")
    a, b = wide(x, y)
    single = spec()._replace(dtype=dtypes.float32, out_dtype=dtypes.float32)
    error = [np.abs(run(single, [x, y], out) - a @ b).max()]
    monkeypatch.setenv("TINYARR_TF32", "1")
    error.append(np.abs(run(single._replace(aligned=False), [x, y], out) - a @ b).max())
    monkeypatch.undo()
    assert error[0] < K * 2.0**-24 * np.abs(a).max() * np.abs(b).max() * 2


def test_without_the_library_our_own_kernel_multiplies(monkeypatch):
    from tinyarr.ops.matmul import _matmul

    monkeypatch.setattr(cublaslt, "is_available", lambda: False)
    _matmul._calls.clear()
    x, y = draw(3, M, K), draw(K, N)
    (a, b), found = wide(x, y), tinyarr.matmul(x, y)
    _matmul._calls.clear()
    assert np.abs(found.astype("float64").numpy() - a @ b).max() <= 2.0**-8 * np.abs(a @ b).max()
