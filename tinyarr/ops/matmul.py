"""Matrix products. Floor 1."""

from __future__ import annotations

import math

from .. import dtypes, views
from ..dtypes import Dtype
from ..errors import DtypeError, ShapeError, describe
from ..tensor import Tensor, require_tensors
from .elementwise import astype
from .primitive import Primitive, apply
from .shape import matrix_transpose, reshape


def _infer(shapes, types):
    x, y = shapes
    batch = views.broadcast_shapes("matmul", x[:-2], y[:-2])
    return [(batch + (x[-2], y[-1]), types[0])]


def _common(types):
    common = dtypes.result_type(*types)
    if common is dtypes.bool:
        raise DtypeError("matmul: x and y have dtype bool: they must be numbers, use astype")
    return common


_matmul = Primitive("matmul", _infer, inputs=("x", "y"), promotes=_common)


@_matmul.gradient
def _matmul_gradient(g, x, y, *, needs):
    dx = matmul(g, matrix_transpose(y)) if needs[0] else None
    dy = matmul(matrix_transpose(x), g) if needs[1] else None
    return dx, dy


def matmul(x: Tensor, y: Tensor) -> Tensor:
    """The matrix product over the last two axes; leading axes broadcast; a 1-d operand is a row or column.

    Half types accumulate in float32. Raises ShapeError where x's last axis and y's second to last differ.
    """
    require_tensors("matmul", x=x, y=y)
    for name, t in (("x", x), ("y", y)):
        if t.ndim == 0:
            raise ShapeError(f"matmul: {name} is 0-d: it must have at least 1 dimension; multiply numbers with *")
    inner = y.shape[0] if y.ndim == 1 else y.shape[-2]
    if x.shape[-1] != inner:
        which = "second to last" if y.ndim > 1 else "only"
        raise ShapeError(
            f"matmul: x has shape {x.shape}, y has shape {y.shape}: "
            f"x's last axis ({x.shape[-1]}) must equal y's {which} ({inner})"
        )
    if x.ndim == 1:
        return _drop(matmul(reshape(x, (1, x.size)), y), -2 if y.ndim > 1 else -1)
    if y.ndim == 1:
        return _drop(matmul(x, reshape(y, (y.size, 1))), -1)
    if y.ndim == 2 and x.ndim > 2:  # one large product in place of one a row of the batch
        rows = math.prod(x.shape[:-1])
        return reshape(apply(_matmul, reshape(x, (rows, inner)), y), x.shape[:-1] + y.shape[-1:])
    return apply(_matmul, x, y)


def _drop(x: Tensor, axis: int) -> Tensor:
    shape = list(x.shape)
    del shape[axis]
    return reshape(x, shape)


def _wide_composite(x, y):
    return matmul(astype(x, x.dtype.compute), astype(y, y.dtype.compute))


def _add_composite(c, x, y):
    return c + matmul(astype(x, c.dtype), astype(y, c.dtype))


# Products of half types as float32 (matmul_wide), or added to a float32 tensor of their shape (matmul_add), and not
# rounded on the way: what compilation makes of a product that is only converted to float32.
matmul_wide = Primitive(
    "matmul_wide",
    lambda shapes, types: [(shape, types[0].compute) for shape, _ in _infer(shapes, types)],
    inputs=("x", "y"),
    composite=_wide_composite,
)
matmul_add = Primitive(
    "matmul_add",
    lambda shapes, types: [(shapes[0], types[0])],
    inputs=("c", "x", "y"),
    composite=_add_composite,
    overwrites=0,
)


def _scaled_composite(x, weight, scale_x, scale_weight, *, dtype):
    wide = astype(x, dtypes.float32) * scale_x
    return astype(matmul(wide, matrix_transpose(astype(weight, dtypes.float32) * scale_weight)), dtype)


_scaled_matmul = Primitive(
    "scaled_matmul",
    lambda shapes, types, *, dtype: [(shapes[0][:1] + shapes[1][:1], dtype)],
    inputs=("x", "weight", "scale_x", "scale_weight"),
    composite=_scaled_composite,
).no_gradient()


def scaled_matmul(
    x: Tensor, weight: Tensor, scale_x: Tensor, scale_weight: Tensor, *, dtype: Dtype | str = dtypes.bfloat16
) -> Tensor:
    """(x * scale_x) @ (weight * scale_weight).T for float8, which has no range of its own: (..., out) in `dtype`.

    x (..., in) and weight (out, in) of float8 dtypes, the scales 0-d float32. Sums are in float32. No gradient flows:
    the gradients of a layer are such products themselves, with scales of their own.
    Source: Micikevicius et al. 2022, "FP8 formats for deep learning".
    """
    require_tensors("scaled_matmul", x=x, weight=weight, scale_x=scale_x, scale_weight=scale_weight)
    given = f"scaled_matmul: {describe('x', x)}, {describe('weight', weight)}"
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(f"{given}: weight must be (out, in) with `in` equal to x's last axis")
    if not (x.dtype in dtypes.FLOAT8 and weight.dtype in dtypes.FLOAT8):
        raise DtypeError(f"{given}: both must be float8; other dtypes need no scale, use linear")
    for name, scale in (("scale_x", scale_x), ("scale_weight", scale_weight)):
        if scale.shape != () or scale.dtype is not dtypes.float32:
            raise DtypeError(f"scaled_matmul: {describe(name, scale)}: it must be a 0-d float32")
    rows = reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
    product = apply(_scaled_matmul, rows, weight, scale_x, scale_weight, dtype=dtypes.dtype(dtype))
    return reshape(product, x.shape[:-1] + weight.shape[:1])


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias. x (..., in), weight (out, in), bias (out,): (..., out)."""
    require_tensors("linear", x=x, weight=weight)
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ShapeError(
            f"linear: x has shape {x.shape}, weight has shape {weight.shape}: "
            "weight must be (out, in) with `in` equal to x's last axis"
        )
    y = matmul(x, matrix_transpose(weight))
    if bias is None:
        return y
    require_tensors("linear", bias=bias)
    if bias.shape != weight.shape[:1]:
        raise ShapeError(f"linear: bias has shape {bias.shape}, weight has shape {weight.shape}: bias must be (out,)")
    return y + bias
