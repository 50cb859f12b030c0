"""Initial values: `normal_(p)` writes into a tensor and returns it; `normal(shape, std)` makes a Parameter. Floor 5.

What ends with an underscore is PyTorch's function of that name, and may be written without it, as in its first years:
a tensor stays the same object, so weights that are tied stay tied. In a `with skipped():` block nothing is written.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import dtypes
from ..errors import ArgumentError, ShapeError, describe
from ..ops.assign import assign
from ..ops.elementwise import clip, copysign, erf, exp, log, sqrt
from ..ops.more import in_place
from ..ops.random import normal as draw_normal
from ..ops.random import uniform as draw_uniform
from ..random import Generator
from ..tape import no_grad
from ..tensor import Tensor, require_tensors
from ..views import Shape
from . import new_parameters
from .module import Parameter
from .new_parameters import skipped as skipped
from .new_parameters import skips

GAINS = {  # what keeps the variance of a signal through a layer and the function after it
    "linear": 1.0, "sigmoid": 1.0, "conv1d": 1.0, "conv2d": 1.0, "tanh": 5 / 3, "relu": math.sqrt(2), "selu": 3 / 4,
}  # fmt: skip


def _write(operation: str, p: Tensor, write: Callable[..., Any], *values: float, **given: Any) -> Tensor:
    """Calls write(p, *values) where initial values aren't skipped, and returns p."""
    require_tensors(operation, p=p)
    if not skips.get():
        with no_grad():
            write(p, *values, **given)
    return p


def constant_(p: Tensor, value: float) -> Tensor:
    """Every element the same."""
    return _write("constant_", p, assign, value)


def zeros_(p: Tensor) -> Tensor:
    """Every element 0."""
    return _write("zeros_", p, assign, 0)


def ones_(p: Tensor) -> Tensor:
    """Every element 1."""
    return _write("ones_", p, assign, 1)


