"""Symbolic numbers: stand-ins in a trace for Python floats and ints that each call brings. Floor 2.

Example: in step(x, lr) with lr = 0.1, `x - 2 * lr * g` reads the input __rmul__(lr, 2): 0.2, and 0.1 in a call
with lr = 0.05. `if lr > 0:` needs the value: then 0.1 is in the signature, and 0.05 is traced anew.

A number beside a tensor is an input of the program, and sums and products of such numbers are computed anew at each
call. Of an int a trace may also depend on how it compares: `if i < 8:` is a *condition*, and the program is one for all
i below 8. All else that Python asks of a number needs its value, which then belongs to the signature.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ... import dtypes
from ...errors import TraceError
from .executor import Trace, line
from .polynomials import Polynomial


def _swapped(f: Callable) -> Callable:
    return lambda x, y: f(y, x)


def _both_sides(**methods: Callable) -> dict[str, Callable]:
    """The methods by name, and those of the right operand: __sub__ and __rsub__."""
    found = {f"__{name}__": f for name, f in methods.items()}
    return found | {f"__r{name}__": _swapped(f) for name, f in methods.items()}


_SIGNS: dict[str, Callable] = {"__neg__": operator.neg, "__pos__": operator.pos, "__abs__": operator.abs}
_SUMS = _both_sides(add=operator.add, sub=operator.sub, mul=operator.mul)
_QUOTIENTS = _both_sides(truediv=operator.truediv, floordiv=operator.floordiv, mod=operator.mod)
_COMPARISONS = {f"__{name}__": getattr(operator, name) for name in "eq ne lt le gt ge".split()}
_SIGNS_OF = dict(zip(_COMPARISONS, "== != < <= > >=".split()))
_EVALUATED = _SIGNS | _SUMS | _QUOTIENTS | _COMPARISONS | {"__rpow__": _swapped(operator.pow)}
_PAIRS = {f"__{side}{name}__" for name in "add sub mul truediv floordiv mod divmod pow lshift rshift and or xor".split()
          for side in ("", "r")} | _COMPARISONS.keys()  # fmt: skip
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


EXPRESSIONS = (NumberArgument, Computed, Polynomial)


def is_value(path: str, value: int) -> Computed:
    """The condition that a number has this value."""
    return Computed("__eq__", (NumberArgument(path), value))


def told(condition: Computed, numbers: Mapping[str, Any]) -> str:
    """Returns a condition that these numbers don't meet, in words: what was needed, then what came."""
    method, (x, y) = condition
    if method == "__eq__" and isinstance(x, NumberArgument):
        return f"{x}: {y}, then {numbers[x.path]}"
    return f"whether {x} {_SIGNS_OF[method]} {y}"


def value_of(x: Any, numbers: Mapping[str, Any]) -> Any:
    """Returns the value of an expression for these numbers, by path; a number as it is."""
    if isinstance(x, NumberArgument):
        return numbers[x.path]
    if isinstance(x, Computed):
        return _EVALUATED[x.method](*(value_of(operand, numbers) for operand in x.operands))
    if isinstance(x, Polynomial):
        return x.value(lambda factor: value_of(factor, numbers))
    return x


class SymbolicNumber:
    """A number that each call brings: of its own kind for isinstance, though no subclass, whose value C reads."""

    __slots__ = ("expression", "kind", "trace", "value")

    def __init__(self, trace: Trace, expression: Any, kind: type, value: Any):
        self.trace = trace
        self.expression = expression
        self.kind = kind
        self.value = value  # in the call that is traced, for other threads, which may come upon it meanwhile

    __class__ = property(lambda self: self.kind)

    def __getattr__(self, name: str) -> Any:
        raise self.needed()

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self.needed()

    def computed(self, name: str, operands: tuple[Any, ...]) -> Any:
        """Returns what a method gives as a number that each call computes; None where it needs the value."""
        raise AssertionError("each kind has its own")

    def valued(self, name: str, operands: tuple[Any, ...]) -> Any:
        """Returns what a method gives that needs the value, or raises."""
        raise self.needed()

    def made(self, name: str, operands: tuple[Any, ...]) -> SymbolicNumber:
        """The result of a method, to be computed anew at each call."""
        parts = self, *operands
        expression = Computed(name, tuple(x.expression if isinstance(x, SymbolicNumber) else x for x in parts))
        return symbolic(self.trace, expression, _EVALUATED[name](*map(_plain, parts)))

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

    def computed(self, name: str, operands: tuple[Any, ...]) -> Any:
        if not {self.kind, *map(_kind, operands)} <= {int, float}:
            return None
        # The division that can't fail at a later call: one by 0 does.
        is_division = name == "__truediv__" and type(operands[0]) is not SymbolicFloat and operands[0] != 0
        return self.made(name, operands) if name in _SIGNS or name in _SUMS or is_division else None


