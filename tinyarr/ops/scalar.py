"""The scalar language: what an elementwise operation does to one element, written once. Floor 1.

An elementwise operation is a Python function of expressions. It is traced here without dtypes into a small graph
(`Expr`); `typing.py` types it per tuple of dtypes; each backend prints or evaluates the result (NumPy, C, CUDA); and
`derivative` differentiates it. The operations are the closed table OPERATIONS below, each total: defined for
every input, with NumPy's result.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ..dtypes import Dtype
from ..errors import GradientError


class Expr:
    """A node of an expression. Equal nodes are one object, so subexpressions are shared by construction.

    `value` holds what is not an argument: the number of an input, a constant, the target of a cast.
    """

    __slots__ = ("args", "op", "value")

    op: str
    args: tuple[Expr, ...]
    value: Any

    def __repr__(self) -> str:
        inside = [repr(a) for a in self.args] + ([] if self.value is None else [repr(self.value)])
        return f"{self.op}({', '.join(inside)})"

    def __bool__(self):
        raise TypeError(
            f"expression: the truth of {self!r} is not known while the expression is traced: "
            "use where(condition, a, b) in place of `if`, `and`, `or`, `not`"
        )

    def __add__(self, y):
        return make("add", self, y)

    def __radd__(self, y):
        return make("add", y, self)

    def __sub__(self, y):
        return make("subtract", self, y)

    def __rsub__(self, y):
        return make("subtract", y, self)

    def __mul__(self, y):
        return make("multiply", self, y)

    def __rmul__(self, y):
        return make("multiply", y, self)

    def __truediv__(self, y):
        return make("divide", self, y)

    def __rtruediv__(self, y):
        return make("divide", y, self)

    def __floordiv__(self, y):
        return make("floor_divide", self, y)

    def __rfloordiv__(self, y):
        return make("floor_divide", y, self)

    def __mod__(self, y):
        return make("remainder", self, y)

    def __rmod__(self, y):
        return make("remainder", y, self)

    def __pow__(self, y):
        return power(self, y)

    def __rpow__(self, y):
        return make("power", y, self)

    def __neg__(self):
        return make("negative", self)

    def __abs__(self):
        return make("abs", self)

    def __and__(self, y):
        return make("bitwise_and", self, y)

    def __or__(self, y):
        return make("bitwise_or", self, y)

    def __xor__(self, y):
        return make("bitwise_xor", self, y)

    def __invert__(self):
        return make("bitwise_invert", self)

    def __lshift__(self, y):
        return make("bitwise_left_shift", self, y)

    def __rshift__(self, y):
        return make("bitwise_right_shift", self, y)

    def __lt__(self, y):
        return make("less", self, y)

    def __le__(self, y):
        return make("less_equal", self, y)

    def __gt__(self, y):
        return make("greater", self, y)

    def __ge__(self, y):
        return make("greater_equal", self, y)

    def __eq__(self, y):
        return make("equal", self, y)

    def __ne__(self, y):
        return make("not_equal", self, y)

    __hash__ = object.__hash__
    __array_ufunc__ = None  # so that NumPy's functions refuse an expression

    def __float__(self):
        raise TypeError("expression: it has no value yet while it is traced: use tinyarr's functions")

    def __getattr__(self, name: str):
        raise AttributeError(
            f"expression: it stands for one element and has no {name!r}: use operators and tinyarr's elementwise "
            "functions on it; a reduction goes outside, or is tinyarr.row's in @rowwise"
        )


_interned: dict[tuple, Expr] = {}


def _intern(op: str, args: tuple[Expr, ...], value=None) -> Expr:
    # The type tells True from 1, and repr 0.0 from -0.0, which compare equal.
    key = (op, *map(id, args), type(value), repr(value) if type(value) is float else value)
    node = _interned.get(key)
    if node is None:
        node = object.__new__(Expr)
        node.op, node.args, node.value = op, args, value
        node = _interned.setdefault(key, node)  # another thread may have made it meanwhile
    return node


def as_expr(x) -> Expr:
    """`x` itself, or a weak constant for a Python bool, int or float."""
    if isinstance(x, Expr):
        return x
    if type(x) in (bool, int, float):
        return _intern("constant", (), x)
    raise TypeError(f"{x!r} ({type(x).__name__}) can't stand in an expression: use Python numbers and tensors")


def make(op: str, *args, value=None) -> Expr:
    """The node that applies `op` of the table to `args`."""
    return _intern(op, tuple(map(as_expr, args)), value)


def variable(number: int) -> Expr:
    """Input `number` of the operation."""
    return _intern("input", (), number)


def power(x, y) -> Expr:
    """x**y; whole exponents from 1 to 8 become products, which are exact more often and far faster than pow.

    So do whole floats up to 8 and -1.0 and -2.0, whose result is floating although x may be an integer.
    """
    if type(y) is float and y.is_integer() and (1 <= y <= 8 or y in (-1, -2)):
        x, y = (1 / x, -int(y)) if y < 0 else (x * 1.0, int(y))
    if type(y) is not int or not 1 <= y <= 8:
        return make("power", x, y)
    if y == 1:
        return x
    half = power(x * x, y // 2)
    return half * x if y % 2 else half


def where(condition, x, y) -> Expr:
    """x where the condition holds, else y."""
    return make("where", condition, x, y)


def cast(x, dtype: Dtype) -> Expr:
    """x rounded or converted to a dtype, whatever the operands' dtypes are."""
    return make("cast", x, value=dtype)


