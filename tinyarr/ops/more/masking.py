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
    if isinstance(value, Tensor):
        if value.ndim:
            raise ShapeError(f"masked_fill: {describe('value', value)}: it must be 0-d: use where(mask, value, x)")
        value = astype(value, x.dtype, copy=False)
    return astype(where(mask, value, x), x.dtype, copy=False)
