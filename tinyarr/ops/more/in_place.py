"""PyTorch's in-place methods: a result written into the tensor's own memory, as assign writes it. Floor 5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

from ... import dtypes
from ...errors import DtypeError, GradientError, ShapeError
from ...random import Generator
from ...tape import recording
from ...tensor import Tensor
from ..assign import assign
from ..elementwise import add, clip, divide, multiply, subtract
from ..elementwise_primitive import Elementwise, elementwise
from ..primitive import apply
from ..random import normal, uniform
from .masking import masked_fill


def write(name: str, x: Tensor, operation: Callable[..., Tensor], *operands: Any, **options: Any) -> Tensor:
    """Writes operation(*operands) into x, where every view of x sees it, and returns x.

    Raises GradientError where x or an operand takes part in a gradient, DtypeError where the result is floating and x
    is not (or x alone is bool), ShapeError where the result has another shape than x.
    """
    tensors = [t for t in (x, *operands) if isinstance(t, Tensor)]
    if recording.get() and any([t.requires_grad for t in tensors]):
        raise GradientError(
            f"{name}: x or an operand takes part in a gradient, and a write can't be differentiated: make a new "
            "tensor, as x = x + y does, or write under no_grad(), by this method or x.assign(value)"
        )
    fits = x.dtype.is_float and all(t.dtype is x.dtype and t.shape in (x.shape, ()) for t in tensors)
    if fits and isinstance(operation, Elementwise):
        return apply(operation, *operands, out=x)  # in one pass, without a temporary
    result = operation(*operands, **options)
    if (result.dtype.is_float and not x.dtype.is_float) or (x.dtype is dtypes.bool is not result.dtype):
        raise DtypeError(f"{name}: the result has dtype {result.dtype.name}, x {x.dtype.name}: use astype first")
    if result.shape != x.shape:
        raise ShapeError(f"{name}: the result has shape {result.shape}, x has shape {x.shape}: they must be equal")
    return assign(x, result)


def zero_(x: Tensor) -> Tensor:
    """Writes 0 into x and returns x."""
    return assign(x, 0)


def _scaled(other: Tensor | float, alpha: float) -> Tensor | float:
    # Only a plain 1 is looked at: the value of a float that is a program's input is not asked for.
    return other if type(alpha) is int and alpha == 1 else alpha * other


def add_(x: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    """Writes x + alpha other into x and returns x."""
    return write("add_", x, add, x, _scaled(other, alpha))


def sub_(x: Tensor, other: Tensor | float, *, alpha: float = 1) -> Tensor:
    """Writes x - alpha other into x and returns x."""
    return write("sub_", x, subtract, x, _scaled(other, alpha))


def mul_(x: Tensor, other: Tensor | float) -> Tensor:
    """Writes x times other into x and returns x."""
    return write("mul_", x, multiply, x, other)


def div_(x: Tensor, other: Tensor | float) -> Tensor:
    """Writes x / other into x and returns x."""
    return write("div_", x, divide, x, other)


@elementwise
def _lerp(x, end, weight):
    return x + weight * (end - x)


def lerp_(x: Tensor, end: Tensor, weight: Tensor | float) -> Tensor:
    """Writes x + weight (end - x), a step from x to `end`, into x and returns x."""
    return write("lerp_", x, _lerp, x, end, weight)


def clamp_(x: Tensor, min: Tensor | float | None = None, max: Tensor | float | None = None) -> Tensor:
    """Writes x limited to [min, max] into x and returns x; see clip."""
    return write("clamp_", x, clip, x, min, max)


def masked_fill_(x: Tensor, mask: Tensor, value: Tensor | float) -> Tensor:
    """Writes a value into x where the mask is true, and returns x; see masked_fill."""
    return write("masked_fill_", x, masked_fill, x, mask, value)


def normal_(x: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Writes draws of a normal distribution into x and returns x; see normal."""
    options = {"generator": generator, "dtype": x.dtype, "device": x.device}
    return write("normal_", x, normal, x.shape, mean, std, **options)


def uniform_(x: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Generator | None = None) -> Tensor:
    """Writes draws of a uniform distribution on [low, high) into x and returns x; see uniform."""
    options = {"generator": generator, "dtype": x.dtype, "device": x.device}
    return write("uniform_", x, uniform, x.shape, low, high, **options)


def requires_grad_(x: Tensor, requires_grad: bool = True) -> Tensor:
    """Sets x.requires_grad and returns x."""
    x.requires_grad = requires_grad
    return x


def refuse_data(x: Tensor, value: object) -> NoReturn:
    """Raises GradientError: x.data reads x without its history, as x.detach() does, and can't be set."""
    raise GradientError("data: x.data = y came: use x.assign(y), under no_grad() where x requires a gradient")