class SymbolicInt(SymbolicNumber):
    """An int, which may be an operand beside tensors, counted with and compared.

    Where its value is asked for the trace goes on, to find all that is needed, and is thrown away in the end.
    """

    __slots__ = ()

    def computed(self, name: str, operands: tuple[Any, ...]) -> Any:
        me: Any = self
        if name == "__bool__":
            return me != 0
        if name == "__abs__":
            return -me if me < 0 else +me
        x = operands[0] if operands else 0
        if _kind(x) not in (int, float):
            return None
        if name in _QUOTIENTS:
            divisor = self if name.startswith("__r") else x
            return self.made(name, operands) if type(divisor) is not SymbolicFloat and divisor != 0 else None
        if _kind(x) is float:
            if name in _COMPARISONS and type(x) is float:
                return self.compared(name, self, x)
            is_power = name == "__rpow__" and type(x) is float and x > 0
            return self.made(name, operands) if name in _SUMS or is_power else None
        if name in _COMPARISONS:
            return self.compared(name, me - x, 0)
        terms = _of_int(self).computed(name, _of_int(x)) if name in _SIGNS or name in _SUMS else None
        if terms is None:
            return None
        value = _EVALUATED[name](*map(_plain, (self, *operands)))
        return value if terms.is_constant else SymbolicInt(self.trace, terms, int, value)

    def compared(self, name: str, x: Any, y: Any) -> bool:
        """The outcome of a comparison, on which the trace depends from now on."""
        if not isinstance(x, SymbolicInt):
            return _EVALUATED[name](x, y)
        test = Computed(name, (x.expression, y))
        if self.trace.ended and test not in self.trace.conditions:  # too late
            raise self.needed()
        return self.trace.conditions.setdefault(test, _EVALUATED[name](x.value, y))

    def valued(self, name: str, operands: tuple[Any, ...]) -> Any:
        error = self.needed()
        if self.trace.ended or name == "__hash__":  # no cache may get it for a key
            raise error
        for x in operands:
            if isinstance(x, SymbolicNumber):
                error = x.needed()
                if not isinstance(x, SymbolicInt):
                    raise error
        return getattr(self.value, name)(*map(_plain, operands))


def symbolic(trace: Trace, expression: Any, value: Any) -> SymbolicNumber:
    """Returns the stand-in for a number, of the kind of its value in the call that is traced."""
    kind = type(value)
    return (SymbolicInt if kind is int else SymbolicFloat)(trace, expression, kind, value)


def _kind(x: Any) -> type:
    """The kind of number that x is, and bool's is int."""
    if isinstance(x, SymbolicNumber):
        return x.kind
    return int if type(x) is bool else type(x)


def _plain(x: Any) -> Any:
    return x.value if isinstance(x, SymbolicNumber) else x


def _of_int(x: Any) -> Polynomial:
    return Polynomial.of(x.expression if isinstance(x, SymbolicNumber) else int(x))


def _paths(x: Any) -> Iterator[str]:
    if isinstance(x, NumberArgument):
        yield x.path
    elif isinstance(x, Computed | Polynomial):
        for operand in x.operands:
            yield from _paths(operand)


def _method(name: str) -> Any:
    def method(self: SymbolicNumber, *operands: Any) -> Any:
        if not (self.trace.ended or self.trace.is_running):
            return getattr(self.value, name)(*operands)
        if name in _PAIRS and not isinstance(operands[0], int | float | complex):
            return NotImplemented
        for x in operands:
            if isinstance(x, SymbolicNumber) and x.trace is not self.trace:
                raise x.needed()
        found = self.computed(name, operands)
        return self.valued(name, operands) if found is None else found

    return method


for _name in {*dir(float), *dir(int)} - _OBJECTS:
    if callable(getattr(int, _name, None) or getattr(float, _name)):
        setattr(SymbolicNumber, _name, _method(_name))
dtypes.SCALARS[SymbolicFloat] = "float"
dtypes.SCALARS[SymbolicInt] = "signed"
