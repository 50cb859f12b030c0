"""Polynomials over the integers in one form, so that two that are equal are found to be: (i + 8) - i is 8. Floor 2."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

MOST_TERMS = 16
MOST_FACTORS = 4  # of one term; what is larger than that nobody wrote to be compared


class Polynomial(NamedTuple):
    """Sum of products. terms: of each its factors, in order, and how often it is added; of no factors, the constant.

    Example: 2 * i * n + 3 is {(): 3, (i, n): 2}, as a tuple of pairs.
    """

    terms: tuple[tuple[tuple[Any, ...], int], ...]

    @classmethod
    def of(cls, x: Any) -> Polynomial:
        """Returns an int or a polynomial as one; anything else, which must be hashable, as one factor."""
        if isinstance(x, Polynomial):
            return x
        return cls._ordered({(): x} if type(x) is int else {(x,): 1})

    @classmethod
    def _ordered(cls, terms: dict[tuple[Any, ...], int]) -> Polynomial:
        return cls(tuple(sorted(((f, n) for f, n in terms.items() if n), key=repr)))

    @property
    def is_constant(self) -> bool:
        return not any(factors for factors, _ in self.terms)

    @property
    def operands(self) -> list[Any]:
        """The factors, those of all terms."""
        return [factor for factors, _ in self.terms for factor in factors]

    def value(self, value_of: Callable[[Any], int]) -> int:
        return sum(n * math.prod(map(value_of, factors)) for factors, n in self.terms)

    def computed(self, method: str, other: Polynomial) -> Polynomial | None:
        """Returns what an int's method gives, as __rsub__; None where that is large. other: counts for those of two."""
        x, y = (other, self) if method.startswith("__r") else (self, other)
        name = method.strip("_").removeprefix("r")
        if name in ("neg", "pos"):
            return self.times(-1 if name == "neg" else 1)
        if name == "mul":
            found: dict[tuple[Any, ...], int] = {}
            for a, n in x.terms:
                for b, m in y.terms:
                    factors = tuple(sorted((*a, *b), key=repr))
                    found[factors] = found.get(factors, 0) + n * m
        else:
            found = dict(x.terms)
            for factors, n in y.times(-1 if name == "sub" else 1).terms:
                found[factors] = found.get(factors, 0) + n
        is_large = len(found) > MOST_TERMS or any(len(factors) > MOST_FACTORS for factors in found)
        return None if is_large else Polynomial._ordered(found)

    def times(self, n: int) -> Polynomial:
        return Polynomial(tuple((factors, n * m) for factors, m in self.terms))

    def __repr__(self) -> str:
        return " + ".join("*".join(map(str, (n, *f) if n != 1 or not f else f)) for f, n in self.terms) or "0"
