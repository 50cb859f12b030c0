"""Matrix products by cuBLASLt, through nvmath-python's bindings. Floor 3.

The library knows column-major matrices only. A row-major matrix is a column-major one transposed, so out = x y is asked
for as out^T = y^T x^T: y is the library's first operand.
Source: cuBLAS documentation, "Using the cuBLASLt API".
"""

from __future__ import annotations

import functools
import importlib.util
import os
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .... import dtypes, tuning
from ....dtypes import Dtype
from ....errors import DeviceError, FileError
from ..planning.registry import library

MODULE = "nvmath"
WORKSPACE = 32 * 2**20  # bytes, what NVIDIA recommends for Hopper
ALIGNMENT = 512  # bytes, of what is multiplied while timing

# An H100 is done with these in about 15 µs, and a launch costs the CPU nearly as much: of less, timing would tell how
# fast the CPU is.
LEAST_OPERATIONS = 10**10
MOST_CANDIDATES = 8  # the best of these did GPT-2's products in bfloat16 10 to 23 % faster than the first, on an H100
ROUNDS = 5  # in each of which every candidate is timed once, so that a change of the card's clock meets them all
GAIN = 0.99  # the library's first choice stays where the fastest takes more than this share of its time
DRAWN = 65_537  # random numbers, which repeat throughout an operand; a prime, so that rows differ

# The library's numbers of types (cudaDataType_t) and of ways to compute (cublasComputeType_t).
TYPES = {
    dtypes.float32: 0, dtypes.float64: 1, dtypes.float16: 2, dtypes.bfloat16: 14, dtypes.float8_e4m3fn: 28,
    dtypes.float8_e5m2: 29,
}  # fmt: skip
COMPUTE = {"float32": 68, "float64": 70, "tf32": 77}
EPILOGUES = {None: 1, "bias": 4, "gelu_aux_bias": 164, "gelu_gradient": 192}
AUXILIARY = ("gelu_aux_bias", "gelu_gradient")  # epilogues with another matrix, in the layout of the result

# cublasLtMatmulHeuristicResult_t, which begins with a cublasLtMatmulAlgo_t.
RESULT = np.dtype(
    [("algorithm", "V64"), ("workspace", "u8"), ("state", "i4"), ("waves", "f4"), ("reserved", "i4", 4)]
)  # fmt: skip

_FORGET = "remove the file that was loaded, or run `python -m tinyarr cache --clear`, and it is chosen again"


class Product(NamedTuple):
    """out (m, n) = x (m, k) y (k, n), row-major, or each operand transposed in memory; beta = 1 adds to out.

    ld: elements from one row (of a transposed operand: column) to the next. stride: elements from one matrix of the
    batch to the next. epilogue: what is done to the result before it is stored (a name in EPILOGUES; GELU is the tanh
    form). scaled: float8 operands, each times a float32 in memory. algorithm: the 64 bytes of a choice once recorded;
    without it the library's first is taken. aligned: all addresses are multiples of 16.

    Arguments: x, y, out, workspace, then scale_x and scale_y where scaled, then the bias, then the auxiliary matrix of
    the epilogue, where it has them.
    """

    m: int
    n: int
    k: int
    dtype: Dtype
    out_dtype: Dtype
    x_transposed: bool
    y_transposed: bool
    x_ld: int
    y_ld: int
    out_ld: int
    batch: int = 1
    x_stride: int = 0
    y_stride: int = 0
    out_stride: int = 0
    accumulate: bool = False
    epilogue: str | None = None
    scaled: bool = False
    algorithm: bytes | None = None
    aligned: bool = True


@functools.cache
def is_available() -> bool:
    """Returns whether nvmath-python is installed and finds cuBLASLt and a GPU."""
    if importlib.util.find_spec(MODULE) is None:
        return False
    try:
        _handle(0)
    except Exception:  # whatever the bindings raise where they can't start, products take another path
        return False
    return True


@functools.cache
def has_float8() -> bool:
    """Returns whether the GPU at hand multiplies float8 matrices (from compute capability 8.9 on)."""
    from ....cuda import is_available as has_gpu

    if not has_gpu():
        return False
    import cupy

    return int(cupy.cuda.Device().compute_capability) >= 89


def takes(dtype: Dtype) -> bool:
    """Returns whether the library multiplies matrices of a dtype (float8 only by scaled_matmul)."""
    return is_available() and dtype in (dtypes.float32, dtypes.float64, dtypes.float16, dtypes.bfloat16)


