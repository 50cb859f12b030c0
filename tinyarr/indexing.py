"""x[key] and x[key] = value, as in NumPy: slices, ints, None and ... give views, tensors and masks copies. Floor 5."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from . import dtypes, eager, views
from .errors import DtypeError, MaskError, OutOfBounds
from .interchange import asarray
from .ops.assign import assign
from .ops.create import arange, full
from .ops.elementwise import astype, where
from .ops.index import flat_positions, require_integers, scatter, take
from .ops.more.slice_at import Span, in_trace, moves, slice_at, span_of, with_spans
from .ops.more.slices import unstack
from .ops.more.sort import nonzero
from .ops.primitive import apply, executor
from .ops.shape import _unslice, broadcast_to, permute_dims, reshape, view_primitive
from .tensor import Tensor
from .views import View

_BASIC = {int, slice, type(None), type(...)}


def _whole_number(index: Any) -> int:
    try:
        if isinstance(index, bool):
            raise TypeError
        return operator.index(index)
    except TypeError:
        came = f"{index!r} ({type(index).__name__})"
        raise DtypeError(
            f"index: {came} is no index: use ints, slices, None, ..., integer tensors or masks"
        ) from None


def _index_view(view: View, *, cuts: tuple) -> View:
    """The view by a key; cuts: (start, stop, step) or an int for each axis but the last ones, None for a new axis.

    >>> from tinyarr.indexing import _index_view
    >>> from tinyarr.views import View
    >>> _index_view(View((4, 5), (5, 1)), cuts=(None, 2, (1, 5, 2)))
    View(shape=(1, 2), strides=(1, 2), offset=11)
    """
    shape: list[int] = []
    strides: list[int] = []
    offset, axis = view.offset, 0
    for cut in cuts:
        if cut is None:
            shape.append(1)
            strides.append(1)
            continue
        stride = view.strides[axis]
        if type(cut) is int:
            offset += cut * stride
        else:
            start, stop, step = cut
            shape.append(len(range(start, stop, step)))
            strides.append(stride * step if shape[-1] > 1 else stride)  # as slice_view does
            offset += start * stride
        axis += 1
    whole = (*shape, *view.shape[axis:])
    return View(whole, (*strides, *view.strides[axis:]), view.offset if 0 in whole else offset)


_index = view_primitive("index", _index_view)


@_index.gradient
def _index_gradient(g, *, cuts, shapes):
    spans = [(cut, cut + 1, 1) if type(cut) is int else cut for cut in cuts if cut is not None]
    spans += [(0, n, 1) for n in shapes[0][len(spans) :]]
    starts, stops, steps = (tuple(span[i] for span in spans) for i in range(3))
    cut = views.slice_view(views.contiguous(shapes[0]), starts, stops, steps)
    return apply(_unslice, reshape(g, cut.shape), shape=shapes[0], starts=starts, stops=stops, steps=steps)


def _basic(x: Tensor, key: tuple) -> Tensor:
    """A view of x by ints, slices, None and Ellipsis."""
    shape = x.array.shape
    cuts: list[Any] = []
    axis, has_ellipsis = 0, False
    for k in key:
        if k is None:
            cuts.append(None)
            continue
        if k is Ellipsis:
            if has_ellipsis:
                raise OutOfBounds(f"index: {key} holds more than one Ellipsis")
            has_ellipsis = True
            hidden = shape[axis : len(shape) - _named(key) + axis]
            cuts += [(0, n, 1) for n in hidden]
            axis += len(hidden)
            continue
        if axis == len(shape):
            raise _too_many(_named(key), shape)
        n = shape[axis]
        if isinstance(k, slice):
            cuts.append(k.indices(n))
        else:
            i = k if type(k) is int else _whole_number(k)
            if not -n <= i < n:
                raise OutOfBounds(f"index: {i} is outside axis {axis} of size {n}: use {-n} to {n - 1}")
            cuts.append(i % n)
        axis += 1
    return apply(_index, x, cuts=tuple(cuts))


def _named(key: tuple) -> int:
    """Returns how many axes a key names."""
    return sum(k is not None and k is not Ellipsis for k in key)


def _too_many(named: int, shape: tuple[int, ...]) -> OutOfBounds:
    return OutOfBounds(f"index: {named} indices came for a tensor of shape {shape}: it has {len(shape)} dimensions")


def _parts(x: Tensor, key: Any) -> list[Any]:
    """The key as a list, lists and arrays made tensors, masks replaced by the positions where they are true."""
    given = [_converted(x, k) for k in (key if isinstance(key, tuple) else (key,))]
    widths = [k.ndim if _is_mask(k) else int(k is not None and k is not Ellipsis) for k in given]
    hidden = x.ndim - sum(widths)  # axes that ... stands for
    if hidden < 0 and len(given) > 1:  # a mask alone that has too many axes does not fit
        raise _too_many(sum(widths), x.shape)
    parts: list[Any] = []
    axis = 0
    for k, width in zip(given, widths, strict=True):
        if _is_mask(k):
            sizes = x.shape[axis : axis + width]
            if len(sizes) < width or any(m not in (0, n) for n, m in zip(sizes, k.shape, strict=True)):
                raise MaskError(
                    f"index: x has shape {x.shape}, a mask has shape {k.shape}: it must match x from axis {axis} on"
                )
            parts += nonzero(k)
        else:
            parts.append(k)
        axis += hidden if k is Ellipsis else width
    return parts


def _converted(x: Tensor, k: Any) -> Any:
    """A part of a key with lists and arrays made tensors; 0-d tensors become ints where their element can be read."""
    if isinstance(k, list | range) or (hasattr(k, "__array__") and not isinstance(k, Tensor | int)):
        k = asarray(k, device=x.device)
        k = astype(k, dtypes.int64) if not k.size and k.dtype.is_float else k  # an empty list
    if isinstance(k, bool) or (_is_mask(k) and not k.ndim):
        raise DtypeError("index: a single bool came among other indices: it may only stand alone, as in x[True]")
    if not isinstance(k, Tensor) or k.dtype is dtypes.bool:
        return k
    require_integers("index", "a tensor in the key", k)
    return k if k.ndim or executor.get() is not eager else _whole_number(k)


def _is_mask(k: Any) -> bool:
    return isinstance(k, Tensor) and k.dtype is dtypes.bool


def _is_tensor(k: Any) -> bool:
    return isinstance(k, Tensor)


def _gathered(x: Tensor, parts: list[Any]) -> Tensor:
    """x[...] where tensors stand in the key; ints among them count as tensors, so they broadcast together.

    The axes of the broadcast tensors take the place of the first of them, or in front where the key parts them.
    """
    cut = x if all(map(_picks, parts)) else _basic(x, tuple(slice(None) if _picks(k) else k for k in parts))
    hidden = x.ndim - sum(k is not None and k is not Ellipsis for k in parts)  # axes that ... stands for
    axes, places, axis = [], [], 0
    for place, k in enumerate(parts):
        if _picks(k):
            axes.append(axis)
            places.append(place)
        axis += hidden if k is Ellipsis else 1
    keys = [
        parts[place] if _is_tensor(parts[place]) else asarray(_checked(cut, a, parts[place]), device=x.device)
        for a, place in zip(axes, places, strict=True)
    ]
    shape = views.broadcast_shapes("index", *(k.shape for k in keys))
    others = [a for a in range(cut.ndim) if a not in axes]
    moved = permute_dims(cut, (*axes, *others))
    inner, rest = moved.shape[: len(axes)], moved.shape[len(axes) :]
    positions = keys[0] if len(keys) == 1 else flat_positions(inner, keys)
    found = take(reshape(moved, (views.size(inner), *rest)), broadcast_to(positions, shape), axis=0)
    if places[-1] - places[0] >= len(places):
        return found
    first, ndim = axes[0], len(shape)
    order = list(range(ndim, found.ndim))
    return permute_dims(found, (*order[:first], *range(ndim), *order[first:]))


def _picks(k: Any) -> bool:
    """Returns whether a part of a key picks positions along an axis: a tensor, or, beside one, an int."""
    return _is_tensor(k) or not (k is None or k is Ellipsis or isinstance(k, slice))


def _checked(x: Tensor, axis: int, k: Any) -> int:
    i, n = _whole_number(k), x.shape[axis]
    if not -n <= i < n:
        raise OutOfBounds(f"index: {i} is outside axis {axis} of size {n}: use {-n} to {n - 1}")
    return i % n


def _moving(x: Tensor, parts: list[Any]) -> tuple[Tensor, list[Span], list[Any]]:
    """Returns a view of x, spans along its axes for all of a key that is data, and what is left of the key.

    Example: of x[2, i : i + 8, j] the view x[2:3], the spans i to i + 8 along axis 1 and j to j + 1 along axis 2, and
    the key [0, :, 0].
    """
    _basic(x, tuple(k if k is None or k is Ellipsis else slice(None) for k in parts))  # raises for one too long
    hidden = x.ndim - sum(k is not None and k is not Ellipsis for k in parts)
    cuts: list[Any] = []
    spans, rest, axis = [], list(parts), 0
    for place, k in enumerate(parts):
        if k is None or k is Ellipsis:
            cuts += [k] if k is Ellipsis else []
            axis += hidden if k is Ellipsis else 0
            continue
        span = span_of(x, axis, k)
        if span is not None:
            spans.append(span)
        if not _is_tensor(k) or not k.ndim:
            rest[place] = slice(None) if isinstance(k, slice) else 0
        if span is not None or _is_tensor(k):
            cuts.append(slice(None))
        elif isinstance(k, slice):
            cuts.append(k)
        else:
            i = _checked(x, axis, k)
            cuts.append(slice(i, i + 1))
        axis += 1
    return _basic(x, tuple(cuts)), spans, rest


def getitem(x: Tensor, key: Any) -> Tensor:
    """x[key]: ints, slices, None and Ellipsis give a view, integer tensors and masks a copy."""
    given = key if type(key) is tuple else (key,)
    if executor.get() is eager and _BASIC.issuperset(map(type, given)):
        return _basic(x, given)
    if _is_lone_bool(key):
        return _basic(x, (None, ...))[: int(key)]
    parts = _parts(x, key)
    if in_trace() and any(map(moves, parts)):
        view, spans, rest = _moving(x, parts)
        if spans:
            return _through(view, spans, rest)
    if len(parts) == 1 and _is_tensor(parts[0]) and x.ndim:
        return take(x, parts[0], axis=0)
    return _gathered(x, parts) if any(map(_is_tensor, parts)) else _basic(x, tuple(parts))


def _through(view: Tensor, spans: Sequence[Span], rest: list[Any]) -> Tensor:
    """The elements in spans; in eager mode they are a view of the same memory, and so nothing may write into either."""
    found = slice_at(view, spans)
    if any(map(_is_tensor, rest)):
        return _gathered(found, rest)
    executor.get().trace.shows(found.array, view.array)
    return _basic(found, tuple(rest))


def setitem(x: Tensor, key: Any, value: Any) -> None:
    """x[key] = value: writes into x's memory (see assign). Where positions repeat the last value stays."""
    given = key if type(key) is tuple else (key,)
    if executor.get() is eager and _BASIC.issuperset(map(type, given)):
        _assign(_basic(x, given), value)
        return
    if dtypes.scalar_kind(dtypes.python_scalar(value)) is not None:
        value = full((), value, dtype=x.dtype, device=x.device)
    if _is_lone_bool(key):
        _assign(getitem(x, key), value)
        return
    key = tuple(_converted(x, k) for k in (key if isinstance(key, tuple) else (key,)))
    if _set_where(x, key, value):
        return
    parts = _parts(x, key)
    is_data = in_trace() and any(map(moves, parts))
    if not is_data and not any(map(_is_tensor, parts)):
        _assign(_basic(x, tuple(parts)), value)
        return
    if not isinstance(value, Tensor):
        value = asarray(value, dtype=x.dtype, device=x.device)
    if is_data and _set_spans(*_moving(x, parts), value):
        return
    positions = getitem(reshape(arange(x.size, device=x.device), x.shape), tuple(parts))
    values = broadcast_to(astype(_fitted(value, positions.ndim), x.dtype, copy=False), positions.shape)
    written = scatter(reshape(x, (x.size,)), reshape(positions, (positions.size,)), reshape(values, (values.size,)))
    assign(x, reshape(written, x.shape))