def bitcast(x, dtype: Dtype) -> Expr:
    """The bits of x read as another dtype of the same size."""
    return make("bitcast", x, value=dtype)


def weak(x) -> Expr:
    """x as a Python scalar: computed in float64 (or int64) and taking the dtype of the strong operand that it meets."""
    return make("weak", x)


def index(axis: int) -> Expr:
    """The element's position along an axis of the result (int64); negative axes count from the end."""
    return _intern("index", (), axis)


def random_bits(key, counter, *, stream: int = 0) -> Expr:
    """32 random bits (uint32), a pure function of key, counter, stream and the element's row-major position."""
    return make("random_bits", key, counter, value=stream)


@dataclass(frozen=True)
class Operation:
    """One operation of the language.

    typing: how the result's dtype follows from the arguments' (see typing.py).
    vjp: (g, out, *args) -> for each argument its gradient, or None where it is zero; itself None for operations
    through which no gradient flows.
    """

    name: str
    arity: int
    typing: str
    vjp: Callable[..., tuple[Expr | None, ...]] | None = None


OPERATIONS: dict[str, Operation] = {}


def _operation(name: str, arity: int, typing: str, vjp: Callable | None = None) -> None:
    OPERATIONS[name] = Operation(name, arity, typing, vjp)


def _f(name: str) -> Callable[..., Expr]:
    return lambda *args: make(name, *args)


exp, log, log1p, sqrt, sin, cos, sinh, cosh = map(_f, ("exp", "log", "log1p", "sqrt", "sin", "cos", "sinh", "cosh"))
sign, signbit, floor_divide, equal = map(_f, ("sign", "signbit", "floor_divide", "equal"))
maximum, minimum, hypot = map(_f, ("maximum", "minimum", "hypot"))


def _extremum_vjp(g, out, x, y, x_wins, y_wins):
    """Ties are split evenly, so that the gradient does not depend on the order of the operands."""
    tie = where(equal(x, y), 0.5 * g, 0)
    return where(x_wins, g, tie), where(y_wins, g, tie)


def _power_vjp(g, out, x, y):
    """d/dx = y x^(y-1), 0 where y = 0; d/dy = x^y log x, 0 where x = 0 (the limit for y > 0)."""
    dx = where(equal(y, 0), 0, g * (y * make("power", x, y - 1)))
    dy = where(equal(x, 0), 0, g * (out * log(x)))
    return dx, dy


def _or_one(r):
    """1 in place of 0: what is divided by it is 0 there, and so is the quotient."""
    return where(equal(r, 0), 1, r)


def _hypot_vjp(g, out, x, y):
    return g * (x / _or_one(out)), g * (y / _or_one(out))


def _atan2_vjp(g, out, y, x):
    r = _or_one(hypot(x, y))  # x**2 + y**2 would overflow where the angle does not
    return g * (x / r) / r, -g * (y / r) / r


_operation("add", 2, "arithmetic", lambda g, out, x, y: (g, g))
_operation("subtract", 2, "arithmetic", lambda g, out, x, y: (g, -g))
_operation("multiply", 2, "arithmetic", lambda g, out, x, y: (g * y, g * x))
_operation("divide", 2, "float", lambda g, out, x, y: (g / y, -(g * out) / y))
_operation("floor_divide", 2, "arithmetic", lambda g, out, x, y: (None, None))
_operation("remainder", 2, "arithmetic", lambda g, out, x, y: (g, -g * floor_divide(x, y)))
_operation("power", 2, "arithmetic", _power_vjp)
_operation("negative", 1, "arithmetic", lambda g, out, x: (-g,))
_operation("abs", 1, "arithmetic", lambda g, out, x: (g * sign(x),))
_operation("sign", 1, "arithmetic", lambda g, out, x: (None,))
_operation("maximum", 2, "ordered", lambda g, out, x, y: _extremum_vjp(g, out, x, y, x > y, y > x))
_operation("minimum", 2, "ordered", lambda g, out, x, y: _extremum_vjp(g, out, x, y, x < y, y < x))
for _name in ("floor", "ceil", "trunc", "round"):
    _operation(_name, 1, "arithmetic", lambda g, out, x: (None,))

