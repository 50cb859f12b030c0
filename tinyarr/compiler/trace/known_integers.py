"""Integer tensors of one element of which a trace knows more than their shape: (i + 8) - i is 8. Floor 2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...array import Array
from ...dtypes import int32, int64
from ...ops.elementwise import add, multiply, negative, subtract
from .polynomials import Polynomial

_METHODS = {add: "__add__", subtract: "__sub__", multiply: "__mul__", negative: "__neg__"}


class KnownIntegers:
    """0-d tensors as polynomials of others, in arithmetic that wraps as theirs does.

    An element of memory is another factor after each write into its storage.
    """

    def __init__(self) -> None:
        self._found: dict[tuple, Polynomial] = {}

    def note(self, primitive: Any, operands: Sequence[Any], made: Sequence[Array]) -> None:
        """Notes what a call makes, if it is the sum or product of such tensors of one dtype and Python ints."""
        kinds = {x.dtype if isinstance(x, Array) else type(x) for x in (*operands, *made)} - {int}
        if primitive in _METHODS and kinds in ({int32}, {int64}):
            x, y = map(self._of, (*operands, 0)[:2])
            found = x.computed(_METHODS[primitive], y)
            if found is not None:
                self._found[_key(made[0])] = found

    def value(self, x: Array) -> int | None:
        """Returns the value of a 0-d tensor, if it is the same whatever elements others have."""
        found = self._of(x)
        return sum(n for _, n in found.terms) if found.is_constant else None

    def clear(self) -> None:
        self._found.clear()

    def _of(self, x: Any) -> Polynomial:
        return Polynomial.of(x if type(x) is int else self._found.get(_key(x), _key(x)))


def _key(x: Array) -> tuple:
    return x.storage, x.offset, x.storage.version
