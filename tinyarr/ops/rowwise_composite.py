"""A row expression as a composition of other operations: oracle, and what runs where a backend has no kernel. Floor 2.

It is cut at its folds: what goes into one is an elementwise operation, the fold a reduction over the last axis. So
`x / row.sum(x * x)` is x * x, its sum, and the quotient, each of all rows at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from .. import dtypes, eager
from ..tensor import Tensor
from ..views import Shape
from . import reduce
from .create import full
from .elementwise import astype
from .elementwise_primitive import Elementwise
from .primitive import apply, executor
from .rowwise import Rowwise
from .scalar import Expr, cast, is_fold, operation_of, substitute, topological, variable, weak

# Operations of more than a few instructions: computed once for all that need them.
COSTLY = {
    "exp", "expm1", "log", "log1p", "log2", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh",
    "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "power", "hypot", "random_bits",
}  # fmt: skip


def composed(primitive: Any, operands: Sequence[Any], params: dict[str, Any]) -> Any:
    """The results of a row expression, computed in the dtypes in which its operands are, and rounded at the end."""
    shapes = tuple(x.shape if isinstance(x, Tensor) else () for x in operands)
    wide = [astype(x, x.dtype.compute, copy=False) if isinstance(x, Tensor) else x for x in operands]
    composition = _Composition(primitive, wide, primitive.shape(shapes, params), shapes, params)
    dtypes = tuple(x.dtype if isinstance(x, Tensor) else _kind(x) for x in operands)
    results = []
    for e, (_, dtype) in zip(composition.outputs, primitive.infer(shapes, dtypes, **params), strict=True):
        results.append(astype(composition.value(e), dtype, copy=False))
    return tuple(results) if primitive.returns_tuple else results[0]


def _kind(x: Any) -> str:
    return {bool: "bool", int: "signed", float: "float"}[type(x)]


class _Composition:
    def __init__(self, primitive: Any, operands: Sequence[Any], shape: Shape, shapes: Sequence[Shape], params):
        self.outputs = primitive.sized(shapes, params)
        self._name = primitive.name
        self._pieces: dict = primitive.__dict__.setdefault("pieces", {})
        self._operands, self._shape = operands, shape
        self._varies = primitive.variation(shapes, params)
        self._known: dict[Expr, Any] = {}
        self._taken: dict[Expr, bool | None] = {}  # conditions that are the same for all rows, None for others
        kinds = {x.dtype for x in operands if isinstance(x, Tensor) and x.dtype.is_float}
        self._dtype = kinds.pop() if len(kinds) == 1 else None
        self._device = next(x.device for x in operands if isinstance(x, Tensor))
        self._looks = executor.get() is eager and self._device.kind == "cpu"  # where a look at values costs nothing

    def value(self, e: Expr) -> Tensor:
        if e not in self._known:
            self._known[e] = self._fold(e) if is_fold(e) else self._branch(e) if self._is_branch(e) else self._map(e)
        return self._known[e]

    def _fold(self, e: Expr) -> Tensor:
        (inner,) = e.args
        rows = tuple(range(len(self._shape) - 1))
        if e.op == "column_sum":
            along = self._shape[-1:] if self._varies(inner) else (1,)
            return reduce.sum(self._map(inner, (*self._shape[:-1], *along)), axis=rows)
        x = self._map(inner, self._shape)
        if is_costly(inner) and self._varies(inner):
            self._known[inner] = x
        if e.op == "row_sum":
            return reduce.sum(x, axis=-1, keepdims=True)
        if not self._shape[-1]:
            return full(
                (*x.shape[:-1], 1), float("-inf" if e.op == "row_max" else "inf"), dtype=x.dtype, device=x.device
            )
        return (reduce.max if e.op == "row_max" else reduce.min)(x, axis=-1, keepdims=True)

    def _is_branch(self, e: Expr) -> bool:
        return e.op == "where" and not self._varies(e) and has_fold(e.args[1:])

    def _branch(self, e: Expr) -> Tensor:
        """Returns the chosen side of a choice between statistics, alone if all rows take it and that can be seen."""
        condition, x, y = e.args
        if self._looks and condition not in self._taken:
            taken = self.value(condition)
            self._taken[condition] = _common(taken)
        common = self._taken.get(condition)
        side, is_weak = x if common else y, self._is_weak(e)
        if common is None or (self._is_weak(side) and not is_weak and self._dtype is None):
            return self._map(e)
        found = self._map(side, (*self._shape[:-1], 1))
        return astype(found, self._dtype) if self._dtype and self._is_weak(side) and not is_weak else found

    def _map(self, e: Expr, shape: Shape | None = None) -> Tensor:
        """Returns what an elementwise operation makes of operands and of the folds and branches under an expression."""
        if shape is None:
            shape = self._shape if self._varies(e) else (*self._shape[:-1], 1)
        for c in self._cuts(e):
            if c.op != "input":
                self.value(c)
        cuts = self._cuts(e)  # now that folds are there, what they folded may be kept
        found = [self._operands[c.value] if c.op == "input" else self.value(c) for c in cuts]
        is_weak = [self._is_weak(c) for c in cuts]
        if self._varies(e) and self._dtype is not None:  # in which elements are, so weak statistics become it
            found = [astype(x, self._dtype) if w and c.op != "input" else x for x, w, c in zip(found, is_weak, cuts)]
            is_weak = [w and c.op == "input" for w, c in zip(is_weak, cuts)]
        if e in cuts and isinstance(found[0], Tensor) and found[0].shape == shape:
            return found[0]
        key = e, tuple(cuts), tuple(is_weak)
        if key not in self._pieces:
            given = {c: weak(variable(k)) if w else variable(k) for k, (c, w) in enumerate(zip(cuts, is_weak))}
            (inner,) = substitute([e], given)
            inner = cast(inner, dtypes.float64) if self._is_weak(e) else inner
            names = [f"x{k}" for k in range(len(cuts))]
            name = f"{self._name}_part"
            self._pieces[key] = Elementwise(name, lambda *_, shape: inner, names, ("out",), derived=True)
        if not found:
            return apply(self._pieces[key], shape=shape, device=self._device)
        return apply(self._pieces[key], *found, shape=shape)

    def _cuts(self, e: Expr) -> dict[Expr, None]:
        """Returns the operands of an elementwise operation that makes an expression, in the order of its inputs."""
        cuts: dict[Expr, None] = {}
        stack = [e]
        while stack:
            node = stack.pop()
            # Statistics are computed once for a row, not for each of its elements.
            is_statistic = self._varies(e) and node.args and not self._varies(node) and not self._is_weak(node)
            is_cut = is_statistic or node in self._known or self._is_branch(node)
            if is_fold(node) or node.op == "input" or (node is not e and is_cut):
                cuts[node] = None
            else:
                stack += node.args
        return cuts

    def _is_weak(self, e: Expr) -> bool:
        """True where an expression is made of Python floats, and so computed in float64 until it meets a tensor."""
        if e.op == "input":
            return type(self._operands[e.value]) is float
        if e.op == "constant":
            return type(e.value) is float
        if e.op in ("cast", "index", "row_size") or (
            operation_of(e).typing in ("comparison", "predicate", "random_bits", "bitcast")
        ):
            return False
        args = e.args[1:] if e.op == "where" else e.args
        return all(self._is_weak(a) for a in args)


def _common(condition: Tensor) -> bool | None:
    """The value that all elements have, None where they differ."""
    return True if reduce.all(condition).item() else None if reduce.any(condition).item() else False


Rowwise.composed = staticmethod(composed)


@functools.lru_cache(4096)
def has_fold(expressions: tuple[Expr, ...]) -> bool:
    return any(map(is_fold, topological(expressions)))


@functools.lru_cache(4096)
def is_costly(expression: Expr) -> bool:
    return any(node.op in COSTLY for node in topological([expression]))
