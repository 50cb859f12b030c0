"""What cuBLASLt does beside plain products: accumulation, epilogues, float8, recorded algorithms, TF32."""

import gc

import numpy as np
import pytest

import tinyarr
from tinyarr import Tensor, cache, dtypes, tuning
from tinyarr.array import empty
from tinyarr.backends.cuda.libraries import cublaslt
from tinyarr.backends.cuda.planning.registry import Input, LaunchPlan, LibraryCall, Output, Scratch

pytestmark = pytest.mark.cuda
M, N, K = 96, 160, 64


def run(spec, inputs, out):
    backend = tinyarr.Device("cuda").backend
    arguments = (Input(0), Input(1), Output(0), Scratch(0), *(Input(i) for i in range(2, len(inputs))))
    plan = LaunchPlan([LibraryCall("cublaslt", spec, arguments)], (cublaslt.WORKSPACE,))
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
    algorithm, *_ = cublaslt.candidates(spec())
    x, y, out = draw(M, K), draw(K, N), draw(M, N)
    first = run(spec(), [x, y], out).tobytes()
    assert run(spec(algorithm=algorithm), [x, y], out).tobytes() == first


# What is asked for, and the shapes of the arguments behind the workspace.
CASES = {
    "plain": ({}, []),
    "transposed": ({"x_transposed": True, "x_ld": M, "y_transposed": True, "y_ld": K}, []),
    "unaligned": ({"aligned": False}, []),
    "accumulated": ({"out_dtype": dtypes.float32, "accumulate": True}, []),
    "batch": ({"batch": 3, "x_stride": M * K, "y_stride": K * N, "out_stride": M * N}, []),
    "shared operand": ({"batch": 3, "x_stride": M * K, "out_stride": M * N}, []),
    "bias": ({"epilogue": "bias"}, [(N,)]),
    "gelu": ({"epilogue": "gelu_aux_bias"}, [(N,), (M, N)]),
    "gelu gradient": ({"epilogue": "gelu_gradient"}, [(M, N)]),
}


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def exact(options, x, y, out, more):
    """The product in float64, as a cublaslt.Product describes it."""
    x = x.swapaxes(-1, -2) if options.get("x_transposed") else x
    y = y.swapaxes(-1, -2) if options.get("y_transposed") else y
    found = x @ y + (out if options.get("accumulate") else 0)
    epilogue = options.get("epilogue")
    if epilogue == "gelu_gradient":
        step = 1e-4  # the difference quotient of a smooth function in float64 errs by about 1e-8
        return found * (gelu(more[0] + step) - gelu(more[0] - step)) / (2 * step)
    found = found + more[0] if epilogue else found
    return gelu(found) if epilogue == "gelu_aux_bias" else found


@pytest.mark.parametrize("case", CASES)
def test_every_candidate_errs_at_most_twice_as_much_as_the_first(case):
    options, shapes = CASES[case]
    one = spec(**options)
    x = draw(one.batch, *((K, M) if one.x_transposed else (M, K)))
    y = draw(one.batch if one.y_stride else 1, *((N, K) if one.y_transposed else (K, N)))
    out, more = draw(one.batch, M, N, dtype=one.out_dtype), [draw(*shape) for shape in shapes]
    a, b, c = wide(x, y, out)
    want = exact(options, a, b, c, wide(*more))
    errors = [
        np.abs(run(one._replace(algorithm=algorithm), [x, y, *more], tinyarr.copy(out)) - want).max()
        for algorithm in cublaslt.candidates(one)
    ]
    rounding = K * 2.0**-24 * exact(options, abs(a), abs(b), abs(c), [abs(m) for m in wide(*more)]).max()
    assert errors[0] <= 2.0**-7 * np.abs(want).max() and max(errors) <= 2 * max(errors[0], rounding)


