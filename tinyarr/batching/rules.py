"""Batching rules: how a primitive that is given single examples runs for all of them at once. Floor 5.

A rule takes the call on single examples, their number, the operands, and which of them are batched: these have the
examples along a first axis more. It returns the results with that axis, or None where it doesn't apply: then the
primitive's composite is mapped, or one example is run after the other.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..ops.attention import _scaled_dot_product_attention
from ..ops.create import arange, zeros
from ..ops.elementwise import where
from ..ops.elementwise_primitive import Elementwise
from ..ops.index import _scatter, _take, _take_gradient, flat_positions
from ..ops.linear_cross_entropy import _linear_cross_entropy, _linear_cross_entropy_with_gradients
from ..ops.loss import _cross_entropy, _cross_entropy_gradient
from ..ops.matmul import _matmul, matmul
from ..ops.more.convolution import _fold, _unfold
from ..ops.more.scan import _cumulative_prod, _cumulative_sum
from ..ops.more.slices import unstack
from ..ops.more.sort import _argsort
from ..ops.primitive import Call, Primitive, apply
from ..ops.reduce import _argmax, _argmin, _max, _min, _prod, _sum
from ..ops.rowwise import Rowwise
from ..ops.scalar import topological
from ..ops.shape import (
    _concat,
    _unslice,
    broadcast_to,
    matrix_transpose,
    moveaxis,
    reshape,
    stack,
)
from ..tensor import Tensor

Operands = Sequence[Any]  # tensors and Python scalars
BatchingRule = Callable[[Call, int, Operands, Sequence[bool]], Any]



class Summable(NamedTuple):
    """Result of a rule whose sum over the examples costs less than what is summed, as gradients of weights do.

    whole: makes the result of all examples; total: their sum.
    """

    whole: Callable[[], Tensor]
    total: Callable[[], Tensor]


_rules: dict[Primitive, BatchingRule] = {}


def batching_rule(*primitives: Primitive | None) -> Callable[[BatchingRule], BatchingRule]:
    """Decorator: makes a function the batching rule of primitives."""

    def register(rule: BatchingRule) -> BatchingRule:
        _rules.update(dict.fromkeys((p for p in primitives if p is not None), rule))
        return rule

    return register


def rule_of(call: Call, is_drawn: bool) -> BatchingRule | None:
    """The rule of a call for which there is no call_of_all. is_drawn: each example draws random numbers of its own."""
    primitive = call.primitive
    if is_drawn:
        return _drawn
    return _rows if isinstance(primitive, Rowwise) else _rules.get(primitive)


@functools.lru_cache(4096)
def call_of_all(call: Call, size: int, batched: tuple[bool, ...]) -> Call | None:
    """The call on all examples at once, if it is elementwise: they broadcast along a first axis.

    None where elements depend on their positions, which that axis changes.
    """
    primitive, ndim = call.primitive, len(call.out_shapes[0])
    if not isinstance(primitive, Elementwise):
        return None
    if any(node.op in ("index", "random_bits") for node in topological(primitive.expressions(call.params))):
        return None
    shapes = tuple(
        (size, *(1,) * (ndim - len(s)), *s) if b else s for s, b in zip(call.in_shapes, batched, strict=True)
    )
    return Call(primitive, call.device, shapes, call.in_dtypes, _widened(call, size))


def one_by_one(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    """Runs one example after the other."""
    parts = [unstack(x) if b else (x,) * size for x, b in zip(operands, batched, strict=True)]
    made = [apply(call.primitive, *example, device=call.device, **call.params) for example in zip(*parts, strict=True)]
    if not made:
        return [zeros((0, *s), dtype=d, device=call.device) for s, d in zip(call.out_shapes, call.out_dtypes)]
    return [stack(same) for same in zip(*made, strict=True)] if call.primitive.returns_tuple else stack(made)


def _with_axes(x: Tensor, ndim: int) -> Tensor:
    """A batched operand (size, ...), whose examples get `ndim` axes: new ones come before their own."""
    missing = ndim - (x.ndim - 1)
    return reshape(x, (x.shape[0], *(1,) * missing, *x.shape[1:])) if missing > 0 else x


def _aligned(operands: Operands, batched: Sequence[bool], ndim: int) -> list[Any]:
    """The operands as they broadcast together along the first axis."""
    return [_with_axes(x, ndim) if b else x for x, b in zip(operands, batched, strict=True)]


def _repeated(size: int, operands: Operands, batched: Sequence[bool]) -> list[Any]:
    """The operands with what is the same for all examples repeated."""
    return [
        x if b or not isinstance(x, Tensor) else broadcast_to(x, (size, *x.shape))
        for x, b in zip(operands, batched, strict=True)
    ]


def _widened(call: Call, size: int) -> dict[str, Any]:
    """The parameters, of which `shape` is that of all examples."""
    return call.params | ({"shape": (size, *call.params["shape"])} if "shape" in call.params else {})


def _drawn(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    are_tensors = [isinstance(x, Tensor) for x in operands]
    given = _aligned(_repeated(size, operands, batched), are_tensors, len(call.out_shapes[0]))
    return apply(call.primitive, *given, device=call.device, **_widened(call, size))


def _rows(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    primitive = call.primitive
    assert isinstance(primitive, Rowwise)
    if any(e.op == "column_sum" for e in primitive.expressions(call.params)):
        return None  # it would go over the rows of all examples
    ndim = len(primitive.shape(call.in_shapes, call.params))
    return apply(primitive, *_aligned(operands, batched, ndim), **_widened(call, size))


@batching_rule(
    _sum, _prod, _max, _min, _argmax, _argmin, _argsort, _cumulative_sum, _cumulative_prod, _concat
)  # fmt: skip
def _along_axis(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    axis = call.params["axis"]
    moved = axis + 1 if isinstance(axis, int) else tuple(a + 1 for a in axis)
    return apply(call.primitive, *_repeated(size, operands, batched), **(call.params | {"axis": moved}))


@batching_rule(_unslice)
def _placed(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    first = {"shape": size, "starts": 0, "stops": size, "steps": 1}
    params: dict[str, Any] = {name: (n, *call.params[name]) for name, n in first.items()}
    return apply(_unslice, *operands, **params)


@batching_rule(_matmul)
def _products(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    """A matrix that is the same for all examples is multiplied once, with the rows (or columns) of all of them."""
    x, y = operands
    if not batched[0] and x.ndim == 2:
        return matrix_transpose(matmul(matrix_transpose(y), matrix_transpose(x)))
    if not batched[1] and y.ndim == 2:
        return matmul(x, y)
    if not all(batched) or x.ndim != 3 or y.ndim != 3:
        return matmul(*_aligned(operands, batched, len(call.out_shapes[0])))

    def total() -> Tensor:
        rows, columns = (reshape(t, (size * t.shape[1], t.shape[2])) for t in (matrix_transpose(x), y))
        return matmul(matrix_transpose(rows), columns)

    # A product of a column and a row has nothing to add up, and a BLAS is slow at it.
    return Summable(lambda: x * y if x.shape[-1] == 1 else matmul(x, y), total)


@batching_rule(
    _cross_entropy, _cross_entropy_gradient, _scaled_dot_product_attention,
    _scaled_dot_product_attention.derived_gradient, _linear_cross_entropy, _linear_cross_entropy_with_gradients,
)  # fmt: skip
def _merged(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    """The first axis is one of independent problems already, so those of all examples are put behind each other."""
    given = [
        reshape(x, (size * x.shape[1], *x.shape[2:])) if isinstance(x, Tensor) else x
        for x in _repeated(size, operands, batched)
    ]
    made = apply(call.primitive, *given, **call.params)
    parted = [reshape(x, (size, *s)) for x, s in zip(made if isinstance(made, tuple) else (made,), call.out_shapes)]
    return parted if call.primitive.returns_tuple else parted[0]


@batching_rule(_unfold)
def _unfolded(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    """Of x (B, C, ...) the columns are (C, *kernel, B, *positions)."""
    (x,), at = operands, 1 + len(call.params["kernel"])
    columns = apply(_unfold, reshape(x, (size * x.shape[1], *x.shape[2:])), **call.params)
    return moveaxis(reshape(columns, (*columns.shape[:at], size, x.shape[1], *columns.shape[at + 1 :])), at, 0)


@batching_rule(_fold)
def _folded(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    (columns,), at = operands, 1 + len(call.params["sizes"])
    shape, columns = call.in_shapes[0], moveaxis(columns, 0, at)
    made = apply(_fold, reshape(columns, (*shape[:at], size * shape[at], *shape[at + 1 :])), **call.params)
    return reshape(made, (size, *call.out_shapes[0]))


def _positions(indices: Tensor, size: int, count: int, wrap: bool) -> Tensor:
    """Of indices (size, ...) into each example's `count` rows those into the rows of all; outside for one outside."""
    indices = indices if wrap else where(indices < 0, count, indices)
    example = reshape(arange(size, device=indices.device), (size, *(1,) * (indices.ndim - 1)))
    return flat_positions((size, count), [example, indices])