def _compute(dtype: Dtype) -> str:
    if dtype is dtypes.float64:
        return "float64"
    return "tf32" if dtype is dtypes.float32 and os.environ.get("TINYARR_TF32") == "1" else "float32"


@functools.cache
def _handle(device: int) -> int:
    from nvmath.bindings import cublasLt

    return cublasLt.create()


class _Prepared:
    """A product described to the library: descriptors that are kept as long as this is."""

    def __init__(self, spec: Product):
        from cupy.cuda import runtime
        from nvmath.bindings import cublasLt as lt

        self.lt, self.spec = lt, spec
        self.handle = _handle(runtime.getDevice())
        wide = np.float64 if spec.dtype is dtypes.float64 else np.float32
        self.alpha, self.beta = np.ones(1, wide), np.full(1, spec.accumulate, wide)
        self.description = lt.matmul_desc_create(COMPUTE[_compute(spec.dtype)], TYPES[dtypes.dtype(np.dtype(wide))])
        attribute = lt.MatmulDescAttribute
        self._describe(attribute.TRANSA, np.int32(spec.y_transposed))
        self._describe(attribute.TRANSB, np.int32(spec.x_transposed))
        if spec.epilogue:
            self._describe(attribute.EPILOGUE, np.int32(EPILOGUES[spec.epilogue]))
            self._describe(attribute.BIAS_DATA_TYPE, np.int32(TYPES[spec.out_dtype]))
        if spec.epilogue in AUXILIARY:
            self._describe(attribute.EPILOGUE_AUX_LD, np.int64(spec.out_ld))
        if spec.scaled:
            self._describe(attribute.FAST_ACCUM, np.int8(1))
        m, n, k = spec.m, spec.n, spec.k
        self.y = self._layout(spec.dtype, (k, n) if spec.y_transposed else (n, k), spec.y_ld, spec.y_stride)
        self.x = self._layout(spec.dtype, (m, k) if spec.x_transposed else (k, m), spec.x_ld, spec.x_stride)
        self.out = self._layout(spec.out_dtype, (n, m), spec.out_ld, spec.out_stride)
        self._algorithm = np.frombuffer(spec.algorithm or self.candidates(1)[0], np.uint8)
        if spec.algorithm:
            self._check()

    def _describe(self, attribute: int, value: np.generic) -> None:
        data = np.array([value])
        self.lt.matmul_desc_set_attribute(self.description, attribute, data.ctypes.data, data.nbytes)

    def _layout(self, dtype: Dtype, shape: tuple[int, int], ld: int, stride: int) -> int:
        layout = self.lt.matrix_layout_create(TYPES[dtype], *shape, ld)
        attribute = self.lt.MatrixLayoutAttribute
        if self.spec.batch > 1:
            for name, value in (
                (attribute.BATCH_COUNT, np.int32(self.spec.batch)), (attribute.STRIDED_BATCH_OFFSET, np.int64(stride)),
            ):  # fmt: skip
                data = np.array([value])
                self.lt.matrix_layout_set_attribute(layout, name, data.ctypes.data, data.nbytes)
        return layout

    def candidates(self, most: int) -> list[bytes]:
        """The algorithms that the library thinks fastest, the best first.

        They need no more alignment than the operands have, and add up in the compute type.
        """
        lt = self.lt
        preference = lt.matmul_preference_create()
        attribute = lt.MatmulPreferenceAttribute
        alignment = 16 if self.spec.aligned else self.spec.dtype.itemsize
        wishes: list[tuple[int, np.generic]] = [
            (attribute.MAX_WORKSPACE_BYTES, np.uint64(WORKSPACE)),
            (attribute.REDUCTION_SCHEME_MASK, np.uint32(lt.ReductionScheme.COMPUTE_TYPE)),
        ]
        wishes += [
            (name, np.uint32(alignment))
            for name in (
                attribute.MIN_ALIGNMENT_A_BYTES, attribute.MIN_ALIGNMENT_B_BYTES, attribute.MIN_ALIGNMENT_C_BYTES,
                attribute.MIN_ALIGNMENT_D_BYTES,
            )
        ]  # fmt: skip
        for name, value in wishes:
            data = np.array([value])
            lt.matmul_preference_set_attribute(preference, name, data.ctypes.data, data.nbytes)
        results, count = np.zeros(most, RESULT), np.zeros(1, np.int32)
        lt.matmul_algo_get_heuristic(
            self.handle, self.description, self.y, self.x, self.out, self.out, preference, most,
            results.ctypes.data, count.ctypes.data,
        )  # fmt: skip
        lt.matmul_preference_destroy(preference)
        found = results[: count[0]]
        found = found[(found["state"] == 0) & (found["workspace"] <= WORKSPACE)]
        if not len(found):
            raise DeviceError(f"matmul: cuBLASLt has no algorithm for {self.spec}: uninstall nvmath-python to go on")
        return [algorithm.tobytes() for algorithm in found["algorithm"]]

    def _check(self) -> None:
        """Raises DeviceError where the library does not take the algorithm for this product."""
        result = np.zeros(1, RESULT)
        try:
            self.lt.matmul_algo_check(
                self.handle, self.description, self.y, self.x, self.out, self.out, self._algorithm.ctypes.data,
                result.ctypes.data,
            )  # fmt: skip
        except self.lt.cuBLASLtError as error:
            reason = str(error)
        else:
            needed = int(result["workspace"][0])
            if needed <= WORKSPACE:
                return
            reason = f"it needs {needed:,} bytes to work in"
        spec = self.spec._replace(algorithm=None)
        raise DeviceError(f"matmul: cuBLASLt does not take the algorithm recorded for {spec} ({reason}): {_FORGET}")

    def run(self, stream: int, x: int, y: int, out: int, workspace: int, *more: int) -> None:
        spec, attribute, extra = self.spec, self.lt.MatmulDescAttribute, list(more)
        if spec.scaled:
            self._describe(attribute.B_SCALE_POINTER, np.uint64(extra.pop(0)))
            self._describe(attribute.A_SCALE_POINTER, np.uint64(extra.pop(0)))
        if spec.epilogue and "bias" in spec.epilogue:
            self._describe(attribute.BIAS_POINTER, np.uint64(extra.pop(0)))
        if extra:
            self._describe(attribute.EPILOGUE_AUX_POINTER, np.uint64(extra.pop(0)))
        self.lt.matmul(
            self.handle, self.description, self.alpha.ctypes.data, y, self.y, x, self.x, self.beta.ctypes.data,
            out, self.out, out, self.out, self._algorithm.ctypes.data, workspace, WORKSPACE, stream,
        )  # fmt: skip


