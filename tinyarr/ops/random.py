"""Random draws: uniform and normal numbers, integers, bits, dropout. Floor 1.

Every draw takes the next counter of a generator when it is applied, and is from then on a pure function of (key,
counter, position): the gradient of dropout draws its mask again. Normals are computed by the logarithm and cosine
below, made of exactly rounded operations, so that they are bit-equal on every device.
"""

from __future__ import annotations

import math

from .. import dtypes, views
from ..device import Device
from ..dtypes import Dtype
from ..errors import ArgumentError, DtypeError, whole_number
from ..random import Generator, default_generator
from ..tensor import Tensor
from . import scalar
from .create import require_fit, target, with_gradient
from .elementwise import elementwise
from .primitive import apply
from .scalar import Expr


def _unit(key: Expr, counter: Expr, stream: int = 0) -> Expr:
    """A float32 in [0, 1): a multiple of 2**-24, each equally likely."""
    bits = scalar.random_bits(key, counter, stream=stream)
    return scalar.cast(bits >> 8, dtypes.float32) * 2.0**-24


def _polynomial(x: Expr, coefficients: list[float]) -> Expr:
    result = scalar.as_expr(coefficients[0])
    for c in coefficients[1:]:
        result = result * x + c
    return result


def _exact_log(x: Expr) -> Expr:
    """The natural logarithm of a normal positive float32, by exponent and mantissa: log(2**e m) = e log 2 + log m."""
    bits = scalar.bitcast(x, dtypes.uint32)
    # The mantissa is taken in [sqrt(1/2), sqrt(2)), so that the series about 1 converges fast.
    offset = bits - 0x3F3504F3
    exponent = scalar.cast(scalar.bitcast(offset, dtypes.int32) >> 23, dtypes.float32)
    m = scalar.bitcast((offset & 0x007FFFFF) + 0x3F3504F3, dtypes.float32)
    s = (m - 1) / (m + 1)  # log m = 2 artanh(s)
    series = _polynomial(s * s, [2 / 9, 2 / 7, 2 / 5, 2 / 3, 2.0])
    return exponent * math.log(2) + s * series


def _exact_cos_turns(u: Expr) -> Expr:
    """cos(2 pi u) for u in [0, 1), folded to an angle in [-pi/4, pi/4] where Taylor's series converges fast."""
    quarter = scalar.make("round", u * 4)
    angle = (u - quarter * 0.25) * (2 * math.pi)
    z = angle * angle
    cosine = _polynomial(z, [1 / 40320, -1 / 720, 1 / 24, -1 / 2, 1.0])
    sine = _polynomial(z, [1 / 362880, -1 / 5040, 1 / 120, -1 / 6, 1.0]) * angle
    # Quarter turns 0, 1, 2, 3, 4: cos a, -sin a, -cos a, sin a, cos a.
    odd = (quarter == 1) | (quarter == 3)
    value = scalar.where(odd, sine, cosine)
    return scalar.where((quarter == 1) | (quarter == 2), -value, value)


@elementwise
def _uniform(key, counter, low, high, *, shape, dtype):
    drawn = scalar.cast(low + _unit(key, counter) * (high - low), dtype)
    return scalar.where(drawn < high, drawn, scalar.cast(low, dtype))  # rounding can reach high


@elementwise
def _normal(key, counter, mean, std, *, shape, dtype):
    radius = scalar.sqrt(-2 * _exact_log(1 - _unit(key, counter)))  # 1 - u is in (0, 1]
    return scalar.cast(mean + radius * _exact_cos_turns(_unit(key, counter, stream=1)) * std, dtype)


@elementwise
def _bits(key, counter, *, shape):
    return scalar.random_bits(key, counter)


@elementwise
def _integers(key, counter, low, span, *, shape, dtype):
    # Multiply-shift (Lemire 2019): span / 2**32 of bias at most, without a division.
    wide = scalar.cast(scalar.random_bits(key, counter), dtypes.uint64) * scalar.cast(span, dtypes.uint64)
    return scalar.cast(scalar.cast(wide >> 32, dtypes.int64) + scalar.cast(low, dtypes.int64), dtype)


@elementwise
def _dropout(x, key, counter, threshold, scale):
    return scalar.where(scalar.random_bits(key, counter) < threshold, 0, x * scale)


