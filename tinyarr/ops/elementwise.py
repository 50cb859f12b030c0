"""Elementwise operations: the scalar language on tensors, and what is composed of it. Floor 1.

All broadcast their operands and take Python scalars, which are weak (see dtypes.py). Floating functions of integers
give float32. Gradients are derived; where a function has a kink or a tie, its docstring says what is chosen.
"""

from __future__ import annotations

import inspect
from typing import Any

from .. import dtypes
from ..dtypes import Dtype
from ..tensor import Tensor, require_tensors
from . import scalar
from .elementwise_primitive import Elementwise, elementwise
from .primitive import Primitive, apply


@elementwise
def _integer_power(x, *, n):
    return x**n


@elementwise
def _inverse_power(x, *, n):
    return (1 / x) ** n


@_inverse_power.gradient
def _inverse_power_gradient(g, x, *, n):
    return scalar.where(scalar.equal(g, 0), 0, -n * (g * (1 / x) ** (n + 1)))


class _Power(Elementwise):
    """x ** y, where a small whole y makes products: 1 to 8, or, of floating x, also as a float, and -1 and -2."""

    def __call__(self, *operands: Any, **options: Any) -> Any:
        x, y = operands if len(operands) == 2 else (None, 0)
        if isinstance(x, Tensor) and dtypes.scalar_kind(y) in ("signed", "float" if x.dtype.is_float else "signed"):
            if x.dtype.is_float and y in (-1, -2):
                return apply(_inverse_power, x, n=int(-y), **options)
            if y in range(1, 9):
                return apply(_integer_power, x, n=int(y), **options)
        return super().__call__(*operands, **options)


def _lift(
    name: str, documentation: str, public_name: str | None = None, inputs: tuple[str, ...] | None = None
) -> Elementwise:
    """The operation `name` of the scalar language as an operation on tensors."""
    operation = scalar.OPERATIONS[name]
    inputs = inputs or ("x", "y")[: operation.arity]
    function = scalar.power if name == "power" else lambda *args: scalar.make(name, *args)
    kind = _Power if name == "power" else Elementwise
    primitive = kind(public_name or name, function, inputs, ("out",))
    primitive.__doc__ = documentation
    return primitive


def _keeping_zero(primitive: Elementwise, operation: str) -> None:
    """Gives an operation with infinite slopes a gradient that is 0 where that of its result is 0."""

    vjp = scalar.OPERATIONS[operation].vjp
    assert vjp is not None

    def gradient(g, out, *inputs):
        grads = vjp(g, out, *inputs)
        return tuple(scalar.where(scalar.equal(g, 0) & isnan(d), 0, d) for d in grads)

    names = ("g", "out", *primitive.inputs)
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    gradient.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    primitive.gradient(gradient)


add = _lift("add", "x + y.")
subtract = _lift("subtract", "x - y.")
multiply = _lift("multiply", "x * y.")
divide = _lift("divide", "x / y; integers are divided as float32.")
floor_divide = _lift(
    "floor_divide", "The largest whole number not above x / y; for integers 0 where y is 0. Gradient 0."
)
remainder = _lift("remainder", "x - y * floor_divide(x, y), with the sign of y; for integers 0 where y is 0.")
pow = _lift("power", "x ** y. d/dx is 0 where y = 0, d/dy is 0 where x = 0.", "pow")
negative = _lift("negative", "-x.")
abs = _lift("abs", "|x|. Gradient 0 at 0.")
sign = _lift("sign", "-1, 0 or 1; NaN for NaN. Gradient 0.")
maximum = _lift("maximum", "The larger of x and y, NaN if either is. A tie splits the gradient evenly.")
minimum = _lift("minimum", "The smaller of x and y, NaN if either is. A tie splits the gradient evenly.")
floor = _lift("floor", "The largest whole number not above x. Gradient 0.")
ceil = _lift("ceil", "The smallest whole number not below x. Gradient 0.")
trunc = _lift("trunc", "x without its fraction. Gradient 0.")
round = _lift("round", "The nearest whole number, ties to even. Gradient 0.")
sqrt = _lift("sqrt", "The square root; NaN for negative x. Gradient inf at 0.")
exp = _lift("exp", "e ** x.")
expm1 = _lift("expm1", "e ** x - 1, exact for small x.")
log = _lift("log", "The natural logarithm; -inf at 0, NaN below.")
log1p = _lift("log1p", "log(1 + x), exact for small x.")
log2 = _lift("log2", "The logarithm to base 2.")
log10 = _lift("log10", "The logarithm to base 10.")
sin = _lift("sin", "The sine; x in radians.")
cos = _lift("cos", "The cosine; x in radians.")
tan = _lift("tan", "The tangent; x in radians.")
asin = _lift("asin", "The inverse sine, in radians.")
acos = _lift("acos", "The inverse cosine, in radians.")
atan = _lift("atan", "The inverse tangent, in radians.")
atan2 = _lift(
    "atan2", "The angle of the point (y, x) in radians, in [-pi, pi]. Gradient 0 at (0, 0).", inputs=("y", "x")
)
sinh = _lift("sinh", "The hyperbolic sine.")
cosh = _lift("cosh", "The hyperbolic cosine.")
tanh = _lift("tanh", "The hyperbolic tangent.")
asinh = _lift("asinh", "The inverse hyperbolic sine.")
acosh = _lift("acosh", "The inverse hyperbolic cosine.")
atanh = _lift("atanh", "The inverse hyperbolic tangent.")
erf = _lift("erf", "The error function, 2 / sqrt(pi) times the integral of exp(-t**2) from 0 to x.")
hypot = _lift("hypot", "sqrt(x**2 + y**2) without overflow. Gradient 0 at (0, 0).")
copysign = _lift("copysign", "|x| with the sign of y.")
nextafter = _lift("nextafter", "The number next to x in the direction of y, of float32 or float64.")
equal = _lift("equal", "x == y, bool.")
not_equal = _lift("not_equal", "x != y, bool.")
less = _lift("less", "x < y, bool.")
less_equal = _lift("less_equal", "x <= y, bool.")
greater = _lift("greater", "x > y, bool.")
greater_equal = _lift("greater_equal", "x >= y, bool.")
isnan = _lift("isnan", "Whether x is NaN, bool.")
isinf = _lift("isinf", "Whether x is inf or -inf, bool.")
isfinite = _lift("isfinite", "Whether x is neither infinite nor NaN, bool.")
signbit = _lift("signbit", "Whether the sign bit of x is set, bool (-0.0 and negative NaN included).")
bitwise_and = _lift("bitwise_and", "The bits set in both, of integers or bool.")
bitwise_or = _lift("bitwise_or", "The bits set in either, of integers or bool.")
bitwise_xor = _lift("bitwise_xor", "The bits set in exactly one, of integers or bool.")
bitwise_invert = _lift("bitwise_invert", "The bits not set, of integers or bool.")
bitwise_left_shift = _lift("bitwise_left_shift", "x times 2 ** y, dropping bits past the width.")
bitwise_right_shift = _lift("bitwise_right_shift", "x divided by 2 ** y, rounded down.")
where = _lift(
    "where",
    """x where the condition holds, else y. No gradient reaches the branch that is not taken.

    A division by 0 or an exponential that overflows before it makes NaN of that 0: either guard its argument, as in
    where(x > 0, 1 / where(x > 0, x, 1), 0), or write the whole as one @elementwise function, in which it stays 0.
    """,
    inputs=("condition", "x", "y"),
)

