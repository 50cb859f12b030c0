"""Evenly spaced numbers, and ones on a diagonal. Floor 5."""

from __future__ import annotations

import math
import operator

from ... import dtypes, views
from ...tensor import Tensor
from .. import scalar
from ..create import require_numbers, target
from ..elementwise import elementwise
from ..primitive import apply


@elementwise
def _eye(diagonal, *, shape, dtype):
    return scalar.cast(scalar.index(0) + diagonal == scalar.index(1), dtype)


@elementwise
def _linspace(start, stop, step, *, shape, dtype, last):
    i = scalar.index(0)
    return scalar.cast(scalar.where(i == last, stop, start + scalar.weak(i) * step), dtype)


_eye.no_gradient()
_linspace.no_gradient()


def eye(n_rows: int, n_cols: int | None = None, *, k: int = 0, dtype=None, device=None) -> Tensor:
    """Ones on the k-th diagonal, zeros elsewhere."""
    dtype, device = target(dtype, device, "float")
    shape = views.normalize_shape("eye", (n_rows, n_rows if n_cols is None else n_cols))
    k = min(max(operator.index(k), -shape[0]), shape[1])  # beyond the corners no diagonal has elements
    return apply(_eye, k, shape=shape, dtype=dtype, device=device)


def linspace(start, stop, /, num: int, *, dtype=None, device=None, endpoint: bool = True) -> Tensor:
    """`num` evenly spaced numbers from start to stop, which is left out where `endpoint` is False."""
    require_numbers("linspace", start=dtypes.python_scalar(start), stop=dtypes.python_scalar(stop))
    dtype, device = target(dtype, device, "float")
    (num,) = views.normalize_shape("linspace", num)
    divisions = num - 1 if endpoint else num
    step = (stop - start) / divisions if divisions > 0 else math.nan if num else 0.0
    last = num - 1 if endpoint and num > 1 else -1
    start, stop = float(start), float(stop)
    return apply(_linspace, start, stop, step if num > 1 else 0.0, shape=(num,), dtype=dtype, last=last, device=device)
