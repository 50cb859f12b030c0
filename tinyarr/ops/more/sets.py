"""Sets: the distinct elements of a tensor, whose number is known only once it is computed; members. Floor 5."""

from __future__ import annotations

from typing import NamedTuple

from ... import dtypes
from ...tensor import Tensor, require_tensors
from ..create import full, ones
from ..elementwise import clip, equal, not_equal
from ..index import take
from ..shape import concat, reshape
from .scan import cumulative_sum, diff
from .sort import argsort, nonzero, searchsorted, sort


class UniqueAll(NamedTuple):
    values: Tensor
    indices: Tensor
    inverse_indices: Tensor
    counts: Tensor


class UniqueCounts(NamedTuple):
    values: Tensor
    counts: Tensor


class UniqueInverse(NamedTuple):
    values: Tensor
    inverse_indices: Tensor


def unique_all(x: Tensor, /) -> UniqueAll:
    """The distinct elements, sorted; where each first occurs in the flattened x; for each element of x which of them
    it is; and how often each occurs. Each NaN counts as distinct. The positions and counts are int64.
    """
    require_tensors("unique_all", x=x)
    flat = reshape(x, (x.size,))
    order = argsort(flat)
    ordered = take(flat, order)
    first = ones((min(x.size, 1),), dtype=dtypes.bool, device=x.device)
    begins = concat([first, not_equal(ordered[1:], ordered[:-1])])
    (starts,) = nonzero(begins)
    counts = diff(concat([starts, full((1,), x.size, dtype=dtypes.int64, device=x.device)]))
    rank = cumulative_sum(begins) - 1
    inverse = reshape(take(rank, argsort(order)), x.shape)
    return UniqueAll(take(ordered, starts), take(order, starts), inverse, counts)


def unique_values(x: Tensor, /) -> Tensor:
    """The distinct elements, sorted; each NaN counts as distinct."""
    return unique_all(x).values


def unique_counts(x: Tensor, /) -> UniqueCounts:
    """The distinct elements, sorted, and how often each occurs; each NaN counts as distinct."""
    found = unique_all(x)
    return UniqueCounts(found.values, found.counts)


def unique_inverse(x: Tensor, /) -> UniqueInverse:
    """The distinct elements, sorted, and for each element of x which of them it is; each NaN counts as distinct."""
    found = unique_all(x)
    return UniqueInverse(found.values, found.inverse_indices)


def isin(x: Tensor, elements: Tensor, /, *, invert: bool = False) -> Tensor:
    """Returns for each element of x whether it is among `elements` (any shape); with `invert` whether it is not. bool.

    NaN is among none. The elements are sorted and searched.
    """
    require_tensors("isin", x=x, elements=elements)
    n = elements.size
    if not n:
        return full(x.shape, invert, device=x.device)
    ordered = sort(reshape(elements, (n,)))
    nearest = take(ordered, clip(searchsorted(ordered, x), 0, n - 1))
    return not_equal(nearest, x) if invert else equal(nearest, x)
