"""The scalar language printed as C and compiled, against its evaluation in NumPy. One library holds every kernel."""

import ctypes
import functools

import ml_dtypes
import numpy as np
import pytest

from tests.evaluation import evaluate, evaluate_into
from tinyarr import dtypes, views
from tinyarr.backends.c import compiler
from tinyarr.backends.c.elementwise import nest
from tinyarr.backends.c.kernel import COperand, indented
from tinyarr.backends.source import scalar_source
from tinyarr.errors import DtypeError
from tinyarr.ops import scalar
from tinyarr.ops.scalar import OPERATIONS, make, variable
from tinyarr.ops.typing import Typed, TypedStep, type_expression

X, Y, Z = map(variable, range(3))
FLOATS = (dtypes.float32, dtypes.float64)
SMALL_FLOATS = (dtypes.float16, dtypes.bfloat16, dtypes.float8_e4m3fn, dtypes.float8_e5m2)
OURS = ("exp", "log", "tanh", "erf")

# Functions that are not exact in both: libm's hold 2 units in the last place and NumPy's promise 4.
INEXACT = {
    *OURS, "expm1", "log1p", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh",
    "asinh", "acosh", "atanh", "hypot", "power",
}  # fmt: skip

EDGES = [
    0.0, -0.0, 1, -1, 2, -2, 3, -3, 5, 7, 8, 31, 32, 63, 64, 100, -100, 127, 128, -128, -129, 255.5, 300, 32767, -32769,
    65519, 65520, 65535, 70000, 2.0**31, -(2.0**31), 2.0**32, 3e9, 5e9, 2.0**63, -(2.0**63), 1.5 * 2.0**63, 2.0**64,
    1e20, 0.5, -0.5, 1.5, 2.5, -2.5, 0.1, 1 / 3, 0.9, -0.999, 3.1415926, 4.1, 9.1, 20, -30, 88.7, -87.4, -103.9, -104.1,
    709.7, -745.1, 1e-3, -1e-5, 1e-38, 1e-40, -1e-45, 2e-308, 5e-324, np.inf, -np.inf, np.nan,
]  # fmt: skip