_operation("sqrt", 1, "float", lambda g, out, x: (g * (0.5 / out),))
_operation("exp", 1, "float", lambda g, out, x: (g * out,))
_operation("expm1", 1, "float", lambda g, out, x: (g * (out + 1),))
_operation("log", 1, "float", lambda g, out, x: (g / x,))
_operation("log1p", 1, "float", lambda g, out, x: (g / (1 + x),))
_operation("log2", 1, "float", lambda g, out, x: (g / (x * math.log(2)),))
_operation("log10", 1, "float", lambda g, out, x: (g / (x * math.log(10)),))
_operation("sin", 1, "float", lambda g, out, x: (g * cos(x),))
_operation("cos", 1, "float", lambda g, out, x: (-g * sin(x),))
_operation("tan", 1, "float", lambda g, out, x: (g * (1 + out * out),))
_operation("asin", 1, "float", lambda g, out, x: (g / sqrt(1 - x * x),))
_operation("acos", 1, "float", lambda g, out, x: (-g / sqrt(1 - x * x),))
_operation("atan", 1, "float", lambda g, out, x: (g / (1 + x * x),))
_operation("atan2", 2, "float", _atan2_vjp)
_operation("sinh", 1, "float", lambda g, out, x: (g * cosh(x),))
_operation("cosh", 1, "float", lambda g, out, x: (g * sinh(x),))
_operation("tanh", 1, "float", lambda g, out, x: (g * (1 - out * out),))
_operation("asinh", 1, "float", lambda g, out, x: (g / hypot(x, 1),))
_operation("acosh", 1, "float", lambda g, out, x: (g / (sqrt(x - 1) * sqrt(x + 1)),))
_operation("atanh", 1, "float", lambda g, out, x: (g / (1 - x * x),))
_operation("erf", 1, "float", lambda g, out, x: (g * (2 / math.sqrt(math.pi) * exp(-x * x)),))
_operation("hypot", 2, "float", _hypot_vjp)
_operation("copysign", 2, "float", lambda g, out, x, y: (where(equal(signbit(x), signbit(y)), g, -g), None))
_operation("nextafter", 2, "wide float", lambda g, out, x, y: (g, None))

for _name in ("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"):
    _operation(_name, 2, "comparison")
for _name in ("isnan", "isinf", "isfinite", "signbit"):
    _operation(_name, 1, "predicate")
for _name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
    _operation(_name, 2, "bits")
_operation("bitwise_invert", 1, "bits")
for _name in ("bitwise_left_shift", "bitwise_right_shift"):
    _operation(_name, 2, "integers")

_operation("where", 3, "where", lambda g, out, c, x, y: (None, where(c, g, 0), where(c, 0, g)))
_operation("cast", 1, "cast", lambda g, out, x: (g if out.value.is_float else None,))
_operation("weak", 1, "weak", lambda g, out, x: (g,))
_operation("bitcast", 1, "bitcast")
_operation("random_bits", 2, "random_bits")

row_sum, row_max, row_min, column_sum = map(_f, ("row_sum", "row_max", "row_min", "column_sum"))


def _row_extremum_vjp(g, out, x):
    """Ties share the gradient evenly."""
    attained = equal(x, out)
    return (where(attained, g / row_sum(where(attained, 1, 0)), 0),)


FOLDS = {
    name: Operation(name, 1, "fold", vjp)
    for name, vjp in (
        ("row_sum", lambda g, out, x: (g,)), ("row_max", _row_extremum_vjp), ("row_min", _row_extremum_vjp),
        ("column_sum", lambda g, out, x: (g,)),
    )
}  # fmt: skip
"""Of row expressions (rowwise.py) alone: over a row, or over all rows."""


def is_fold(node: Expr) -> bool:
    """True where a node joins the elements of a row, or of all rows."""
    return node.op in FOLDS


def operation_of(node: Expr) -> Operation:
    return OPERATIONS.get(node.op) or FOLDS[node.op]