@batching_rule(_take)
def _taken(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    (x, indices), axis, wrap = operands, call.params["axis"], call.params["wrap"]
    if not batched[1]:
        return apply(_take, x, indices, axis=axis + 1, wrap=wrap)
    if not batched[0]:
        return moveaxis(apply(_take, x, indices, axis=axis, wrap=wrap), axis, 0)
    rows = moveaxis(x, axis + 1, 1)
    count, rest = rows.shape[1], rows.shape[2:]
    at = _positions(indices, size, count, wrap)
    found = apply(_take, reshape(rows, (size * count, *rest)), at, axis=0, wrap=False)
    return _axes_moved(found, 1, indices.ndim - 1, axis + 1)


@batching_rule(_take_gradient)
def _taken_back(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    axis, count, wrap = (call.params[name] for name in ("axis", "size", "wrap"))
    if not batched[1]:
        return apply(_take_gradient, *operands, axis=axis + 1, size=count, wrap=wrap)
    g, indices = _repeated(size, operands, batched)
    g = _axes_moved(g, axis + 1, indices.ndim - 1, 1)

    def whole() -> Tensor:
        at = _positions(indices, size, count, wrap)
        rows = apply(_take_gradient, g, at, axis=0, size=size * count, wrap=False)
        return moveaxis(reshape(rows, (size, count, *rows.shape[1:])), 1, axis + 1)

    return Summable(
        whole, lambda: moveaxis(apply(_take_gradient, g, indices, axis=0, size=count, wrap=wrap), 0, axis)
    )


def _axes_moved(x: Tensor, start: int, count: int, to: int) -> Tensor:
    """x with `count` axes from `start` on moved to begin at `to`."""
    return moveaxis(x, tuple(range(start, start + count)), tuple(range(to, to + count)))


@batching_rule(_scatter)
def _scattered(call: Call, size: int, operands: Operands, batched: Sequence[bool]) -> Any:
    x, indices, values = _repeated(size, operands, batched)
    n, m = x.shape[1], indices.shape[1]
    at = reshape(_positions(indices, size, n, False), (size * m,))
    return reshape(apply(_scatter, reshape(x, (size * n,)), at, reshape(values, (size * m,))), (size, n))
