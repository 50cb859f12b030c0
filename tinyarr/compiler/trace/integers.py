"""Python integers among the operands of a traced call: those that don't fit are refused, as in eager mode. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...dtypes import Dtype
from ...ops.elementwise_primitive import Pointwise
from ...ops.primitive import Call
from ...ops.typing import dtype_constant, fits_int64, integer_casts, with_integers
from ..passes.fuse import FusedPointwise


def _fits(x: Any, dtype: Dtype) -> bool:
    """Returns whether an integer is one of the dtype's, by comparisons alone, as one that each call brings has them."""
    if dtype.kind not in ("signed", "unsigned"):
        return type(x) is not int
    return np.iinfo(dtype.numpy).min <= x <= np.iinfo(dtype.numpy).max


def bound(call: Call, operands: Sequence[Any]) -> tuple[Call, Sequence[Any]]:
    """The call and its operands, of which those that int64 can't hold become constants of the expression.

    Raises DtypeError where an integer does not fit the dtype in which it is computed.
    """
    primitive = call.primitive
    integers = {i: x for i, x in enumerate(operands) if isinstance(x, int) and type(x) is not bool}
    if not integers:
        return call, operands
    if not isinstance(primitive, Pointwise):
        return call, [int(x) if i in integers else x for i, x in enumerate(operands)]
    typed = primitive.typed(call.in_shapes, call.in_dtypes, call.params)
    for i, dtype in integer_casts(typed):
        if i in integers and not _fits(integers[i], dtype):
            dtype_constant(primitive.name, int(integers[i]), dtype)
    wide = {i: int(x) for i, x in integers.items() if not fits_int64(x)}
    if not wide:
        return call, operands
    kept = [i for i in range(len(operands)) if i not in wide]
    fused = FusedPointwise(primitive.name, with_integers(primitive.name, typed, wide), len(kept))
    shapes, dtypes = tuple(call.in_shapes[i] for i in kept), tuple(call.in_dtypes[i] for i in kept)
    return Call(fused, call.device, shapes, dtypes, {"shape": call.out_shapes[0]}), [operands[i] for i in kept]