for _f in (sqrt, log, log1p, log2, log10, asin, acos, acosh, atanh, pow):
    _keeping_zero(_f, "power" if _f is pow else _f.name)

for _f in (
    equal, not_equal, less, less_equal, greater, greater_equal, isnan, isinf, isfinite, signbit,
    bitwise_and, bitwise_or, bitwise_xor, bitwise_invert, bitwise_left_shift, bitwise_right_shift,
):  # fmt: skip
    _f.no_gradient()


@elementwise
def _astype(x, *, dtype):
    return scalar.cast(x, dtype)


_astype.moves = True


def astype(x: Tensor, dtype: Dtype, /, *, copy: bool = True, device=None) -> Tensor:
    """The elements converted to `dtype`; halves and float8 are rounded to nearest even, out-of-range float8 is NaN/inf.

    Floating to integer truncates. The tensor itself where it has the dtype already and `copy` is False.
    """
    dtype = dtypes.dtype(dtype)
    if device is not None:
        x = x.to(device)
    if not copy and x.dtype is dtype:
        return x
    return _astype(x, dtype=dtype)


Primitive.cast = staticmethod(astype)  # by which apply promotes


@elementwise
def reciprocal(x):
    """1 / x."""
    return 1 / x


@elementwise
def square(x):
    """x * x."""
    return x * x


@elementwise
def rsqrt(x):
    """1 / sqrt(x)."""
    return 1 / scalar.sqrt(x)


@rsqrt.gradient
def _rsqrt_gradient(g, out):  # without x, which a row expression that returns 1 / sqrt(variance) needn't compute again
    return -0.5 * g * out * out * out


@elementwise
def logical_and(x, y):
    """Returns whether both are true (non-zero), bool."""
    return scalar.cast(x, dtypes.bool) & scalar.cast(y, dtypes.bool)


@elementwise
def logical_or(x, y):
    """Returns whether either is true (non-zero), bool."""
    return scalar.cast(x, dtypes.bool) | scalar.cast(y, dtypes.bool)


@elementwise
def logical_xor(x, y):
    """Returns whether exactly one is true (non-zero), bool."""
    return scalar.cast(x, dtypes.bool) ^ scalar.cast(y, dtypes.bool)


@elementwise
def logical_not(x):
    """Returns whether x is false (zero), bool."""
    return ~scalar.cast(x, dtypes.bool)


for _f in (logical_and, logical_or, logical_xor, logical_not):
    _f.no_gradient()


def positive(x: Tensor, /) -> Tensor:
    """x itself."""
    require_tensors("positive", x=x)
    return x


@elementwise
def _clip(x, low, high):
    return scalar.minimum(scalar.maximum(x, low), high)


def clip(x: Tensor, min=None, max=None) -> Tensor:
    """x limited to [min, max]; either may be None. At a limit half of the gradient passes, outside none."""
    if min is None or max is None:
        return x if min is max else maximum(x, min) if max is None else minimum(x, max)
    return _clip(x, min, max)