@functools.cache
def edge_values(dtype):
    """The edge values that `dtype` can hold, and its own limits."""
    if dtype is dtypes.bool:
        return np.array([False, True])
    if dtype.is_float:
        limits = ml_dtypes.finfo(dtype.numpy)
        own = map(float, (limits.max, limits.min, limits.tiny, limits.smallest_subnormal, limits.eps))
        with np.errstate(all="ignore"):
            return np.array([*EDGES, *own]).astype(dtype.numpy)
    low, high = np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max
    whole = {int(v) for v in EDGES if np.isfinite(v)} | {low, low + 1, high, high - 1, high // 2}
    return np.array(sorted(v for v in whole if low <= v <= high), dtype.numpy)


KERNELS = []


def function(name, typed, shape, in_strides, out_strides):
    """A C function of one argument that points to the first element of each input and output; None: 0-d."""
    stored = {v.value: v.dtype for v in typed.values if v.op == "input"}
    inputs = [
        COperand(f"x{k}", dtype, () if strides is None else shape, strides or (), readonly=True)
        for k, (dtype, strides) in enumerate((stored.get(k, dtypes.int64), s) for k, s in enumerate(in_strides))
    ]
    outputs = [COperand(f"y{k}", d, shape, s) for k, (d, s) in enumerate(zip(typed.dtypes, out_strides, strict=True))]
    declarations = [
        f"{'const ' if x.readonly else ''}{x.type} *{x.name} = operands[{i}];\n" for i, x in enumerate(inputs + outputs)
    ]
    body = "".join(declarations) + nest(typed, shape, inputs, outputs)
    return f"void {name}(void *const *operands)\n{{\n{indented(body)}\n}}\n"


class Kernel:
    """An expression for operands of fixed dtypes, shapes and strides, which C and NumPy evaluate. All are kept."""

    def __init__(self, outputs, *operands, shape=None, out_strides=None):
        self.name = f"kernel_{len(KERNELS)}"
        self.operands = operands
        self.shape = operands[0].shape if shape is None else shape
        in_dtypes = tuple(dtypes.dtype(x.dtype) for x in operands)
        self.typed = type_expression("test", outputs, in_dtypes, tuple(not x.ndim for x in operands))
        self.out_strides = out_strides or views.contiguous_strides(self.shape)
        in_strides = [self._strides(x) if x.ndim else None for x in operands]
        out_strides = [self.out_strides] * len(outputs)
        self.source = function(self.name, self.typed, self.shape, in_strides, out_strides)
        KERNELS.append(self)

    def _strides(self, x):
        strides = np.broadcast_to(x, self.shape).strides
        return tuple(s // x.itemsize for s in strides)

    @functools.cached_property
    def numpy(self):
        """The outputs by NumPy."""
        outputs = self._empty_outputs()
        evaluate_into(outputs, self.typed, self.operands)
        return outputs

    @functools.cached_property
    def c(self):
        """The outputs by C."""
        outputs = self._empty_outputs()
        call(self.name, *self.operands, *outputs)
        return outputs

    def _empty_outputs(self):
        outputs = []
        for dtype in self.typed.dtypes:
            memory = np.zeros(views.size(self.shape), dtype.numpy)
            strides = [s * dtype.itemsize for s in self.out_strides]
            outputs.append(np.ndarray(self.shape, dtype.numpy, memory, strides=strides))
        return outputs


def call(name, *arrays):
    getattr(library(), name)((ctypes.c_void_p * len(arrays))(*[x.ctypes.data for x in arrays]))


@functools.cache
def library():
    return compiler.load("\n".join(['#include "scalar.h"\n', *(k.source for k in KERNELS), *REFERENCES]))


def assert_same_bits(a, b, which_nan=False):
    """Equal to the last bit. Unless `which_nan`, one NaN is as good as another."""
    assert a.dtype == b.dtype and a.shape == b.shape
    a, b = np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1)
    same = a.view(f"u{a.itemsize}") == b.view(f"u{a.itemsize}")
    if dtypes.dtype(a.dtype).is_float and not which_nan:
        with np.errstate(invalid="ignore"):  # which ml_dtypes raises for its own NaN
            same |= np.isnan(a) & np.isnan(b)
    first = np.flatnonzero(~same)[:5]
    assert same.all(), f"at {first}: {a[first]} is not {b[first]}"


def units_apart(a, b):
    """How many numbers of the dtype b is past a, where infinity follows the largest; infinite from NaN to a number."""
    integer = np.dtype(f"i{a.itemsize}")

    def ordered(x):
        code = x.view(integer).astype(np.int64)
        return np.where(code < 0, np.iinfo(integer).min - code, code)

    nan = np.isnan(a) | np.isnan(b)
    apart = np.abs(ordered(a).astype(np.float64) - ordered(b).astype(np.float64))
    return np.where(nan, np.where(np.isnan(a) & np.isnan(b), 0.0, np.inf), apart)


def takes(name, dtype):
    """Whether an operation takes operands of `dtype`; for `where` that of the two values."""
    operands = ((dtypes.bool,) if name == "where" else ()) + (dtype,) * 2
    try:
        type_expression(name, (applied(name),), operands, (False,) * len(operands))
    except DtypeError:
        return False
    return True


def applied(name):
    return make(name, *[X, Y, Z][: OPERATIONS[name].arity])


def edge_operands(dtype, arity):
    """Edge values, as all pairs of them for two operands, with a condition for three."""
    values = edge_values(dtype)
    if arity == 1:
        return [values]
    pairs = [np.repeat(values, len(values)), np.tile(values, len(values))]
    return pairs if arity == 2 else [np.arange(len(pairs[0])) % 3 == 0, *pairs]


NAMES = [name for name in OPERATIONS if name not in ("cast", "bitcast", "weak", "random_bits")]
TAKEN = [(name, dtype) for dtype in dtypes.ALL for name in NAMES if takes(name, dtype)]


def operation_kernels(outputs_a_kernel=8):
    """For each operation and dtype its kernel and the number of its output there: few kernels compile faster."""
    kernels = {}
    for dtype in dtypes.ALL:
        for arity in (1, 2, 3):
            names = [name for name, d in TAKEN if d is dtype and OPERATIONS[name].arity == arity]
            for start in range(0, len(names), outputs_a_kernel):
                together = names[start : start + outputs_a_kernel]
                kernel = Kernel(tuple(map(applied, together)), *edge_operands(dtype, arity))
                kernels |= {(name, dtype.name): (kernel, i) for i, name in enumerate(together)}
    return kernels


OPERATION_KERNELS = operation_kernels()


@pytest.mark.parametrize("name, dtype", OPERATION_KERNELS)
def test_each_operation_on_each_dtype_gives_numpys_result(name, dtype):
    kernel, output = OPERATION_KERNELS[name, dtype]
    a, b = kernel.c[output], kernel.numpy[output]
    if name in INEXACT and a.dtype.kind == "f":
        assert units_apart(a, b).max() <= 6
    elif name in INEXACT and kernel.typed.dtypes[output].is_float:
        assert units_apart(a, b).max() <= 1  # computed in float32, so they differ only if rounded to either side
    elif name in ("maximum", "minimum"):
        assert_same_bits(a + a.dtype.type(0), b + a.dtype.type(0))  # NumPy's SIMD decides between 0.0 and -0.0
    else:
        assert_same_bits(a, b)


def test_operations_reject_the_dtypes_that_have_no_such_operation():
    rejected = {}
    for dtype in dtypes.ALL:
        rejected.setdefault(dtype.kind, set()).update(name for name in NAMES if (name, dtype) not in TAKEN)
    shifts = {"bitwise_left_shift", "bitwise_right_shift"}
    bits = {"bitwise_and", "bitwise_or", "bitwise_xor", "bitwise_invert"} | shifts
    numbers = {name for name, operation in OPERATIONS.items() if operation.typing == "arithmetic"}
    near = {"nextafter"}  # the neighbours of a half type are not those of the float32 it is computed in
    assert rejected == {"float": bits | near, "bool": numbers | shifts | near, "signed": near, "unsigned": near}


CASTS = {d.name: Kernel(tuple(scalar.cast(X, t) for t in dtypes.ALL), edge_values(d)) for d in dtypes.ALL}


@pytest.mark.parametrize("source", CASTS)
def test_casts_between_all_dtypes_give_numpys_result(source):
    kernel = CASTS[source]
    for a, b, target in zip(kernel.c, kernel.numpy, dtypes.ALL, strict=True):
        assert_same_bits(a, b)
        with np.errstate(all="ignore"):
            direct = kernel.operands[0].astype(dtypes.dtype(source).compute.numpy).astype(target.numpy)
        if target is not dtypes.uint32:  # out of range, NumPy's loops for uint32 differ from one another
            assert_same_bits(a, direct)


@pytest.mark.parametrize("number", [0.0, -1.5, 300.7, 3e9, -3e9, 1e20, np.inf, np.nan])
@pytest.mark.parametrize("target", [d for d in dtypes.ALL], ids=lambda d: d.name)
def test_a_0_d_operand_is_cast_like_an_element(number, target):
    expression = (scalar.cast(X * 1.0, target),)
    array, single = np.array([number]), np.array(number)
    assert_same_bits(evaluate(expression, single, shape=(1,))[0], evaluate(expression, array)[0])


def every_number(dtype):
    return np.arange(2 ** (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}").view(dtype.numpy)


def neighbourhood(target, source):
    """In dtype `source`: every number of `target`, the midpoint to the next, and the numbers beside both."""
    exact = every_number(target).astype(source.numpy)
    finite = np.sort(exact[np.isfinite(exact)])
    top = finite[-1] + (finite[-1] - finite[-2])  # where overflow begins, were there one more number
    points = np.concatenate([finite, (finite[1:] + finite[:-1]) / 2, [top, -top, (top + finite[-1]) / 2]])
    beside = [np.nextafter(points, source.numpy.type(end)) for end in (-np.inf, np.inf)]
    return np.concatenate([exact, points, *beside]).astype(source.numpy)


with np.errstate(all="ignore"):
    ROUNDINGS = {
        (t.name, s.name): Kernel((scalar.cast(X, t),), neighbourhood(t, s)) for t in SMALL_FLOATS for s in FLOATS
    }
LOADS = {t.name: Kernel((X, scalar.cast(X, dtypes.float32)), every_number(t)) for t in SMALL_FLOATS}


@pytest.mark.parametrize("target, source", ROUNDINGS)
def test_stores_round_to_nearest_even_everywhere(target, source):
    kernel = ROUNDINGS[target, source]
    (a,) = kernel.c
    with np.errstate(all="ignore"):
        expected = kernel.operands[0].astype(a.dtype)
    assert_same_bits(a, expected, which_nan=target != "float16")  # NumPy's float16 keeps the bits of a NaN


@pytest.mark.parametrize("small", LOADS)
def test_loads_are_exact_and_storing_again_gives_the_same_code(small):
    kernel = LOADS[small]
    stored, loaded = kernel.c
    assert_same_bits(stored, kernel.operands[0])
    assert_same_bits(loaded, kernel.operands[0].astype(np.float32))


def same_size(dtype):
    return [d for d in dtypes.ALL if d.itemsize == dtype.itemsize and d is not dtypes.bool]


BITCASTS = {
    d.name: Kernel(tuple(scalar.bitcast(X, t) for t in same_size(d)), edge_values(d))
    for d in dtypes.ALL
    if d is not dtypes.bool
}


@pytest.mark.parametrize("source", BITCASTS)
def test_bitcasts_keep_every_bit(source):
    kernel = BITCASTS[source]
    for a, b, target in zip(kernel.c, kernel.numpy, same_size(dtypes.dtype(source)), strict=True):
        expected = kernel.operands[0].view(target.numpy)
        assert_same_bits(a, expected)
        assert_same_bits(b, expected)


def constants_kernel(dtype):
    """Stores each edge value of a dtype as a constant."""
    kernel = Kernel((X,), np.zeros(1, dtype.numpy))
    values = edge_values(dtype).tolist()
    constants = tuple(TypedStep("constant", (), dtype, v, True) for v in values)
    kernel.typed = Typed(constants, tuple(range(len(values))), (dtype,) * len(values))
    kernel.source = function(kernel.name, kernel.typed, (1,), [(1,)], [(1,)] * len(values))
    return kernel


CONSTANTS = {d.name: constants_kernel(d) for d in dtypes.ALL if d.compute is d}


@pytest.mark.parametrize("dtype", CONSTANTS)
def test_constants_are_printed_exactly(dtype):
    assert_same_bits(np.concatenate(CONSTANTS[dtype].c), edge_values(dtypes.dtype(dtype)))


def test_constants_read_as_one_would_write_them():
    printed = [
        scalar_source.constant(value, dtypes.dtype(dtype))
        for value, dtype in [(0.1, "float32"), (0.1, "float64"), (-2, "float32"), (True, "bool"), (-(2**63), "int64")]
    ]
    assert printed == ["0.1f", "0.1", "(-2.0f)", "1", "INT64_MIN"]


RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.normal(size=(6, 10)).astype(np.float32)
POLYNOMIAL = X * Y + 2 * X
LAYOUTS = {
    "contiguous": Kernel((POLYNOMIAL,), MATRIX, MATRIX),
    "transposed": Kernel((POLYNOMIAL,), MATRIX.T, MATRIX.T.copy(), out_strides=(1, 10)),
    "backwards": Kernel((POLYNOMIAL,), MATRIX[::-1, ::-2], MATRIX[:, ::2]),
    "broadcast": Kernel((POLYNOMIAL,), MATRIX[:, :1], MATRIX[0], shape=(6, 10)),
    "uniform": Kernel((POLYNOMIAL,), MATRIX, np.array(0.3, np.float32)),
    "empty": Kernel((POLYNOMIAL,), MATRIX[:0], MATRIX[:0]),
    "0-d": Kernel((POLYNOMIAL,), np.array(0.3, np.float32), np.array(3.0), shape=()),
    "bfloat16": Kernel((POLYNOMIAL,), MATRIX.astype(ml_dtypes.bfloat16), MATRIX.astype(ml_dtypes.bfloat16)),
    "several outputs": Kernel((POLYNOMIAL, X, X > Y), MATRIX, MATRIX * 2),
    "indices": Kernel((scalar.index(0) * 100 + scalar.index(-1), X), MATRIX),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_numpys_bits(layout):
    kernel = LAYOUTS[layout]
    for a, b in zip(kernel.c, kernel.numpy, strict=True):
        assert_same_bits(a, b)


def test_an_output_may_be_the_memory_of_an_input():
    kernel = LAYOUTS["uniform"]
    (expected,) = kernel.numpy
    x = MATRIX.copy()
    call(kernel.name, x, kernel.operands[1], x)
    assert_same_bits(x, expected)


KEY, COUNTER = np.array(2**63 + 12345, np.uint64), np.array(2**40 + 7, np.uint64)
DRAWS = [
    Kernel((scalar.random_bits(X, Y, stream=stream),), KEY, COUNTER, shape=shape, out_strides=strides)
    for stream, shape, strides in [(0, (1003,), None), (3, (7, 11), (1, 7))]
]
ZERO = Kernel((scalar.random_bits(X, Y),), np.array(0, np.uint64), np.array(0, np.uint64), shape=(4,))


@pytest.mark.parametrize("kernel", DRAWS)
def test_random_bits_are_numpys(kernel):
    assert_same_bits(kernel.c[0], kernel.numpy[0])


def test_random_bits_are_those_of_the_published_test_vector():
    # Salmon et al. 2011, file kat_vectors of their Random123: philox4x32, 10 rounds, counter and key zero.
    assert ZERO.c[0].tolist() == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


REFERENCES = [
    f"void {op}_{name}_reference(void *const *operands)\n"
    f"{{\n    const {c} *x = operands[0];\n    {wide} *y = operands[1];\n"
    f"    for (int64_t i = 0; i < *(int64_t *)operands[2]; i++)\n        y[i] = {op}{suffix}(x[i]);\n}}\n"
    for op in OURS
    for name, c, wide, suffix in (("float32", "float", "double", ""), ("float64", "double", "long double", "l"))
]


def accuracy_sample(dtype):
    """Bit patterns of all magnitudes, and numbers where the functions bend, about 4 million in all for float32."""
    n = 2**21 if dtype is dtypes.float32 else 2**19
    bits = np.arange(n, dtype=f"u{dtype.itemsize}") * (2 ** (8 * dtype.itemsize) // n)
    bends = [RANDOM.uniform(-end, end, n // 4) for end in (0.01, 1.0, 6.0, 110.0)]
    return np.concatenate([bits.view(dtype.numpy), *bends]).astype(dtype.numpy)


with np.errstate(all="ignore"):
    SAMPLES = {d: accuracy_sample(d) for d in FLOATS}
ACCURACY = {(op, d.name): Kernel((make(op, X),), SAMPLES[d]) for op in OURS for d in FLOATS}


def errors_in_ulp(results, exact):
    """The distance of `results` from `exact`, of a wider dtype, in units of the last place of the exact result."""
    with np.errstate(all="ignore"):
        rounded = exact.astype(results.dtype)
        ulp = np.spacing(np.abs(rounded)).astype(exact.dtype)
        fractional = np.abs(results.astype(exact.dtype) - exact) / ulp
    return np.where(np.isfinite(results) & np.isfinite(rounded), fractional, units_apart(results, rounded))


EVALUATIONS = [(op, d, "c") for op, d in ACCURACY] + [("erf", d.name, "numpy") for d in FLOATS]


@pytest.mark.parametrize("op, dtype, evaluation", EVALUATIONS)
def test_our_functions_hold_two_ulp(op, dtype, evaluation):
    kernel = ACCURACY[op, dtype]
    (x,) = kernel.operands
    exact = np.zeros(x.shape, np.float64 if dtype == "float32" else np.longdouble)
    call(f"{op}_{dtype}_reference", x, exact, np.array(x.size))
    assert errors_in_ulp(getattr(kernel, evaluation)[0], exact).max() <= 2


def test_exp_of_minus_infinity_is_exactly_zero_and_tanh_and_erf_keep_the_sign_of_zero():
    x = np.array([-np.inf, -0.0])
    for dtype in FLOATS:
        values = edge_values(dtype)
        kernels = {op: OPERATION_KERNELS[op, dtype.name] for op in OURS}
        results = {op: kernel.c[output] for op, (kernel, output) in kernels.items()}
        assert (results["exp"][values == x[0]] == 0).all()
        for op in ("tanh", "erf"):
            assert_same_bits(results[op][values == 0], values[values == 0])


DECAY = Kernel((X * 0.9**Y,), MATRIX, np.array(3.0, np.float32))
GELU = type_expression(
    "gelu", (0.5 * X * (1 + make("tanh", 0.7978845608028654 * (X + 0.044715 * X**3))),), (dtypes.bfloat16,), (False,)
)


def test_what_depends_on_0_d_operands_alone_is_computed_before_the_loop():
    before, inside = DECAY.source.split("#pragma omp single")
    assert "power_float32(0.9f" in before and "power" not in inside


def test_a_kernel_reads_like_c_written_by_hand():
    assert function("gelu", GELU, (4, 8), [(8, 1)], [(1, 4)]) == (
        "void gelu(void *const *operands)\n"
        "{\n"
        "    const uint16_t *x0 = operands[0];\n"
        "    uint16_t *y0 = operands[1];\n"
        "#pragma omp single\n"
        "    for (int64_t i0 = 0; i0 < 4; i0++) {\n"
        "#pragma omp simd\n"
        "        for (int64_t i1 = 0; i1 < 8; i1++) {\n"
        "            uint16_t v1 = x0[8 * i0 + i1];\n"
        "            float v2 = float32_from_bfloat16(v1);\n"
        "            float v4 = 0.5f * v2;\n"
        "            float v8 = v2 * v2;\n"
        "            float v9 = v8 * v2;\n"
        "            float v11 = 0.044715f * v9;\n"
        "            float v12 = v2 + v11;\n"
        "            float v14 = 0.7978846f * v12;\n"
        "            float v15 = tanh_float32(v14);\n"
        "            float v17 = 1.0f + v15;\n"
        "            float v18 = v4 * v17;\n"
        "            y0[i0 + 4 * i1] = bfloat16_from_float32(v18);\n"
        "        }\n"
        "    }\n"
        "}\n"
    )