@library("cublaslt")
def prepare(spec: Product) -> Callable[..., None]:
    """run(stream, x, y, out, workspace, ...)"""
    if spec.algorithm is None:
        spec = _chosen(spec, eager=True) or spec
    return _Prepared(spec).run


def candidates(spec: Product) -> list[bytes]:
    """The algorithms that the library thinks fastest for a product, the best first."""
    return _Prepared(spec._replace(algorithm=None)).candidates(MOST_CANDIDATES)


def tune(spec: Product, stream: Any, allocate: Callable[[int], Any]) -> Product:
    """The product with an algorithm: the one chosen before, else the fastest; a small product as it is.

    stream: a CuPy stream of the current device. allocate(n) gives a storage of n bytes there, which is let go on
    return. It is only called where candidates are timed, for operand_bytes(spec).
    """
    if spec.algorithm is not None:
        return spec
    known = _chosen(spec)
    if known is not None or 2 * spec.batch * spec.m * spec.n * spec.k < LEAST_OPERATIONS:
        return known or spec
    tuning.record(_key_here(spec), _fastest(spec, stream, allocate).hex())
    return _chosen(spec) or spec


def key(spec: Product, version: int, card: str) -> str:
    """All that the choice of an algorithm depends on. Algorithms belong to a version of the library."""
    fields = " ".join(f"{n}={getattr(x, 'name', x)}" for n, x in spec._asdict().items() if n != "algorithm")
    return f"cuBLASLt {version}, {card}, computes in {_compute(spec.dtype)}, workspace {WORKSPACE}: {fields}"


def _key_here(spec: Product) -> str:
    from cupy.cuda import runtime

    return key(spec, *_library_and_card(runtime.getDevice()))


@functools.cache
def _library_and_card(device: int) -> tuple[int, str]:
    from cupy.cuda import runtime
    from nvmath.bindings import cublasLt

    return cublasLt.get_version(), runtime.getDeviceProperties(device)["name"].decode()


