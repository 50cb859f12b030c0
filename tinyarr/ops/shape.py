"""Arrangement of elements: views, which share memory, and concat, split, stack. Floor 1."""

from __future__ import annotations

import builtins
import math
from collections.abc import Sequence

from .. import dtypes, views
from ..errors import ArgumentError, ShapeError, whole_number
from ..tensor import Tensor, require_tensors
from ..views import Shape, View
from .create import _copy, empty, zeros
from .create import copy as clone
from .primitive import Primitive, apply


def view_primitive(name: str, view, outputs: tuple[str, ...] = ("out",)) -> Primitive:
    """A primitive without a kernel: its result is its operand's memory, seen through `view(View, **params)`."""

    def infer(shapes, dtypes, **params):
        result = view(views.contiguous(shapes[0]), **params)
        return [(v.shape, dtypes[0]) for v in (result if isinstance(result, list) else [result])]

    return Primitive(name, infer, outputs=outputs, view=view)


_reshape = view_primitive("reshape", lambda view, *, shape: views.reshape(view, shape))
_permute = view_primitive("permute_dims", lambda view, *, axes: views.permute(view, axes))
_broadcast = view_primitive("broadcast_to", lambda view, *, shape: views.broadcast_to(view, shape))
_slice = view_primitive("slice", lambda view, *, starts, stops, steps: views.slice_view(view, starts, stops, steps))


@_reshape.gradient
def _reshape_gradient(g, *, shapes):
    return reshape(g, shapes[0])


@_permute.gradient
def _permute_gradient(g, *, axes):
    return apply(_permute, g, axes=tuple(sorted(range(len(axes)), key=axes.__getitem__)))


@_broadcast.gradient
def _broadcast_gradient(g):
    return g  # what was broadcast is summed back by the tape


@_slice.gradient
def _slice_gradient(g, *, starts, stops, steps, shapes):
    return apply(_unslice, g, shape=shapes[0], starts=starts, stops=stops, steps=steps)


def _placed_in_zeros(x, *, shape, starts, stops, steps):
    out = zeros(shape, dtype=x.dtype, device=x.device)
    apply(_copy, x, out=apply(_slice, out, starts=starts, stops=stops, steps=steps))
    return out


_unslice = Primitive(
    "unslice",
    lambda shapes, dtypes, *, shape, starts, stops, steps: [(shape, dtypes[0])],
    moves=True,
    parts=lambda view, shapes, params: [
        views.slice_view(view, params["starts"], params["stops"], params["steps"])
    ],
    composite=_placed_in_zeros,
)


@_unslice.gradient
def _unslice_gradient(g, *, starts, stops, steps):
    return apply(_slice, g, starts=starts, stops=stops, steps=steps)


def slice_axes(x: Tensor, slices: Sequence[slice]) -> Tensor:
    """x cut along each axis by a Python slice; a view."""
    indices = [s.indices(n) for s, n in zip(slices, x.shape, strict=True)]
    starts, stops, steps = (tuple(i[k] for i in indices) for k in range(3))
    return apply(_slice, x, starts=starts, stops=stops, steps=steps)


def reshape(x: Tensor, /, shape: int | Sequence[int], *more: int, copy: bool | None = None) -> Tensor:
    """The elements in row-major order under another shape, given as a tuple or as ints; one size may be -1.

    A view where the strides allow it, else a copy; with `copy` True always a copy, with False an error for one.
    """
    wanted = list(shape) if isinstance(shape, Sequence) else [shape, *more]
    if wanted.count(-1) == 1:
        rest = math.prod(n for n in wanted if n != -1)
        if rest == 0 or x.size % rest:
            raise ShapeError(f"reshape: x has shape {x.shape}, shape is {tuple(wanted)}: -1 stands for no whole number")
        wanted[wanted.index(-1)] = x.size // rest
    result = views.normalize_shape("reshape", wanted)
    if math.prod(result) != x.size:
        raise ShapeError(
            f"reshape: x has shape {x.shape} ({x.size} elements), shape is {result} ({math.prod(result)} elements): "
            "they must be equally many"
        )
    if copy is False and views.reshape(x.array.view, result) is None:
        raise ArgumentError(f"reshape: copy is False, but x's strides {x.array.strides} need one for shape {result}")
    reshaped = apply(_reshape, x, shape=result)
    if copy is True and reshaped.array.storage is x.array.storage:
        return clone(reshaped)
    return reshaped