for _f in (_uniform, _normal, _bits, _integers):
    _f.no_gradient()


def _draw(primitive, generator: Generator | None, *operands, device, **params) -> Tensor:
    key, counter = (generator or default_generator()).take()
    return apply(primitive, key, counter, *operands, device=device, **params)


def _floating_target(operation: str, dtype, device) -> tuple[Dtype, Device]:
    dtype, device = target(dtype, device, "float")
    if not dtype.is_float:
        raise DtypeError(f"{operation}: dtype is {dtype.name}: it must be a floating dtype; randint draws integers")
    return dtype, device


def uniform(shape, low=0.0, high=1.0, *, generator=None, dtype=None, device=None, requires_grad=False) -> Tensor:
    """Uniform on [low, high); 24 random bits each."""
    low, high = float(low), float(high)
    if not 0 <= high - low < math.inf:
        raise ArgumentError(f"uniform: low is {low}, high is {high}: high - low must be finite and 0 or more")
    dtype, device = _floating_target("uniform", dtype, device)
    shape = views.normalize_shape("uniform", shape)
    result = _draw(_uniform, generator, low, high, shape=shape, dtype=dtype, device=device)
    return with_gradient(result, requires_grad)


def normal(shape, mean=0.0, std=1.0, *, generator=None, dtype=None, device=None, requires_grad=False) -> Tensor:
    """Normal with the given mean and standard deviation (Box & Muller 1958); computed in float32."""
    dtype, device = _floating_target("normal", dtype, device)
    if std < 0:
        raise ArgumentError(f"normal: std is {std}: it must be 0 or more")
    shape = views.normalize_shape("normal", shape)
    result = _draw(_normal, generator, float(mean), float(std), shape=shape, dtype=dtype, device=device)
    return with_gradient(result, requires_grad)


def rand(*shape: int, generator=None, dtype=None, device=None, requires_grad=False) -> Tensor:
    """Uniform on [0, 1): `rand(2, 3)` or `rand((2, 3))`."""
    sizes = views.normalize_shape("rand", *shape) if shape else ()
    return uniform(sizes, generator=generator, dtype=dtype, device=device, requires_grad=requires_grad)


def randn(*shape: int, generator=None, dtype=None, device=None, requires_grad=False) -> Tensor:
    """Standard normal: `randn(2, 3)` or `randn((2, 3))`."""
    sizes = views.normalize_shape("randn", *shape) if shape else ()
    return normal(sizes, generator=generator, dtype=dtype, device=device, requires_grad=requires_grad)


def randint(low: int, high: int, shape, *, generator=None, dtype=None, device=None) -> Tensor:
    """Integers in [low, high), at most 2**32 of them; int64 unless a dtype is given."""
    low, high = whole_number("randint", "low", low), whole_number("randint", "high", high)
    span = high - low
    if not 1 <= span <= 2**32:
        raise ArgumentError(f"randint: low is {low}, high is {high}: high - low must lie in [1, 2**32]")
    dtype, device = target(dtype, device, "signed")
    require_fit("randint", dtype, low, high - 1)
    shape = views.normalize_shape("randint", shape)
    return _draw(_integers, generator, low, span, shape=shape, dtype=dtype, device=device)


def random_bits(shape, *, generator=None, device=None) -> Tensor:
    """32 random bits an element, uint32."""
    device = target(dtypes.uint32, device, "signed")[1]
    return _draw(_bits, generator, shape=views.normalize_shape("random_bits", shape), device=device)


def dropout(x: Tensor, p: float = 0.5, *, training: bool = True, generator: Generator | None = None) -> Tensor:
    """Each element 0 with probability p (1 at most), else divided by 1 - p; x itself when not training.

    The mask is not saved: the gradient draws it again. Source: Srivastava et al. 2014, "Dropout", section 4.
    """
    if not 0 <= p <= 1:
        raise ArgumentError(f"dropout: p is {p}: it must lie in [0, 1]")
    if not training or p == 0:
        return x
    key, counter = (generator or default_generator()).take()
    # With p = 1 one element of 2**32 is kept, and multiplied by 0.
    return _dropout(x, key, counter, min(int(p * 2**32), 2**32 - 1), 1 / (1 - p) if p < 1 else 0.0)
