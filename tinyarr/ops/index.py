"""Indexing: x[...] with ints, slices, None and Ellipsis (views), rows by integer tensors (take), writes x[...] = y."""

from __future__ import annotations

import operator
from typing import Any

from .. import dtypes, views
from ..errors import DtypeError, OutOfBounds, ShapeError
from ..tensor import Tensor, method, require_tensors
from .create import assign
from .primitive import Primitive, apply
from .shape import reshape, slice_axes


def _infer_take(shapes, types, *, axis, wrap):
    x, indices = shapes
    return [(x[:axis] + indices + x[axis + 1 :], types[0])]


_take = Primitive("take", _infer_take, inputs=("x", "indices"))
_take_gradient = Primitive(
    "take_gradient",
    lambda shapes, types, *, axis, size, wrap: [
        (shapes[0][:axis] + (size,) + shapes[0][axis + len(shapes[1]) :], types[0]),
    ],
    inputs=("g", "indices"),
)


@_take.gradient
def _take_backward(g, indices, *, axis, wrap, shapes):
    return apply(_take_gradient, g, indices, axis=axis, size=shapes[0][axis], wrap=wrap), None


@_take_gradient.gradient
def _take_gradient_backward(g, indices, *, axis, wrap):
    return apply(_take, g, indices, axis=axis, wrap=wrap), None


@method()
def take(x: Tensor, indices: Tensor, /, *, axis: int | None = None) -> Tensor:
    """The elements of x at integer `indices` (any shape) along an axis, which the indices' axes replace.

    Negative indices count from the end. In the gradient, repeated indices add up, in the order in which they stand.
    Raises OutOfBounds for an index outside the axis.
    """
    require_tensors("take", x=x, indices=indices)
    _require_integers("take", "indices", indices)
    if axis is None:
        x, axis = reshape(x, (x.size,)), 0
    return apply(_take, x, indices, axis=views.normalize_axis("take", axis, x.ndim), wrap=True)


@method()
def embedding(weight: Tensor, tokens: Tensor) -> Tensor:
    """Rows of `weight` (V, C) by token number: tokens (...) of integers in [0, V) give (..., C).

    Raises OutOfBounds for any other token, negative ones included.
    """
    require_tensors("embedding", weight=weight, tokens=tokens)
    _require_integers("embedding", "tokens", tokens)
    if weight.ndim == 0:
        raise ShapeError("embedding: weight is 0-d: it must have rows, (V, C)")
    return apply(_take, weight, tokens, axis=0, wrap=False)


def _require_integers(operation: str, name: str, x: Tensor) -> None:
    if x.dtype.kind not in ("signed", "unsigned"):
        raise DtypeError(f"{operation}: {name} has dtype {x.dtype.name}: it must be an integer dtype")


def _whole_number(index: Any) -> int:
    try:
        if isinstance(index, bool):
            raise TypeError
        return operator.index(index)
    except TypeError:
        came = f"{index!r} ({type(index).__name__})"
        raise DtypeError(
            f"index: {came} is no index: use ints, slices, None, ... or an integer tensor; for masks, where"
        ) from None


def _basic(x: Tensor, key: tuple) -> Tensor:
    """A view of x by ints, slices, None and Ellipsis."""
    ellipses = [i for i, k in enumerate(key) if k is Ellipsis]
    if len(ellipses) > 1:
        raise OutOfBounds(f"index: {key} holds more than one Ellipsis")
    named = sum(k is not None and k is not Ellipsis for k in key)
    if named > x.ndim:
        raise OutOfBounds(f"index: {named} indices came for a tensor of shape {x.shape}: it has {x.ndim} dimensions")
    at = ellipses[0] if ellipses else len(key)
    key = key[:at] + (slice(None),) * (x.ndim - named) + key[at + 1 :]
    slices, dropped, added, axis = [], set(), [], 0
    for k in key:
        if k is None:
            added.append(axis)
            continue
        n = x.shape[axis]
        if isinstance(k, slice):
            slices.append(k)
        else:
            i = _whole_number(k)
            if not -n <= i < n:
                raise OutOfBounds(f"index: {i} is outside axis {axis} of size {n}: use {-n} to {n - 1}")
            slices.append(slice(i % n, i % n + 1))
            dropped.add(axis)
        axis += 1
    result = slice_axes(x, slices)
    shape: list[int] = []
    for a in range(x.ndim + 1):
        shape += [1] * added.count(a)
        if a < x.ndim and a not in dropped:
            shape.append(result.shape[a])
    return result if tuple(shape) == result.shape else reshape(result, shape)


def _as_key(key: Any) -> tuple:
    return key if isinstance(key, tuple) else (key,)


def _getitem(x: Tensor, key: Any) -> Tensor:
    """x[key]: ints, slices, None and Ellipsis give views; one integer tensor picks along its axis (take)."""
    parts = _as_key(key)
    tensors = [i for i, k in enumerate(parts) if isinstance(k, Tensor) and k.ndim > 0]
    if not tensors:
        return _basic(x, parts)
    if len(tensors) > 1 or parts[tensors[0]].dtype is dtypes.bool:
        raise DtypeError("index: one integer tensor is taken in a key; use take for others, where for masks")
    (at,) = tensors
    if any(k is None or k is Ellipsis for k in parts[:at]):
        raise DtypeError("index: an integer tensor can't stand behind None or Ellipsis: use take(x, indices, axis=...)")
    kept = _basic(x, (*parts[:at], slice(None), *parts[at + 1 :]))
    axis = sum(isinstance(k, slice) for k in parts[:at])
    return take(kept, parts[at], axis=axis)


def _setitem(x: Tensor, key: Any, value: Any) -> None:
    """x[key] = value for ints, slices, None and Ellipsis: writes into x's memory (see assign)."""
    if any(isinstance(k, Tensor) and k.ndim > 0 for k in _as_key(key)):
        raise DtypeError("index: writing at integer tensors or masks is not supported: use where to build a new tensor")
    assign(_basic(x, _as_key(key)), value)


def _iterate(x: Tensor):
    return (x[i] for i in range(len(x)))


Tensor.__getitem__ = _getitem
Tensor.__setitem__ = _setitem
Tensor.__iter__ = _iterate