def normal_(p: Tensor, mean: float = 0.0, std: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with the given mean and standard deviation."""
    return _write("normal_", p, in_place.normal_, mean, std, generator=generator)


def uniform_(p: Tensor, a: float = 0.0, b: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform on [a, b)."""
    return _write("uniform_", p, in_place.uniform_, a, b, generator=generator)


def _erfinv(u: Tensor) -> Tensor:
    """The number whose erf is u: an approximation (Winitzki 2008) and two of Halley's steps. u: float64."""
    u = clip(u, -1 + 2.0**-53, 1 - 2.0**-53)  # 1 has none: the last number before it
    logarithm = log((1 - u) * (1 + u))
    half = 2 / (math.pi * 0.147) + logarithm / 2
    x = copysign(sqrt(sqrt(half * half - logarithm / 0.147) - half), u)
    for _ in range(2):
        newton = (erf(x) - u) * exp(x * x) * (math.sqrt(math.pi) / 2)
        x = x - newton / (1 + x * newton)
    return x


def _truncated_normal_(p: Tensor, mean: float, std: float, a: float, b: float, *, generator: Generator | None) -> None:
    low, high = (math.erf((bound - mean) / (std * math.sqrt(2))) for bound in (a, b))
    if abs(low + high) == 2:
        raise ArgumentError(f"trunc_normal_: a is {a}, b is {b}: [a, b] lies more than 8 std from the mean, {mean}")
    u = draw_uniform(p.shape, generator=generator, dtype=dtypes.float64, device=p.device)
    drawn = _erfinv(low + u * (high - low))  # in float64: between bounds far out there are few float32
    assign(p, clip(drawn * (std * math.sqrt(2)) + mean, a, b))


def trunc_normal_(
    p: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, generator: Generator | None = None
) -> Tensor:
    """Normal, of which only what lies in [a, b] is taken: the inverse of the distribution function of uniform draws.

    Raises ArgumentError where all of [a, b] is more than 8 std from the mean, where float64 tells no values apart.
    """
    if not (std > 0 and a < b):
        raise ArgumentError(f"trunc_normal_: std is {std}, a is {a}, b is {b}: std must be positive, a less than b")
    return _write("trunc_normal_", p, _truncated_normal_, mean, std, a, b, generator=generator)


def _fans(operation: str, p: Tensor) -> tuple[int, int]:
    """Returns how many inputs an output of the layer depends on, and the reverse: p is (out, in, *kernel)."""
    require_tensors(operation, p=p)
    if p.ndim < 2:
        raise ShapeError(f"{operation}: {describe('p', p)}: it must have two axes at least, (out, in, ...)")
    kernel = math.prod(p.shape[2:])
    return p.shape[1] * kernel, p.shape[0] * kernel


def xavier_uniform_(p: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Uniform on +-gain * sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16)."""
    bound = gain * math.sqrt(6 / max(sum(_fans("xavier_uniform_", p)), 1))
    return uniform_(p, -bound, bound, generator)


def xavier_normal_(p: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """Normal with standard deviation gain * sqrt(2 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 12)."""
    return normal_(p, 0.0, gain * math.sqrt(2 / max(sum(_fans("xavier_normal_", p)), 1)), generator)


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Returns what a layer's weights are multiplied by for the function after it; param: leaky_relu's slope, else 0.01.

    >>> from tinyarr import nn
    >>> nn.init.calculate_gain("leaky_relu", 1.0)
    1.0
    """
    if nonlinearity == "leaky_relu":
        return math.sqrt(2 / (1 + (0.01 if param is None else param) ** 2))
    if nonlinearity not in GAINS:
        raise ArgumentError(f"calculate_gain: nonlinearity is {nonlinearity!r}: use leaky_relu, {', '.join(GAINS)}")
    return GAINS[nonlinearity]


def _kaiming_std(operation: str, p: Tensor, a: float, mode: str, nonlinearity: str) -> float:
    if mode not in ("fan_in", "fan_out"):
        raise ArgumentError(f"{operation}: mode is {mode!r}: use 'fan_in' or 'fan_out'")
    return calculate_gain(nonlinearity, a) / math.sqrt(max(_fans(operation, p)[mode == "fan_out"], 1))


def kaiming_uniform_(
    p: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Uniform on +-gain * sqrt(3 / fan) (He et al. 2015, eq. 10 and 14); a: the slope of the leaky_relu after it."""
    bound = math.sqrt(3) * _kaiming_std("kaiming_uniform_", p, a, mode, nonlinearity)
    return uniform_(p, -bound, bound, generator)


def kaiming_normal_(
    p: Tensor,
    a: float = 0.0,
    mode: str = "fan_in",
    nonlinearity: str = "leaky_relu",
    generator: Generator | None = None,
) -> Tensor:
    """Normal with standard deviation gain / sqrt(fan) (He et al. 2015, eq. 10 and 14); else as kaiming_uniform_."""
    return normal_(p, 0.0, _kaiming_std("kaiming_normal_", p, a, mode, nonlinearity), generator)


def _orthogonal_(p: Tensor, gain: float, *, generator: Generator | None) -> None:
    rows, columns = p.shape[0], math.prod(p.shape[1:])
    drawn = draw_normal((max(rows, columns), min(rows, columns)), generator=generator, dtype=dtypes.float64).numpy()
    q, r = np.linalg.qr(drawn)
    q = q * np.copysign(gain, np.diag(r))  # else the signs depend on the algorithm (Mezzadri 2007, section 5)
    assign(p, Tensor((q if rows >= columns else q.T).reshape(p.shape), dtype=p.dtype, device=p.device))


def orthogonal_(p: Tensor, gain: float = 1.0, generator: Generator | None = None) -> Tensor:
    """A random matrix with orthonormal rows or columns, times gain (Saxe et al. 2013); p (out, in, ...) as (out, -1).

    NumPy factors it, so that it can't be part of a compiled function.
    """
    _fans("orthogonal_", p)
    return _write("orthogonal_", p, _orthogonal_, gain, generator=generator)


def _either(make: Callable[..., Parameter], write: Callable[..., Tensor]) -> Callable[..., Any]:
    """Returns the function that makes a Parameter where a shape comes first, and writes where a tensor does."""

    @functools.wraps(make)
    def call(shape: Shape | Tensor, *values: Any, **given: Any) -> Tensor:
        return (write if isinstance(shape, Tensor) else make)(shape, *values, **given)

    call.__doc__ = f"{make.__doc__} Given a tensor, {write.__name__}."
    return call


constant = _either(new_parameters.constant, constant_)
normal = _either(new_parameters.normal, normal_)
uniform = _either(new_parameters.uniform, uniform_)
kaiming_normal, kaiming_uniform, orthogonal = kaiming_normal_, kaiming_uniform_, orthogonal_
trunc_normal, xavier_normal, xavier_uniform = trunc_normal_, xavier_normal_, xavier_uniform_