def _set_spans(view: Tensor, spans: Sequence[Span], rest: list[Any], value: Tensor) -> bool:
    """x[rest] = value in spans of a view of x, if no tensor of positions is left in the key. Returns whether it is."""
    if any(map(_is_tensor, rest)):
        return False
    if not spans:
        _assign(_basic(view, tuple(rest)), value)
        return True
    if value.ndim:
        sizes = list(view.shape)
        for axis, _, size in spans:
            sizes[axis] = size
        like = _basic(broadcast_to(full((), 0, device=view.device), sizes), tuple(rest))
        value = reshape(broadcast_to(_fitted(value, like.ndim), like.shape), sizes)
    assign(view, with_spans(view, spans, value))
    return True


def _set_where(x: Tensor, key: tuple, value: Any) -> bool:
    """x[key] = value for a key with one mask, by where: how many it hits, a trace does not know.

    Returns whether the rest of the key are slices or ints, and the value is one for all that are hit.
    """
    places = [i for i, k in enumerate(key) if _is_mask(k)]
    named = sum(k.ndim if _is_mask(k) else k is not None and k is not Ellipsis for k in key)
    if len(places) != 1 or named > x.ndim or not isinstance(value, Tensor):
        return False
    before, mask, behind = key[: places[0]], key[places[0]], key[places[0] + 1 :]
    others = [k for k in (*before, *behind) if k is not None and k is not Ellipsis and not isinstance(k, slice)]
    if any(map(_is_tensor, others)) or any(map(moves, key)):
        return False
    view = _basic(x, (*before, *(slice(None),) * mask.ndim, *behind))
    first, last = (sum(k is None or isinstance(k, slice) for k in parts) for parts in (before, behind))
    if any(k is Ellipsis for k in before):
        first = view.ndim - mask.ndim - last
    last = view.ndim - mask.ndim - first
    value = _fitted(value, first + 1 + last)
    if value.ndim > last:  # it has an axis for those that are hit, which ints in the key may have moved to the front
        if value.shape[-last - 1] != 1 or others:
            return False
        at = value.ndim - last
        value = reshape(value, (*value.shape[:at], *(1,) * (mask.ndim - 1), *value.shape[at:]))
    if mask.shape != view.shape[first : first + mask.ndim]:
        return False
    hit = reshape(mask, (*mask.shape, *(1,) * last))
    assign(view, where(hit, astype(value, x.dtype, copy=False), view))
    return True


def _assign(x: Tensor, value: Any) -> None:
    assign(x, _fitted(value, x.ndim) if isinstance(value, Tensor) else value)


def _fitted(value: Tensor, ndim: int) -> Tensor:
    """A value without axes of size 1 in front that are more than `ndim`, as NumPy allows them: (1, 3) for x[0] of 3."""
    more = max(value.ndim - ndim, 0)
    return reshape(value, value.shape[more:]) if more and set(value.shape[:more]) == {1} else value


def _is_lone_bool(key: Any) -> bool:
    return isinstance(dtypes.python_scalar(key), bool) or (_is_mask(key) and not key.ndim)


def iterate(x: Tensor):
    if not x.ndim:
        raise TypeError("iteration: a 0-d tensor has no elements to walk over: use item()")
    return iter(unstack(x))