def permute_dims(x: Tensor, /, axes: Sequence[int]) -> Tensor:
    """The axes reordered: axis i of the result is axis axes[i] of x; a view."""
    if not isinstance(axes, Sequence):
        raise TypeError(f"permute_dims: axes is {axes!r}: give a tuple of ints")
    order = tuple(views.normalize_axis("permute_dims", a, x.ndim) for a in axes)
    if sorted(order) != list(range(x.ndim)):
        raise ShapeError(f"permute_dims: axes is {tuple(axes)}, x has {x.ndim} dimensions: each axis must come once")
    return apply(_permute, x, axes=order)


def broadcast_to(x: Tensor, /, shape: int | Sequence[int]) -> Tensor:
    """x repeated to `shape`, aligned at the last axis; a view with stride 0."""
    target = views.normalize_shape("broadcast_to", shape)
    return x if target == x.shape else apply(_broadcast, x, shape=target)


def swapaxes(x: Tensor, axis1: int, axis2: int) -> Tensor:
    """Two axes exchanged; a view."""
    axes = list(range(x.ndim))
    i, j = (views.normalize_axis("swapaxes", a, x.ndim) for a in (axis1, axis2))
    axes[i], axes[j] = axes[j], axes[i]
    return permute_dims(x, axes)


def matrix_transpose(x: Tensor, /) -> Tensor:
    """The last two axes exchanged; a view. Raises ShapeError below two dimensions."""
    if x.ndim < 2:
        raise ShapeError(f"matrix_transpose: x has shape {x.shape}: it must have at least 2 dimensions")
    return swapaxes(x, -1, -2)


def expand_dims(x: Tensor, /, axis: int | Sequence[int] = 0) -> Tensor:
    """A new axis of size 1 at each position `axis` of the result; a view."""
    ndim = x.ndim + (len(axis) if isinstance(axis, Sequence) else 1)
    added = views.normalize_axes("expand_dims", axis, ndim)
    old = iter(x.shape)
    return reshape(x, tuple(1 if a in added else next(old) for a in range(ndim)))


def squeeze(x: Tensor, /, axis: int | Sequence[int]) -> Tensor:
    """The named axes, which must have size 1, removed; a view."""
    axes = views.normalize_axes("squeeze", axis, x.ndim)
    for a in axes:
        if x.shape[a] != 1:
            raise ShapeError(f"squeeze: x has shape {x.shape}, axis is {axis}: axis {a} has size {x.shape[a]}, not 1")
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def _infer_concat(shapes, dtypes, *, axis):
    first = shapes[0]
    for i, shape in enumerate(shapes):
        if len(shape) != len(first) or any(
            a != axis and n != m for a, (n, m) in enumerate(zip(shape, first, strict=True))
        ):
            raise ShapeError(
                f"concat: tensor 0 has shape {first}, tensor {i} has shape {shape}: axes but {axis} must be equal"
            )
    return [(first[:axis] + (builtins.sum(s[axis] for s in shapes),) + first[axis + 1 :], dtypes[0])]


def _common(types):
    return dtypes.result_type(*types)


def _concat_parts(view, shapes, params):
    axis = params["axis"]
    return _split_view(view, sizes=tuple(s[axis] for s in shapes), axis=axis)


def _joined(*tensors, axis):
    ((shape, dtype),) = _infer_concat([t.shape for t in tensors], [t.dtype for t in tensors], axis=axis)
    out = empty(shape, dtype=dtype, device=tensors[0].device)
    for x, part in zip(tensors, split(out, [t.shape[axis] for t in tensors], axis=axis), strict=True):
        apply(_copy, x, out=part)
    return out


_concat = Primitive(
    "concat", _infer_concat, variadic=True, promotes=_common, moves=True, parts=_concat_parts, composite=_joined
)


@_concat.gradient
def _concat_gradient(g, *, axis, shapes):
    return split(g, [s[axis] for s in shapes], axis=axis)


def require_each(operation: str, tensors: Sequence[Tensor]) -> None:
    """Raises TypeError for what is no sequence of tensors, ShapeError for an empty one."""
    if not isinstance(tensors, Sequence):
        raise TypeError(f"{operation}: tensors is {type(tensors).__name__}: give a list of tensors")
    if not tensors:
        raise ShapeError(f"{operation}: needs at least one tensor")
    for i, t in enumerate(tensors):
        if not isinstance(t, Tensor):
            require_tensors(operation, **{f"tensor {i}": t})


