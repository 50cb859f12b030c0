"""Matrix products by cuBLASLt, through nvmath-python's bindings.

The library knows column-major matrices only. A row-major matrix is a column-major one transposed, so out = x y is asked
for as out^T = y^T x^T: y is the library's first operand.
Source: cuBLAS documentation, "Using the cuBLASLt API".
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ... import dtypes
from ...dtypes import Dtype
from ...errors import DeviceError
from .registry import library

MODULE = "nvmath"
WORKSPACE = 32 * 2**20  # bytes, what NVIDIA recommends for Hopper
MAXIMUM_CANDIDATES = 1  # eager mode takes the library's first choice

# The library's numbers of types (cudaDataType_t) and of ways to compute (cublasComputeType_t).
TYPES = {
    dtypes.float32: 0, dtypes.float64: 1, dtypes.float16: 2, dtypes.bfloat16: 14, dtypes.float8_e4m3fn: 28,
    dtypes.float8_e5m2: 29,
}  # fmt: skip
COMPUTE = {"float32": 68, "float64": 70, "tf32": 77}
EPILOGUES = {None: 1, "bias": 4, "gelu": 32, "gelu_bias": 36, "gelu_aux_bias": 164, "gelu_gradient": 192}


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
    """Whether nvmath-python is installed and finds cuBLASLt and a GPU."""
    if importlib.util.find_spec(MODULE) is None:
        return False
    try:
        _handle(0)
    except Exception:  # whatever the bindings raise where they can't start, products take another path
        return False
    return True


@functools.cache
def has_float8() -> bool:
    """Whether the GPU at hand multiplies float8 matrices (from compute capability 8.9 on)."""
    from ...cuda import is_available as has_gpu

    if not has_gpu():
        return False
    import cupy

    return int(cupy.cuda.Device().compute_capability) >= 89


def takes(dtype: Dtype) -> bool:
    """Whether the library multiplies matrices of a dtype (float8 only by scaled_matmul)."""
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
    """A product described to the library: descriptors that live as long as this does."""

    def __init__(self, spec: Product):
        from cupy.cuda import runtime
        from nvmath.bindings import cublasLt as lt

        self.lt, self.spec = lt, spec
        self.handle = _handle(runtime.getDevice())
        wide = np.float64 if spec.dtype is dtypes.float64 else np.float32
        self.alpha, self.beta = np.ones(1, wide), np.full(1, spec.accumulate, wide)
        self.description = lt.matmul_desc_create(COMPUTE[_compute(spec.dtype)], TYPES[dtypes.dtype(np.dtype(wide))])
        self._kept: list[np.ndarray] = []
        attribute = lt.MatmulDescAttribute
        self._describe(attribute.TRANSA, np.int32(spec.y_transposed))
        self._describe(attribute.TRANSB, np.int32(spec.x_transposed))
        if spec.epilogue:
            self._describe(attribute.EPILOGUE, np.int32(EPILOGUES[spec.epilogue]))
            self._describe(attribute.BIAS_DATA_TYPE, np.int32(TYPES[spec.out_dtype]))
        if spec.epilogue in ("gelu_aux_bias", "gelu_gradient"):
            self._describe(attribute.EPILOGUE_AUX_LD, np.int64(spec.out_ld))
        if spec.scaled:
            self._describe(attribute.FAST_ACCUM, np.int8(1))
        m, n, k = spec.m, spec.n, spec.k
        self.y = self._layout(spec.dtype, (k, n) if spec.y_transposed else (n, k), spec.y_ld, spec.y_stride)
        self.x = self._layout(spec.dtype, (m, k) if spec.x_transposed else (k, m), spec.x_ld, spec.x_stride)
        self.out = self._layout(spec.out_dtype, (n, m), spec.out_ld, spec.out_stride)
        self.algorithm = self._recorded() if spec.algorithm else self._first()

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

    def _recorded(self) -> int:
        assert self.spec.algorithm is not None
        self._kept.append(np.frombuffer(self.spec.algorithm, np.uint8).copy())
        return self._kept[-1].ctypes.data

    def _first(self) -> int:
        """The library's first choice, among algorithms that need no more alignment than the operands have."""
        lt = self.lt
        preference = lt.matmul_preference_create()
        attribute = lt.MatmulPreferenceAttribute
        alignment = 16 if self.spec.aligned else self.spec.dtype.itemsize
        wishes: list[tuple[int, np.generic]] = [(attribute.MAX_WORKSPACE_BYTES, np.uint64(WORKSPACE))]
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
        self._results = lt.MatmulHeuristicResult(MAXIMUM_CANDIDATES)
        count = np.zeros(1, np.int32)
        lt.matmul_algo_get_heuristic(
            self.handle, self.description, self.y, self.x, self.out, self.out, preference, MAXIMUM_CANDIDATES,
            self._results.ptr, count.ctypes.data,
        )  # fmt: skip
        lt.matmul_preference_destroy(preference)
        if not count[0]:
            raise DeviceError(f"matmul: cuBLASLt has no algorithm for {self.spec}: uninstall nvmath-python to go on")
        return self._results.ptr

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
            out, self.out, out, self.out, self.algorithm, workspace, WORKSPACE, stream,
        )  # fmt: skip


@library("cublaslt")
def prepare(spec: Product) -> Callable[..., None]:
    """run(stream, x, y, out, workspace, ...)"""
    return _Prepared(spec).run
