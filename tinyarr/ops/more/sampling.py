"""Draws from a distribution over classes, permutations, and draws like a tensor. Floor 5."""

from __future__ import annotations

import math

from ... import dtypes, eager, views
from ...errors import ArgumentError, ShapeError, describe, whole_number
from ...random import Generator, default_generator
from ...tensor import Tensor, require_tensors
from .. import scalar
from ..create import arange
from ..elementwise import astype, isfinite, logical_and, where
from ..elementwise_primitive import elementwise
from ..index import take
from ..primitive import executor
from ..random import normal, random_bits, uniform
from ..reduce import all, argmin, min
from ..shape import expand_dims, reshape
from .scan import cumulative_sum
from .sort import argsort, searchsorted, topk


def multinomial(
    weights: Tensor, num_samples: int, replacement: bool = False, *, generator: Generator | None = None
) -> Tensor:
    """Draws of classes, each with a probability in proportion to its weight; int64.

    weights (V,) or (..., V), 0 or more, which need not sum to 1: (num_samples,) or (..., num_samples), drawn for each
    row anew. Without replacement a row's classes are distinct, in the order in which they were drawn: a class that has
    been drawn drops out. Computed in float64 with 32 random bits a draw. No gradient flows to the weights.
    Raises ArgumentError where a weight is negative, infinite or NaN, and where a row has too few positive ones for the
    draws; a compiled function raises OutOfBounds then.
    Source of the draws without replacement: Efraimidis & Spirakis 2006, "Weighted random sampling with a reservoir".

    >>> import tinyarr
    >>> tinyarr.multinomial(tinyarr.Tensor([0.0, 3.0, 0.0]), 2, replacement=True).tolist()
    [1, 1]
    """
    require_tensors("multinomial", weights=weights)
    if weights.ndim == 0:
        raise ShapeError("multinomial: weights is 0-d: its last axis must be over the classes")
    classes, count = weights.shape[-1], whole_number("multinomial", "num_samples", num_samples)
    if count < 1 or (count > classes and not replacement):
        most = "" if replacement else f" and, without replacement, at most {classes}"
        raise ArgumentError(f"multinomial: num_samples is {count}: it must be 1 or more{most}")
    wide = astype(weights.detach(), dtypes.float64)
    drawn, is_sound = (_by_inversion if replacement and count > 1 else _by_race)(wide, count, generator)
    if executor.get() is not eager:  # a program refuses an index outside as it runs
        return take(arange(classes, device=weights.device), where(expand_dims(is_sound, -1), drawn, classes))
    if weights.device.kind != "meta" and not all(is_sound):
        raise ArgumentError(
            f"multinomial: {describe('weights', weights)}: none may be negative, infinite or NaN, and each row must "
            f"have {'a positive one' if replacement else f'{count} positive ones, or use replacement=True'}"
        )
    return drawn


def _by_inversion(weights: Tensor, count: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """Classes (..., count) among whose cumulative weights uniform numbers fall, and whether a row is one of weights."""
    sums = cumulative_sum(weights, axis=-1)
    total = sums[..., -1:]
    shape = (*weights.shape[:-1], count)
    bits = astype(random_bits(shape, generator=generator, device=weights.device), dtypes.float64)
    drawn = searchsorted(sums, (bits * 2.0**-32) * total, side="right")
    total = reshape(total, total.shape[:-1])
    return drawn, logical_and(min(weights, axis=-1) >= 0, logical_and(total > 0, isfinite(total)))


@elementwise
def _arrival_time(weight, key, counter):
    u = (scalar.cast(scalar.random_bits(key, counter), dtypes.float64) + 0.5) * 2.0**-32
    is_weight = (weight >= 0) & (weight < math.inf)
    return scalar.where(is_weight, -scalar.log(u) / weight, -math.inf)


_arrival_time.no_gradient()


def _by_race(weights: Tensor, count: int, generator: Generator | None) -> tuple[Tensor, Tensor]:
    """The first classes (..., count) of an exponential race, and whether a row has so many positive weights.

    A class arrives at an exponential time whose rate is its weight, never for 0. What is no weight comes at -infinity.
    """
    times = _arrival_time(weights, *(generator or default_generator()).take())
    if count == 1:
        return argmin(times, axis=-1, keepdims=True), isfinite(min(times, axis=-1))
    first, drawn = topk(times, count, largest=False)
    return drawn, all(isfinite(first), axis=-1)


def randperm(n: int, *, generator: Generator | None = None, dtype=None, device=None) -> Tensor:
    """A random permutation of 0, 1, ..., n - 1; int64 unless a dtype is given.

    It sorts 32 random bits each: of two elements the smaller comes first with probability 1/2 + 2**-33.
    """
    shape = views.normalize_shape("randperm", whole_number("randperm", "n", n))
    order = argsort(random_bits(shape, generator=generator, device=device))
    return order if dtype is None else astype(order, dtype)


def rand_like(x: Tensor, *, generator: Generator | None = None, dtype=None, device=None, requires_grad=False) -> Tensor:
    """Uniform on [0, 1), in x's shape, dtype and device (unless given)."""
    return _like("rand_like", uniform, x, generator, dtype, device, requires_grad)


def randn_like(
    x: Tensor, *, generator: Generator | None = None, dtype=None, device=None, requires_grad=False
) -> Tensor:
    """Standard normal, in x's shape, dtype and device (unless given)."""
    return _like("randn_like", normal, x, generator, dtype, device, requires_grad)


def _like(operation: str, draw, x: Tensor, generator, dtype, device, requires_grad: bool) -> Tensor:
    require_tensors(operation, x=x)
    dtype, device = x.dtype if dtype is None else dtype, device or x.device
    return draw(x.shape, generator=generator, dtype=dtype, device=device, requires_grad=requires_grad)
