"""Symbolic numbers: stand-ins in a trace for Python floats and ints that each call brings. Floor 2.

Example: in step(x, lr) with lr = 0.1, `x - 2 * lr * g` reads the input __rmul__(lr, 2): 0.2, and 0.1 in a call
with lr = 0.05. `if lr > 0:` needs the value: then 0.1 is in the signature, and 0.05 is traced anew.

A float beside a tensor is an input of the program, and sums and products of such numbers are computed anew at each
call. All else that Python asks of one needs its value, which then belongs to the signature.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ... import dtypes
from ...errors import TraceError
from .executor import Trace, line


def _swapped(f: Callable) -> Callable:
    return lambda x, y: f(y, x)


_SIGNS: dict[str, Callable] = {"__neg__": operator.neg, "__pos__": operator.pos, "__abs__": operator.abs}
_SUMS: dict[str, Callable] = {"__add__": operator.add, "__sub__": operator.sub, "__mul__": operator.mul}
_SUMS.update({f"__r{name[2:]}": _swapped(f) for name, f in _SUMS.items()})
_EVALUATED: dict[str, Callable] = _SIGNS | _SUMS | {"__truediv__": operator.truediv}
_PAIRS = {f"__{side}{name}__" for name in "add sub mul truediv floordiv mod divmod pow lshift rshift and or xor".split()
          for side in ("", "r")} | {f"__{name}__" for name in "eq ne lt le gt ge".split()}  # fmt: skip
_OBJECTS = {
    "__class__", "__delattr__", "__dir__", "__doc__", "__getattribute__", "__getstate__", "__init__",
    "__init_subclass__", "__new__", "__setattr__", "__sizeof__", "__subclasshook__",
}  # fmt: skip


class NeedsValue(BaseException):
    """Ends a trace that needs the value of a number. No Exception, so that no `except Exception` keeps it."""


class NumberArgument(NamedTuple):
    """The number that this path leads to."""

    path: str

    def __repr__(self) -> str:
        return self.path


class Computed(NamedTuple):
    """An operator applied to arguments, computed numbers and Python numbers."""

    method: str
    operands: tuple[Any, ...]

    def __repr__(self) -> str:
        return f"{self.method}({', '.join(map(repr, self.operands))})"


def value_of(x: Any, numbers: Mapping[str, Any]) -> Any:
    """Returns the value of a NumberArgument or Computed for these numbers, by path; a number as it is."""
    if isinstance(x, NumberArgument):
        return numbers[x.path]
    if isinstance(x, Computed):
        return _EVALUATED[x.method](*(value_of(operand, numbers) for operand in x.operands))
    return x


class SymbolicNumber:
    """A number that each call brings: of its own kind for isinstance, though no subclass, whose value C reads."""

    __slots__ = ("expression", "kind", "trace", "value")

    def __init__(self, trace: Trace, expression: NumberArgument | Computed, kind: type, value: Any):
        self.trace = trace
        self.expression = expression
        self.kind = kind
        self.value = value  # in the call that is traced, for other threads, which may come upon it meanwhile

    __class__ = property(lambda self: self.kind)

    def __getattr__(self, name: str) -> Any:
        raise self.needed()

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self.needed()

    def needed(self) -> BaseException:
        """Returns the error where the value is asked for, which the trace remembers whoever catches it."""
        if self.trace.ended:
            what = f"a Python {self.kind.__name__} was kept by a trace where it can't be replaced"
            return TraceError(f"compile: {what}: return it")
        for path in _paths(self.expression):
            self.trace.needed.setdefault(path, f"its value was needed at {line()}")
        return NeedsValue()


class SymbolicFloat(SymbolicNumber):
    """A float, which may be an operand beside tensors."""

    __slots__ = ()


class SymbolicInt(SymbolicNumber):
    """An int, which can be counted with."""

    __slots__ = ()


def symbolic(trace: Trace, expression: NumberArgument | Computed, value: Any) -> SymbolicNumber:
    """Returns the stand-in for a number, of the kind of its value in the call that is traced."""
    kind = type(value)
    return (SymbolicInt if kind is int else SymbolicFloat)(trace, expression, kind, value)


def _paths(x: Any) -> Iterator[str]:
    if isinstance(x, NumberArgument):
        yield x.path
    elif isinstance(x, Computed):
        for operand in x.operands:
            yield from _paths(operand)


def _kind(x: Any) -> type:
    """The kind of number that x is, and bool's is int."""
    if isinstance(x, SymbolicNumber):
        return x.kind
    return int if type(x) is bool else type(x)


def _method(name: str) -> Any:
    def method(self: SymbolicNumber, *operands: Any) -> Any:
        if not (self.trace.ended or self.trace.is_running):
            return getattr(self.value, name)(*operands)
        if name in _PAIRS and not isinstance(operands[0], int | float | complex):
            return NotImplemented
        kinds = {_kind(x) for x in (self, *operands)}
        # The division that can't fail at a later call: one by 0 does.
        is_division = name == "__truediv__" and self.kind is float and type(operands[0]) in (int, float) and operands[0]
        if kinds <= {int, float} and (name in _SIGNS or name in _SUMS or is_division):
            for x in operands:
                if isinstance(x, SymbolicNumber) and x.trace is not self.trace:
                    raise x.needed()
            parts = tuple(x.expression if isinstance(x, SymbolicNumber) else x for x in (self, *operands))
            values = (x.value if isinstance(x, SymbolicNumber) else x for x in (self, *operands))
            return symbolic(self.trace, Computed(name, parts), _EVALUATED[name](*values))
        raise self.needed()

    return method


for _name in {*dir(float), *dir(int)} - _OBJECTS:
    setattr(SymbolicNumber, _name, _method(_name))
dtypes.SCALARS[SymbolicFloat] = "float"
dtypes.SCALARS[SymbolicInt] = "signed"
