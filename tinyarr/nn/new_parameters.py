"""New parameters with initial values: constant, normal, uniform. Floor 1."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from ..ops.create import empty, full
from ..ops.random import normal as _normal
from ..ops.random import uniform as _uniform
from ..random import Generator
from ..tensor import Tensor
from ..views import Shape
from .module import Parameter

skips: ContextVar[bool] = ContextVar("skips", default=False)


@contextlib.contextmanager
def skipped() -> Iterator[None]:
    """Leaves new parameters undefined inside a `with` block: for a model whose weights are loaded next."""
    token = skips.set(True)
    try:
        yield
    finally:
        skips.reset(token)


def _parameter(draw: Callable[..., Tensor], shape: Shape, *values: float, **place) -> Parameter:
    if skips.get():
        return Parameter(empty(shape, dtype=place["dtype"], device=place["device"]))
    return Parameter(draw(shape, *values, **place))


def constant(shape: Shape, value: float, *, dtype=None, device=None) -> Parameter:
    """Every element the same."""
    return _parameter(full, shape, float(value), dtype=dtype, device=device)


def normal(shape: Shape, std: float, *, generator: Generator | None = None, dtype=None, device=None) -> Parameter:
    """Normal with mean 0."""
    return _parameter(_normal, shape, 0.0, std, generator=generator, dtype=dtype, device=device)


def uniform(shape: Shape, bound: float, *, generator: Generator | None = None, dtype=None, device=None) -> Parameter:
    """Uniform on [-bound, bound)."""
    return _parameter(_uniform, shape, -bound, bound, generator=generator, dtype=dtype, device=device)
