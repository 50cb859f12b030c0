"""The language of rows: what a row expression (rowwise.py) has beside the scalar language. Floor 1.

A value varies along the row, or is the same for all of it: a statistic. `row.sum`, `row.max` and `row.min` make
statistics; where one meets elements, it is broadcast. `row.index` is an element's position, `row.size` the number of
them. A `where` of statistics is a branch: kernels compute only the side that they take.
"""

from __future__ import annotations

from collections.abc import Sequence

from . import scalar
from .scalar import Expr, topological

size: Expr = scalar.make("row_size")
index: Expr = scalar.index(-1)
sum, max, min = scalar.row_sum, scalar.row_max, scalar.row_min


def mean(x) -> Expr:
    """The arithmetic mean of the row."""
    return sum(x) / size


def _no_gradient(g: Expr, out: Expr) -> tuple[()]:
    return ()


def stop(x) -> Expr:
    """x, as a constant to gradients: for what changes no result, as what is subtracted from exponents."""
    return scalar.with_gradient(scalar.as_expr(x), (), _no_gradient)


def at(x, position) -> Expr:
    """The element at an integer position, 0 where the row has none there."""
    return sum(scalar.where(scalar.equal(index, position), x, 0))


def _softmax(g: Expr, out: Expr, x: Expr) -> tuple[Expr]:
    return (g * scalar.exp(x - out),)


def logsumexp(x) -> Expr:
    """log(sum(exp(x))), without overflow; -inf where all elements are."""
    largest = max(x)
    shift = scalar.where(scalar.make("isinf", largest), 0, largest)
    total = scalar.log(sum(scalar.exp(x - shift))) + shift
    return scalar.with_gradient(total, (scalar.as_expr(x),), _softmax)


class Variation:
    """Tells which expressions vary along the row, given which inputs do."""

    def __init__(self, inputs: Sequence[bool]):
        self._inputs = inputs
        self._known: dict[Expr, bool] = {}

    def __call__(self, expression: Expr) -> bool:
        known = self._known
        if expression not in known:
            for node in topological([expression]):
                if node not in known:
                    known[node] = self._of(node)
        return known[expression]

    def _of(self, node: Expr) -> bool:
        if node.op == "input":
            return self._inputs[node.value]
        if node.op in ("index", "random_bits"):
            return True
        if node.op in ("row_sum", "row_max", "row_min"):
            return False
        return any(self._known[a] for a in (node.args[:1] if node.op == "custom" else node.args))
