"""Collectives: what the ranks of a group compute together, each bringing a tensor of its own. Floor 2.

The function that is differentiated is the sum over the ranks of what each returns. So the gradient of a sum that all
get is the sum of their gradients: no factor of the number of ranks appears anywhere.

A program may begin a collective and compute other things meanwhile: then it has a ticket, and `wait` of that ticket
gives what it made.
"""

from __future__ import annotations

import operator
from typing import Any

from .. import dtypes, eager
from ..dtypes import Dtype
from ..errors import ArgumentError, DtypeError, GradientError, ShapeError
from ..groups import Group, world
from ..tensor import Tensor, require_tensors
from ..views import Shape, is_contiguous
from .create import copy
from .primitive import Primitive, apply, executor

OPERATIONS = ("sum", "mean", "max", "min")


class Collective(Primitive):
    """A primitive that all ranks of the parameter `group` run together."""


def _same(shapes, types, *, group, ticket=None, **params):
    return [(shapes[0], types[0])]


def _scattered(shapes, types, *, group, ticket=None, **params):
    return [((shapes[0][0] // group.size, *shapes[0][1:]), types[0])]


def _gathered(shapes, types, *, group, ticket=None):
    return [((shapes[0][0] * group.size, *shapes[0][1:]), types[0])]


_all_reduce = Collective("all_reduce", _same, overwrites=0)
_reduce = Collective("reduce", _same)
_broadcast = Collective("broadcast", _same)
_reduce_scatter = Collective("reduce_scatter", _scattered)
_all_gather = Collective("all_gather", _gathered)

# What the ranks have made together, once it is there: the place of the elements does not change.
wait = Primitive("wait", lambda shapes, types, *, ticket: [(shapes[0], types[0])], derived=True)
wait.no_gradient()


@_all_reduce.gradient
def _all_reduce_gradient(g, *, group, op):
    if op not in ("sum", "mean"):
        raise GradientError(f"all_reduce: op {op!r} has no gradient: use 'sum' or 'mean', or detach() the operand")
    return all_reduce(g, op, group=group)


@_reduce.gradient
def _reduce_gradient(g, *, group, root):
    return broadcast(g, root, group=group)


@_broadcast.gradient
def _broadcast_gradient(g, *, group, root):
    return reduce(g, root, group=group)


@_reduce_scatter.gradient
def _reduce_scatter_gradient(g, *, group, op):
    gathered = all_gather(g, group=group)
    return gathered / group.size if op == "mean" else gathered


@_all_gather.gradient
def _all_gather_gradient(g, *, group):
    return reduce_scatter(g, group=group)


def all_reduce(x: Tensor, op: str = "sum", *, group: Group | None = None) -> Tensor:
    """On every rank the sum (or mean, max, min) of all ranks' x, element by element.

    x: the same shape and dtype on all ranks of the group, by default all there are. Integers have no mean, bool only
    max and min. Half types add up in float32 over MPI; over NCCL each addition may round to them. Raises DtypeError or
    ArgumentError for these, ArgumentError on all ranks where they call different collectives, RankError where a rank is
    lost.
    """
    group = _checked("all_reduce", x, group)
    _check_operation("all_reduce", x, op, OPERATIONS)
    return _together(_all_reduce, x, group, op=op)


def reduce_scatter(x: Tensor, op: str = "sum", *, group: Group | None = None) -> Tensor:
    """Of n ranks rank r gets the r-th of n equal parts, along the first axis, of the sum (or mean) of all ranks' x.

    x: (n k, ...) on all ranks; the result is (k, ...). Errors as all_reduce, and ShapeError where n does not divide.
    """
    group = _checked("reduce_scatter", x, group)
    _check_operation("reduce_scatter", x, op, OPERATIONS[:2])
    if x.ndim == 0 or x.shape[0] % group.size:
        raise ShapeError(f"reduce_scatter: x has shape {x.shape}: {group.size} ranks must divide its first axis evenly")
    return _together(_reduce_scatter, x, group, op=op)


def all_gather(x: Tensor, *, group: Group | None = None) -> Tensor:
    """On every rank all ranks' x, joined along the first axis by rank: (k, ...) on each of n gives (n k, ...)."""
    group = _checked("all_gather", x, group)
    if x.ndim == 0:
        raise ShapeError("all_gather: x is 0-d: give it an axis along which to join, with x.reshape((1,))")
    return _together(_all_gather, x, group)


def broadcast(x: Tensor, root: int = 0, *, group: Group | None = None) -> Tensor:
    """On every rank the x of rank `root`; the others bring tensors of the same shape and dtype."""
    group = _checked("broadcast", x, group)
    return _together(_broadcast, x, group, root=_root("broadcast", root, group))


def reduce(x: Tensor, root: int = 0, *, group: Group | None = None) -> Tensor:
    """On rank `root` the sum of all ranks' x, on the others zeros."""
    group = _checked("reduce", x, group)
    _check_operation("reduce", x, "sum", OPERATIONS[:1])
    return _together(_reduce, x, group, root=_root("reduce", root, group))


def _together(collective: Collective, x: Tensor, group: Group, **params: Any) -> Tensor:
    """Runs a collective once all ranks have said that they run the same; a program compares all of its own at once."""
    if executor.get() is eager and x.device.kind != "meta":
        group.agree(collective.name, describe(collective, x.shape, x.dtype, group=group, **params))
    return apply(collective, x if is_contiguous(x.array.view) else copy(x), group=group, **params)


def describe(collective: Primitive, shape: Shape, dtype: Dtype, *, ticket: int | None = None, **params: Any) -> str:
    """A call in words, the same on all ranks that take part in it: without its ticket, which each counts alone."""
    given = [f"{dtype.name}{list(shape)}", *(f"{name}={value}" for name, value in sorted(params.items()))]
    return f"{collective.name}({', '.join(given)})"


def _checked(operation: str, x: Any, group: Any) -> Group:
    require_tensors(operation, x=x)
    if group is not None and not isinstance(group, Group):
        raise TypeError(f"{operation}: group is {type(group).__name__}: give a Group, or None for all ranks")
    return group or world()


def _check_operation(operation: str, x: Tensor, op: str, known: tuple[str, ...]) -> None:
    if op not in known:
        raise ArgumentError(f"{operation}: op is {op!r}: it must be one of {', '.join(known)}")
    if x.dtype is dtypes.bool and op in ("sum", "mean"):
        raise DtypeError(f"{operation}: op is {op!r}, x is bool: use max or min, or astype")
    if op == "mean" and not x.dtype.is_float:
        raise DtypeError(f"{operation}: op is 'mean', x is {x.dtype.name}: use 'sum', or astype")


def _root(operation: str, root: int, group: Group) -> int:
    try:
        number = operator.index(root)
    except TypeError:
        raise TypeError(f"{operation}: root is {type(root).__name__}: give the number of a rank") from None
    if not 0 <= number < group.size:
        raise ArgumentError(f"{operation}: root is {root}: the group has ranks 0 to {group.size - 1}")
    return number