def concat(tensors: Sequence[Tensor], /, *, axis: int | None = 0) -> Tensor:
    """The tensors joined along an existing axis; all other axes must be equal. With None, all are flattened first."""
    require_each("concat", tensors)
    if axis is None:
        tensors, axis = [reshape(t, (-1,) if t.size else (0,)) for t in tensors], 0
    return apply(_concat, *tensors, axis=views.normalize_axis("concat", axis, tensors[0].ndim))


def stack(tensors: Sequence[Tensor], /, *, axis: int = 0) -> Tensor:
    """The tensors, all of one shape, joined along a new axis."""
    require_each("stack", tensors)
    ndim, shape = tensors[0].ndim, tensors[0].shape
    for i, t in enumerate(tensors):
        if t.array.shape != shape:
            raise ShapeError(f"stack: tensor 0 has shape {shape}, tensor {i} has shape {t.shape}: must be equal")
    axis = views.normalize_axis("stack", axis, ndim + 1)
    if axis == ndim:
        return concat([expand_dims(t, axis) for t in tensors], axis=axis)
    return reshape(concat(tensors, axis=axis), (*shape[:axis], len(tensors), *shape[axis:]))


def _split_view(view: View, *, sizes: Shape, axis: int) -> list[View]:
    parts, start = [], 0
    for n in sizes:
        shape = view.shape[:axis] + (n,) + view.shape[axis + 1 :]
        parts.append(View(shape, view.strides, view.offset + (start * view.strides[axis] if 0 not in shape else 0)))
        start += n
    return parts


_split = view_primitive("split", _split_view, outputs=("*parts",))


@_split.gradient
def _split_gradient(gs, *, sizes, axis, shapes, dtypes):
    def shape(n):
        return shapes[0][:axis] + (n,) + shapes[0][axis + 1 :]

    device = next(g.device for g in gs if g is not None)
    pieces = [
        zeros(shape(n), dtype=dtypes[0], device=device) if g is None else g for n, g in zip(sizes, gs, strict=True)
    ]
    return concat(pieces, axis=axis)


def split(x: Tensor, sizes: int | Sequence[int], *, axis: int = 0) -> tuple[Tensor, ...]:
    """x cut along an axis into views of the given sizes, or, for one int, into pieces of that size (the last smaller).

    Its gradient is one concat, where separate slices would each be added into zeros.
    """
    axis = views.normalize_axis("split", axis, x.ndim)
    n = x.shape[axis]
    if isinstance(sizes, int):
        if sizes < 1:
            raise ShapeError(f"split: sizes is {sizes}: it must be at least 1")
        sizes = [min(sizes, n - i) for i in range(0, n, sizes)] or [0]
    parts = tuple(whole_number("split", "a size", s) for s in sizes)
    if builtins.sum(parts) != n or min(parts, default=0) < 0:
        raise ShapeError(f"split: x has shape {x.shape}, axis is {axis}, sizes are {parts}: they must sum to {n}")
    return apply(_split, x, sizes=parts, axis=axis)


def moveaxis(x: Tensor, source: int | Sequence[int], destination: int | Sequence[int], /) -> Tensor:
    """The axes `source` moved to the positions `destination`, the others kept in order; a view."""
    pairs = []
    for axes in (source, destination):
        axes = (axes,) if not isinstance(axes, Sequence) else axes
        views.normalize_axes("moveaxis", axes, x.ndim)  # none twice
        pairs.append([views.normalize_axis("moveaxis", a, x.ndim) for a in axes])
    if len(pairs[0]) != len(pairs[1]):
        raise ShapeError(f"moveaxis: source is {source}, destination is {destination}: they must be equally many")
    order = [a for a in range(x.ndim) if a not in pairs[0]]
    for to, a in sorted(zip(pairs[1], pairs[0], strict=True)):
        order.insert(to, a)
    return permute_dims(x, order)


def transposed(x: Tensor) -> Tensor:
    """The matrix transposed; a view. For exactly two dimensions; see mT for stacks of matrices."""
    if x.ndim != 2:
        raise ShapeError(f"T: x has shape {x.shape}: it must have 2 dimensions; use mT or permute_dims")
    return matrix_transpose(x)
