"""Python integers among the operands of a traced call: those that don't fit are refused, as in eager mode. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...ops.elementwise_primitive import Pointwise
from ...ops.primitive import Call
from ...ops.typing import dtype_constant, fits_int64, integer_casts, with_integers
from ..passes.fuse import FusedPointwise


def bound(call: Call, operands: Sequence[Any]) -> tuple[Call, Sequence[Any]]:
    """The call and its operands, of which those that int64 can't hold become constants of the expression.

    Raises DtypeError where an integer does not fit the dtype in which it is computed.
    """
    primitive = call.primitive
    integers = {i: x for i, x in enumerate(operands) if type(x) is int}
    if not integers or not isinstance(primitive, Pointwise):
        return call, operands
    typed = primitive.typed(call.in_shapes, call.in_dtypes, call.params)
    for i, dtype in integer_casts(typed):
        if i in integers:
            dtype_constant(primitive.name, integers[i], dtype)
    wide = {i: x for i, x in integers.items() if not fits_int64(x)}
    if not wide:
        return call, operands
    kept = [i for i in range(len(operands)) if i not in wide]
    fused = FusedPointwise(primitive.name, with_integers(primitive.name, typed, wide), len(kept))
    shapes, dtypes = tuple(call.in_shapes[i] for i in kept), tuple(call.in_dtypes[i] for i in kept)
    return Call(fused, call.device, shapes, dtypes, {"shape": call.out_shapes[0]}), [operands[i] for i in kept]
