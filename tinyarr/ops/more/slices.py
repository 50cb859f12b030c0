"""The slices along an axis: apart, and in reverse; views. Floor 5."""

from __future__ import annotations

from collections.abc import Sequence

from ... import views
from ...tensor import Tensor
from ...views import View
from ..primitive import apply
from ..shape import _split_gradient, expand_dims, slice_axes, view_primitive


def _unstack_view(view: View, *, axis: int) -> list[View]:
    shape, strides = (x[:axis] + x[axis + 1 :] for x in (view.shape, view.strides))
    step = view.strides[axis] if 0 not in shape else 0
    return [View(shape, strides, view.offset + i * step) for i in range(view.shape[axis])]


_unstack = view_primitive("unstack", _unstack_view, outputs=("*parts",))


@_unstack.gradient
def _unstack_gradient(gs, *, axis, shapes, dtypes):
    parts = [g if g is None else expand_dims(g, axis) for g in gs]
    return _split_gradient(parts, sizes=(1,) * len(gs), axis=axis, shapes=shapes, dtypes=dtypes)


def unstack(x: Tensor, /, *, axis: int = 0) -> tuple[Tensor, ...]:
    """The slices of x along an axis, which they lack; views."""
    axis = views.normalize_axis("unstack", axis, x.ndim)
    return apply(_unstack, x, axis=axis) if x.shape[axis] else ()


def flip(x: Tensor, /, *, axis: int | Sequence[int] | None = None) -> Tensor:
    """The order of the elements reversed along the axes (all by default); a view."""
    axes = views.normalize_axes("flip", axis, x.ndim)
    backwards, whole = slice(None, None, -1), slice(None)
    return slice_axes(x, [backwards if i in axes else whole for i in range(x.ndim)])
