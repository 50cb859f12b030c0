"""Matrix products: cuBLASLt for floating dtypes, a kernel of our own where the library doesn't apply. Floor 3.

The floor is 2 M N K operations, on an H100 at about 775 TFLOP/s in half types and 60 in float32.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from .... import dtypes, views
from ....dtypes import Dtype
from ....ops import epilogue as epilogues
from ....views import Shape
from ..libraries import cublaslt
from ..planning.registry import Input, Launch, LaunchPlan, LibraryCall, Operand, Output, Scratch, Source, kernel
from ..planning.types import TYPES, files, wide
from . import elementwise

Address = Input | Output | Scratch
MOST_BLOCKS = 65535  # along the second and third axis of a grid


def _out_layout(call: Any) -> str:
    """Large products, whose algorithm a program chooses anyway, are made in any order of a matrix.

    Smaller ones are made in rows, as in eager mode: the library may add up otherwise in (x y)^T = y^T x^T.
    """
    (*_, k), (out,) = call.in_shapes[0], call.out_shapes
    return "matrix" if 2 * views.size(out) * k >= cublaslt.LEAST_OPERATIONS else "dense"


@kernel("matmul", layouts="matrix", out_layout=_out_layout)
@kernel("matmul_wide", layouts="matrix", out_layout=_out_layout)
def matmul(inputs, outputs):
    (x, y), (out,) = inputs, outputs
    if x.shape[-1] == 0:
        return LaunchPlan(elementwise.fill(0, (out, Output(0))))
    return _products(x, y, out, 0, 1, accumulate=False)


@kernel("matmul_add", layouts=("any", "matrix", "matrix"), updates=True)
def matmul_add(inputs, outputs):
    (_, x, y), (out,) = inputs, outputs
    return _products(x, y, out, 1, 2, accumulate=True) if x.shape[-1] else LaunchPlan([])


def _products(x: Operand, y: Operand, out: Operand, first: int, second: int, *, accumulate: bool) -> LaunchPlan:
    """x y, or out + x y, for a batch of matrices. first, second: the numbers of x and y among the inputs."""
    if 0 in out.shape:
        return LaunchPlan([])
    if out.strides[-1] != 1 and out.shape[-1] > 1:  # it is transposed in memory: out^T = y^T x^T
        x, y, out, first, second = _turned(y), _turned(x), _turned(out), second, first
    batch = out.shape[:-2]
    lead = [_batch_strides(operand, batch) for operand in (x, y, out)]
    axes, strides = views.merge_axes(batch, lead)
    steps = []
    for outer in itertools.product(*map(range, axes[:-1])):
        offsets = [sum(i * s for i, s in zip(outer, by)) for by in strides]
        steps.append(
            product(
                _matrix(x, offsets[0]), Input(first, offsets[0] * x.dtype.itemsize),
                _matrix(y, offsets[1]), Input(second, offsets[1] * y.dtype.itemsize),
                _matrix(out, offsets[2]), Output(0, offsets[2] * out.dtype.itemsize),
                workspace=Scratch(0), accumulate=accumulate, batch=axes[-1],
                batch_strides=tuple(by[-1] for by in strides),
            )
        )  # fmt: skip
    return LaunchPlan(steps, (cublaslt.WORKSPACE,) if cublaslt.takes(x.dtype) else ())


@kernel("scaled_matmul", layouts=("dense", "dense", "any", "any"))
def scaled_matmul(inputs, outputs, *, dtype):
    """Plans the library's call, which wants both axes in multiples of 16; the composite serves all else."""
    (x, weight), (out,) = inputs[:2], outputs
    (m, k), n = x.shape, weight.shape[0]
    both = x.dtype, weight.dtype
    taken = both == (dtypes.float8_e4m3fn,) * 2 and out.dtype in (dtypes.bfloat16, dtypes.float16, dtypes.float32)
    if not taken or not cublaslt.is_available() or k % 16 or n % 16 or not m * n * k or not cublaslt.has_float8():
        return None
    aligned = x.aligned and weight.aligned and out.aligned
    spec = cublaslt.Product(m, n, k, x.dtype, out.dtype, False, True, k, k, n, scaled=True, aligned=aligned)
    arguments = (Input(0), Input(1), Output(0), Scratch(0), Input(2), Input(3))
    return LaunchPlan([LibraryCall("cublaslt", spec, arguments)], (cublaslt.WORKSPACE,))


def _with_epilogue(inputs, out: int, epilogue: str, more: Sequence[Address]) -> LaunchPlan | None:
    """The product of two matrices of a half type, and what the library then does to it; None where it can't."""
    x, y = inputs[:2]
    (m, k), n = x.shape, y.shape[1]
    if x.dtype not in (dtypes.float16, dtypes.bfloat16) or not cublaslt.takes(x.dtype) or not m * n * k or n % 8:
        return None
    made = Operand((m, n), (n, 1), x.dtype)
    step = product(x, Input(0), y, Input(1), made, Output(out), workspace=Scratch(0), epilogue=epilogue, more=more)
    return LaunchPlan([step], (cublaslt.WORKSPACE,))


