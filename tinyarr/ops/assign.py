"""assign: writing into an existing tensor. Floor 1."""

from __future__ import annotations

from .. import dtypes, views
from ..errors import DeviceError, GradientError, ShapeError
from ..tape import recording
from ..tensor import Tensor
from .create import _copy, _full
from .elementwise import astype
from .primitive import apply
from .shape import broadcast_to


def assign(x: Tensor, value) -> Tensor:
    """Writes `value` (a tensor or Python scalar, broadcast and cast to x) into x's memory; every view of it sees it.

    Raises GradientError where either takes part in a gradient: write under no_grad(), or build a new tensor with
    where or concat.
    """
    takes_part = x.requires_grad or (isinstance(value, Tensor) and value.requires_grad)
    if takes_part and recording.get():
        raise GradientError(
            "assign: x or the value takes part in a gradient, and a write can't be differentiated: "
            "use where or concat to build a new tensor, or write under no_grad()"
        )
    if not isinstance(value, Tensor):
        value = dtypes.python_scalar(value)
        if dtypes.scalar_kind(value) is None:
            raise TypeError(f"assign: value is {type(value).__name__}: make it a tensor with tinyarr.Tensor(...)")
        return apply(_full, value, out=x, shape=x.shape, dtype=x.dtype, device=x.device)
    if value.device is not x.device:
        raise DeviceError(f"assign: x is on {x.device}, value on {value.device}: move it with value.to(device)")
    if views.broadcast_shapes("assign", value.shape, x.shape) != x.shape:
        raise ShapeError(f"assign: value has shape {value.shape}, x has shape {x.shape}: it must broadcast to that")
    return apply(_copy, broadcast_to(astype(value, x.dtype, copy=False), x.shape), out=x)
