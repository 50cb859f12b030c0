"""Filling where a mask is true. Floor 5."""

from __future__ import annotations

from ... import dtypes
from ...errors import DtypeError, ShapeError, describe
from ...tensor import Tensor, require_tensors
from ..elementwise import astype, where


def masked_fill(x: Tensor, mask: Tensor, value: Tensor | float) -> Tensor:
    """x with `value`, a number or a 0-d tensor, where the mask is true: where(mask, value, x) in x's dtype.

    x and the mask, of bool, broadcast together. Gradients flow to x where the mask is false, else to the value.
    """
    require_tensors("masked_fill", x=x, mask=mask)
    if mask.dtype is not dtypes.bool:
        raise DtypeError(f"masked_fill: {describe('mask', mask)}: it must be bool, as mask != 0 is")
    if isinstance(value, Tensor) and value.ndim:
        raise ShapeError(f"masked_fill: {describe('value', value)}: it must be 0-d: use where(mask, value, x)")
    filled = where(mask, value, x)
    if filled.dtype.is_float and not x.dtype.is_float:
        raise DtypeError(f"masked_fill: the value is floating, {describe('x', x)}: use x.astype(...) first")
    return astype(filled, x.dtype, copy=False)