def _chosen(spec: Product, *, eager: bool = False) -> Product | None:
    """The product with the algorithm that was chosen for it, if one was."""
    where = _key_here(spec)
    text = tuning.lookup(where, eager=eager)
    if text is None:
        return None
    try:
        algorithm = bytes.fromhex(text)
    except ValueError:
        algorithm = b""
    if len(algorithm) != RESULT["algorithm"].itemsize:
        raise FileError(
            f"matmul: the choice recorded for {where} is {text!r}, not the 64 bytes of an algorithm: {_FORGET}"
        )
    return spec._replace(algorithm=algorithm)


def _operands(spec: Product) -> list[tuple[Dtype, int]]:
    """The dtype and number of elements of what a product gets, in the order of its arguments."""

    def extent(rows: int, columns: int, ld: int, stride: int) -> int:
        return (spec.batch - 1) * abs(stride) + (rows - 1) * ld + columns

    m, n, k = spec.m, spec.n, spec.k
    out = spec.out_dtype, extent(m, n, spec.out_ld, spec.out_stride)
    found = [
        (spec.dtype, extent(*((k, m) if spec.x_transposed else (m, k)), spec.x_ld, spec.x_stride)),
        (spec.dtype, extent(*((n, k) if spec.y_transposed else (k, n)), spec.y_ld, spec.y_stride)),
        out, (dtypes.uint8, WORKSPACE),
    ]  # fmt: skip
    if spec.scaled:
        found += [(dtypes.float32, 1)] * 2
    if spec.epilogue and "bias" in spec.epilogue:
        found.append((spec.out_dtype, n))
    if spec.epilogue in AUXILIARY:
        found.append(out)
    return found


def _room(dtype: Dtype, count: int) -> int:
    return -(-count * dtype.itemsize // ALIGNMENT) * ALIGNMENT


def operand_bytes(spec: Product) -> int:
    """Returns the bytes of all operands of a product and of its workspace."""
    return sum(_room(*operand) for operand in _operands(spec))


def _fastest(spec: Product, stream: Any, allocate: Callable[[int], Any]) -> bytes:
    """The algorithm that took the least time, with random operands: a card multiplies zeros faster."""
    found = candidates(spec)
    if len(found) == 1:
        return found[0]
    # A batch that is walked backwards takes as long, and begins where its memory begins.
    spec = spec._replace(x_stride=abs(spec.x_stride), y_stride=abs(spec.y_stride))
    block = allocate(operand_bytes(spec))
    addresses, end = [], block.memory.ptr
    for dtype, count in _operands(spec):
        addresses.append(end)
        if dtype.is_float:
            _fill(end, dtype, count, stream)
        end += _room(dtype, count)
    runs = [_Prepared(spec._replace(algorithm=algorithm)).run for algorithm in found]
    return found[_choice(_time(runs, stream, addresses))]


def _fill(address: int, dtype: Dtype, count: int, stream: Any) -> None:
    """Fills an operand with normal numbers."""
    from cupy.cuda import runtime

    drawn = np.random.default_rng(0).standard_normal(min(count, DRAWN)).astype(dtype.numpy)
    runtime.memcpyAsync(address, drawn.ctypes.data, drawn.nbytes, runtime.memcpyHostToDevice, stream.ptr)
    done, total = drawn.nbytes, count * dtype.itemsize
    while done < total:
        part = min(done, total - done)
        runtime.memcpyAsync(address + done, address, part, runtime.memcpyDeviceToDevice, stream.ptr)
        done += part
    stream.synchronize()  # the copy reads `drawn`


def _time(runs: Sequence[Callable[..., None]], stream: Any, addresses: Sequence[int]) -> list[float]:
    """The milliseconds that each of some functions takes, the median of several rounds after one that warms up."""
    import cupy

    for run in runs:
        run(stream.ptr, *addresses)
    events = [[(cupy.cuda.Event(), cupy.cuda.Event()) for _ in runs] for _ in range(ROUNDS)]
    for pairs in events:
        for run, (start, end) in zip(runs, pairs, strict=True):
            start.record(stream)
            run(stream.ptr, *addresses)
            end.record(stream)
    stream.synchronize()
    rounds = [[cupy.cuda.get_elapsed_time(*pair) for pair in pairs] for pairs in events]
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


def _choice(milliseconds: Sequence[float]) -> int:
    """Returns the number of the fastest, or 0 where the first is hardly slower, so that noise decides less."""
    least = min(milliseconds)
    return 0 if least > GAIN * milliseconds[0] else milliseconds.index(least)