@kernel(epilogues.matmul_bias, layouts=("matrix", "matrix", "dense"))
def matmul_bias(inputs, outputs):
    return _with_epilogue(inputs, 0, "bias", (Input(2),))


@kernel(epilogues.matmul_bias_gelu, layouts=("matrix", "matrix", "dense"))
def matmul_bias_gelu(inputs, outputs):
    return _with_epilogue(inputs, 1, "gelu_aux_bias", (Input(2), Output(0)))


@kernel(epilogues.matmul_gelu_gradient, layouts=("matrix", "matrix", "dense"))
def matmul_gelu_gradient(inputs, outputs):
    return _with_epilogue(inputs, 0, "gelu_gradient", (Input(2),))


def product(
    x: Operand, x_at: Address, y: Operand, y_at: Address, out: Operand, out_at: Address, *, workspace: Scratch,
    accumulate: bool = False, batch: int = 1, batch_strides: Sequence[int] = (0, 0, 0), epilogue: str | None = None,
    more: Sequence[Address] = (),
) -> Launch | LibraryCall:
    """The step out = x y (with `accumulate` out += x y) for matrices, one axis of each contiguous.

    workspace: a scratch block of cublaslt.WORKSPACE bytes, where cublaslt.takes the dtype. epilogue: one of the
    library's, and what it works on.
    """
    (m, k), n = x.shape, y.shape[1]
    if not cublaslt.takes(x.dtype):
        return _raw(x, x_at, y, y_at, out, out_at, accumulate, batch, batch_strides)
    (x_transposed, x_ld), (y_transposed, y_ld) = _lie(x), _lie(y)
    x_stride, y_stride, out_stride = batch_strides
    # In float64 the kernels that need no alignment serve all operands: others add up in another order.
    aligned = x.aligned and y.aligned and out.aligned and x.dtype.itemsize < 8
    spec = cublaslt.Product(
        m, n, k, x.dtype, out.dtype, x_transposed, y_transposed, x_ld, y_ld, max(out.strides[0], n), batch, x_stride,
        y_stride, out_stride, accumulate=accumulate, epilogue=epilogue, aligned=aligned,
    )  # fmt: skip
    return LibraryCall("cublaslt", spec, (x_at, y_at, out_at, workspace, *more))


def _raw(
    x: Operand, x_at: Address, y: Operand, y_at: Address, out: Operand, out_at: Address, accumulate: bool, batch: int,
    batch_strides: Sequence[int],
) -> Launch:
    (m, k), n = x.shape, y.shape[1]
    macros = (
        ("T", TYPES[x.dtype]), ("A", wide(x.dtype)), ("R", TYPES[out.dtype]), ("ACCUMULATE", str(int(accumulate))),
        ("TO_OUT", "R *"), ("FROM_X", "const T *"), ("FROM_Y", "const T *"),
        ("MULTIPLY_ADD(a, b, c)", _multiply_add(x.dtype.compute)),
    )  # fmt: skip
    sizes = (m, n, k, *x.strides, *y.strides, out.strides[0], batch, *batch_strides)
    grid = (-(-n // 64), -(-m // 64), min(batch, MOST_BLOCKS))
    source = Source((*files(x.dtype, out.dtype), "matmul.cu"), macros)
    slots = (("FROM_X", 1), ("FROM_Y", 2), *((("TO_OUT", 0),) if not accumulate else ()))
    return Launch(source, "matmul", grid, (256, 1, 1), (out_at, x_at, y_at, *map(np.int64, sizes)), slots=slots)


def _multiply_add(dtype: Dtype) -> str:
    if not dtype.is_float:
        return "((c) + (a) * (b))"
    return f"fma{'f' if dtype.itemsize == 4 else ''}(a, b, c)"


def _batch_strides(operand: Operand, batch: Shape) -> Shape:
    own = [0 if n == 1 else s for n, s in zip(operand.shape[:-2], operand.strides[:-2], strict=True)]
    return (0,) * (len(batch) - len(own)) + tuple(own)


def _matrix(operand: Operand, offset: int) -> Operand:
    """The last two axes, `offset` elements into the operand."""
    aligned = operand.aligned and offset * operand.dtype.itemsize % 16 == 0
    return Operand(operand.shape[-2:], operand.strides[-2:], operand.dtype, aligned)


def _turned(x: Operand) -> Operand:
    """The operand with its last two axes exchanged."""
    return x._replace(shape=(*x.shape[:-2], *x.shape[:-3:-1]), strides=(*x.strides[:-2], *x.strides[:-3:-1]))


def _lie(x: Operand) -> tuple[bool, int]:
    """Returns whether the matrix is transposed in memory, and the stride of its rows (then columns)."""
    (rows, columns), (by_row, by_column) = x.shape, x.strides
    if columns == 1 and by_row == 1:
        return False, 1
    if by_column == 1 or columns == 1 == rows:
        return False, max(by_row, columns)
    return True, max(by_column, rows)
