"""Python floats among a compiled function's arguments: what stands for them in a trace, and gets each call's value.

As an operand beside tensors such a float is an input of the program, and sums and products of it with Python numbers
are computed anew at each call. Whatever else Python asks of it needs the value, which then belongs to the signature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from .. import dtypes
from ..errors import TraceError
from .trace import Trace, line

_SUMS = ("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__")
_SIGNS = ("__neg__", "__pos__", "__abs__")
_PAIRS = (
    *_SUMS, "__truediv__", "__rtruediv__", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__", "__divmod__",
    "__rdivmod__", "__pow__", "__rpow__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
)  # fmt: skip
_OBJECTS = {
    "__class__", "__delattr__", "__dir__", "__doc__", "__getattribute__", "__init__", "__init_subclass__", "__new__",
    "__setattr__", "__sizeof__", "__subclasshook__",
}  # fmt: skip


class NeedsValue(BaseException):
    """Ends a trace that needs the value of a float argument. No Exception, so that no `except Exception` keeps it."""


class Given(NamedTuple):
    """The float of this number among the arguments."""

    number: int

    def __repr__(self) -> str:
        return f"float {self.number}"


class Computed(NamedTuple):
    """A method of float, applied to what is given or computed and to Python numbers."""

    method: str
    operands: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"{self.method}({', '.join(map(repr, self.operands))})"


def value_of(x: Any, floats: Sequence[float]) -> Any:
    """The value of a Given or Computed for these floats; a number as it is."""
    if isinstance(x, Given):
        return floats[x.number]
    if isinstance(x, Computed):
        return getattr(float, x.method)(*(value_of(operand, floats) for operand in x.operands))
    return x


class TracedFloat:
    """A float that each call brings: of Python's type float for isinstance, though no subclass, whose value C reads."""

    __slots__ = ("expression", "trace")

    def __init__(self, trace: Trace, expression: Given | Computed):
        self.trace = trace
        self.expression = expression

    __class__ = property(lambda self: float)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self.needed()

    def needed(self) -> BaseException:
        """What to raise where the value is asked for, which the trace remembers whoever catches it."""
        if self.trace.ended:
            return TraceError("a Python float was kept by a trace where it can't be replaced: return it")
        for number in _numbers(self.expression):
            self.trace.needed.setdefault(number, f"its value was needed at {line()}")
        return NeedsValue()


def _numbers(x: Any) -> Iterator[int]:
    if isinstance(x, Given):
        yield x.number
    elif isinstance(x, Computed):
        for operand in x.operands:
            yield from _numbers(operand)


def _method(name: str) -> Any:
    def method(self: TracedFloat, *operands: Any) -> Any:
        if name in _PAIRS and not isinstance(operands[0], int | float | complex):
            return NotImplemented
        kinds = {type(x) for x in operands}
        if (
            name in _SIGNS
            or (name in _SUMS and kinds <= {bool, int, float, TracedFloat})
            # The division that can't fail at a later call: one by 0 does.
            or (name == "__truediv__" and kinds <= {bool, int, float} and operands[0] != 0)
        ):
            for x in operands:
                if type(x) is TracedFloat and x.trace is not self.trace:
                    raise x.needed()
            parts = [x.expression if type(x) is TracedFloat else float(x) for x in (self, *operands)]
            return TracedFloat(self.trace, Computed(name, tuple(parts)))
        raise self.needed()

    return method


for _name in set(dir(float)) - _OBJECTS:
    setattr(TracedFloat, _name, _method(_name))
dtypes.SCALARS[TracedFloat] = "float"