def with_gradient(result: Expr, operands: tuple[Expr, ...], vjp: Callable) -> Expr:
    """`result`, whose derivative with respect to `operands` is `vjp(g, out, *operands)` whatever it is made of.

    The node has no value of its own: typing passes through it.
    """
    return _intern("custom", (result, *operands), vjp)


def topological(outputs: Iterable[Expr]) -> Iterator[Expr]:
    """Every node that the outputs need, arguments before users. Iterative: expressions may be deep."""
    seen: set[int] = set()
    stack = [(node, False) for node in reversed(tuple(outputs))]
    while stack:
        node, ready = stack.pop()
        if ready:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((a, False) for a in reversed(node.args))


def variables(outputs: Iterable[Expr]) -> list[int]:
    """The numbers of the inputs that the outputs read, in ascending order."""
    return sorted(node.value for node in topological(outputs) if node.op == "input")


def substitute(outputs: Iterable[Expr], replacements: dict[Expr, Expr]) -> tuple[Expr, ...]:
    """The outputs with each node of `replacements` exchanged for its value, outermost match first."""
    outputs = tuple(outputs)
    new: dict[Expr, Expr] = {}
    for node in topological(outputs):
        if node in replacements:
            new[node] = replacements[node]
        elif node.args:
            new[node] = _intern(node.op, tuple(new[a] for a in node.args), node.value)
        else:
            new[node] = node
    return tuple(new[o] for o in outputs)


def without_gradients(outputs: Iterable[Expr]) -> tuple[Expr, ...]:
    """The outputs without what `with_gradient` says of their derivatives."""
    outputs = tuple(outputs)
    new: dict[Expr, Expr] = {}
    for node in topological(outputs):
        args = tuple(new[a] for a in node.args)
        new[node] = args[0] if node.op == "custom" else _intern(node.op, args, node.value) if args else node
    return tuple(new[o] for o in outputs)


def _unmasked(g: Expr) -> tuple[Expr, Callable[[Expr], Expr]]:
    """A cotangent without the `where` that makes it 0 on one side, and the function that puts the `where` back.

    A branch that was not taken has the cotangent 0, but 0 times an infinite slope is NaN: so the slope is multiplied
    with the cotangent as it was, and the result is what becomes 0.
    """
    if g.op == "where":
        condition, x, y = g.args
        if y.op == "constant" and y.value == 0:
            return x, lambda contribution: where(condition, contribution, 0)
        if x.op == "constant" and x.value == 0:
            return y, lambda contribution: where(condition, 0, contribution)
    return g, lambda contribution: contribution


def derivative(
    outputs: tuple[Expr, ...],
    cotangents: tuple[Expr | None, ...],
    inputs: Iterable[int],
    fitted: Callable[[Expr, Expr, Expr], Expr] = lambda node, argument, contribution: contribution,
) -> list[Expr | None]:
    """Reverse-mode derivative: for each input number, the sum over outputs of cotangent * d(output)/d(input).

    None where no gradient flows. `fitted` makes of what a node contributes to an argument's cotangent one that belongs
    to the argument: summed, where the node broadcasts it. Raises GradientError where an operation on the way has no
    derivative.
    """
    adjoint: dict[Expr, Expr] = {}

    def add(node: Expr, g: Expr | None) -> None:
        if g is not None:
            adjoint[node] = adjoint[node] + g if node in adjoint else g

    for output, cotangent in zip(outputs, cotangents, strict=True):
        add(output, cotangent)
    wanted = {variable(i) for i in inputs}
    leads_to_wanted: set[Expr] = set()
    order = list(topological(outputs))
    for node in order:
        if node in wanted or any(a in leads_to_wanted for a in node.args):
            leads_to_wanted.add(node)
    for node in reversed(order):
        if node not in adjoint or node not in leads_to_wanted or not node.args:
            continue
        if node.op == "custom":
            args, vjp = node.args[1:], node.value
        else:
            args, vjp = node.args, operation_of(node).vjp
        if vjp is None:
            if operation_of(node).typing in ("comparison", "predicate", "bits", "integers"):
                continue
            raise GradientError(f"expression: {node.op} has no derivative: write the gradient by hand with @f.gradient")
        g, restored = _unmasked(adjoint[node])
        for argument, contribution in zip(args, vjp(g, node, *args), strict=True):
            if argument in leads_to_wanted and contribution is not None:
                add(argument, fitted(node, argument, restored(contribution)))
    return [adjoint.get(variable(i)) for i in inputs]
