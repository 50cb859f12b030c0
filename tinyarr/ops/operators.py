"""Python's operators on tensors, by the names of Tensor's methods. Floor 1."""

from __future__ import annotations

from collections.abc import Callable

from .. import dtypes
from ..errors import GradientError, ShapeError
from ..tape import is_nested, recording
from ..tensor import Tensor
from .assign import assign
from .elementwise import (
    abs,
    add,
    bitwise_and,
    bitwise_invert,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    divide,
    equal,
    floor_divide,
    greater,
    greater_equal,
    less,
    less_equal,
    multiply,
    negative,
    not_equal,
    pow,
    remainder,
    subtract,
)
from .matmul import matmul
from .primitive import apply

OPERATORS: dict[str, Callable] = {}  # by the name of Tensor's method


def _binary(symbol: str, primitive) -> None:
    def forward(self: Tensor, other):
        return apply(primitive, self, other)

    def reflected(self: Tensor, other):
        return apply(primitive, other, self)

    OPERATORS[f"__{symbol}__"], OPERATORS[f"__r{symbol}__"] = forward, reflected


for _symbol, _primitive in {
    "add": add,
    "sub": subtract,
    "mul": multiply,
    "truediv": divide,
    "floordiv": floor_divide,
    "mod": remainder,
    "and": bitwise_and,
    "or": bitwise_or,
    "xor": bitwise_xor,
    "lshift": bitwise_left_shift,
    "rshift": bitwise_right_shift,
}.items():
    _binary(_symbol, _primitive)


def _in_place(symbol: str, sign: str) -> None:
    """x op= y makes a new tensor, as `x = x op y` does, but for a leaf that requires a gradient.

    Someone means to train that: under no_grad() it is written, and while operations are recorded that is refused.
    """
    operation = OPERATORS[f"__{symbol}__"]

    def rebind(self: Tensor, other):
        if self._requires_grad and self.node is None and not is_nested():  # a variable of grad() is a leaf too
            if not recording.get():
                return assign(self, operation(self, other))
            raise GradientError(
                f"{sign}=: the tensor is a leaf that requires a gradient, which this would leave as it is: write it "
                f"(or p.assign(p {sign} ...)) under no_grad() to update it, or y = p {sign} ... for a new tensor"
            )
        return operation(self, other)

    OPERATORS[f"__i{symbol}__"] = rebind


def _comparison(symbol: str, primitive) -> None:
    def compare(self: Tensor, other):
        # What can't be compared is left to Python: `x == object()` is False, `x < object()` a TypeError. What says
        # that it is an array could be compared: it goes to apply, which takes tensors and refuses the others aloud.
        known = hasattr(other, "__array__") or dtypes.scalar_kind(other) is not None
        return apply(primitive, self, other) if known else NotImplemented

    OPERATORS[f"__{symbol}__"] = compare


for _symbol, _primitive in {
    "eq": equal,
    "ne": not_equal,
    "lt": less,
    "le": less_equal,
    "gt": greater,
    "ge": greater_equal,
}.items():
    _comparison(_symbol, _primitive)


def _truth(self: Tensor) -> bool:
    if self.size != 1:
        raise ShapeError(
            f"bool: the truth of a tensor of shape {self.shape} is ambiguous: compare one element, or use where(...)"
        )
    return bool(self.item())


OPERATORS |= {
    "__pow__": lambda self, other: pow(self, other),
    "__rpow__": lambda self, other: pow(other, self),
    "__neg__": lambda self: negative(self),
    "__pos__": lambda self: self,
    "__abs__": lambda self: abs(self),
    "__invert__": lambda self: bitwise_invert(self),
    "__matmul__": lambda self, other: matmul(self, other),
    "__rmatmul__": lambda self, other: matmul(other, self),
    "__bool__": _truth,
}

for _symbol, _sign in {
    "add": "+", "sub": "-", "mul": "*", "truediv": "/", "floordiv": "//", "mod": "%", "pow": "**", "matmul": "@",
}.items():  # fmt: skip
    _in_place(_symbol, _sign)