def test_every_candidate_for_float8_errs_at_most_twice_as_much_as_the_first():
    x, y = (draw(*shape, dtype="float32").astype("float8_e4m3fn") for shape in ((M, K), (N, K)))
    scales = [Tensor(s, dtype=dtypes.float32, device="cuda") for s in (0.25, 3.0)]
    one = spec(y_transposed=True, y_ld=K, scaled=True)._replace(dtype=dtypes.float8_e4m3fn)
    a, b = wide(x, y)
    errors = [
        np.abs(run(one._replace(algorithm=algorithm), [x, y, *scales], draw(M, N)) - 0.75 * a @ b.T).max()
        for algorithm in cublaslt.candidates(one)
    ]
    assert max(errors) <= 2 * errors[0] <= 2.0**-6 * np.abs(a @ b.T).max()


@pytest.fixture
def untuned(tmp_path, monkeypatch):
    """Nothing is chosen yet; returns the list to which each timing adds its milliseconds."""
    monkeypatch.setenv("TINYARR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tuning, "_choices", {})
    monkeypatch.setattr(tuning, "_eager", {})
    timed, time = [], cublaslt._time
    monkeypatch.setattr(cublaslt, "_time", lambda *args: (timed.append(time(*args)), timed[-1])[1])
    return timed


SIZE = 2048


def allocate(nbytes):
    return empty(tinyarr.Device("cuda"), (nbytes,), dtypes.uint8).storage


def test_a_product_is_timed_once_and_its_record_gives_the_same_bits(untuned, tmp_path, monkeypatch):
    backend = tinyarr.Device("cuda").backend
    half = dtypes.bfloat16
    large = cublaslt.Product(SIZE, SIZE, SIZE, half, half, False, False, SIZE, SIZE, SIZE)

    def tune():
        return cublaslt.tune(large, backend.stream, allocate)

    gc.collect()  # what earlier tests left in cycles
    held = tinyarr.memory_stats("cuda").in_use
    tuned = tune()
    assert tuned._replace(algorithm=None) == large and tuned.algorithm in cublaslt.candidates(large)
    assert tinyarr.memory_stats("cuda").in_use == held
    (milliseconds,) = untuned
    assert len(milliseconds) == len(cublaslt.candidates(large)) > 1 and min(milliseconds) > 0
    x, y, out = draw(SIZE, SIZE), draw(SIZE, SIZE), draw(SIZE, SIZE)
    before = run(tuned, [x, y], out).tobytes()
    tuning.save(tmp_path / "tuning.json")
    assert tune() == tuned
    monkeypatch.setattr(tuning, "_choices", {})
    assert tune() == tuned
    monkeypatch.setattr(tuning, "_choices", {})
    for file in cache.files():
        file.unlink()
    tuning.load(tmp_path / "tuning.json")
    assert tune() == tuned and len(untuned) == 1
    again, workspace = draw(SIZE, SIZE), allocate(cublaslt.WORKSPACE)
    addresses = [x.array.data.address, y.array.data.address, again.array.data.address, workspace.memory.ptr]
    cublaslt.prepare(tune())(backend.stream.ptr, *addresses)
    assert again.astype("float64").numpy().tobytes() == before


@pytest.mark.parametrize("options", [
    {"epilogue": "bias"}, {"epilogue": "gelu_aux_bias"}, {"epilogue": "gelu_gradient"}, {"accumulate": True},
    {"x_transposed": True}, {"y_transposed": True, "scaled": True, "dtype": dtypes.float8_e4m3fn},
    {"batch": 2, "x_stride": SIZE * SIZE, "out_stride": SIZE * SIZE}, {"aligned": False},
])  # fmt: skip
def test_products_of_every_form_are_tuned(untuned, options):
    backend = tinyarr.Device("cuda").backend
    half = dtypes.bfloat16
    large = cublaslt.Product(SIZE, SIZE, SIZE, half, half, False, False, SIZE, SIZE, SIZE)._replace(**options)
    tuned = cublaslt.tune(large, backend.stream, allocate)
    assert tuned.algorithm in cublaslt.candidates(large) and tuned._replace(algorithm=None) == large
    tinyarr.cuda.synchronize()


def test_the_first_of_many_candidates_is_the_one_that_eager_mode_takes():
    for one in (spec(), spec(epilogue="gelu_aux_bias"), spec(out_dtype=dtypes.float32, accumulate=True)):
        assert cublaslt._Prepared(one).candidates(1)[0] == cublaslt.candidates(one)[0]


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
