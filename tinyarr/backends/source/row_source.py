"""Row expressions printed as code that is C and CUDA C++ alike, but for the loops over a row. Floor 2.

What varies along the row is computed inside loops over its elements, one for each fold and a last one for the results;
statistics come between. So softmax is three loops, for the maximum, the sum and the results, and the exponential,
which two of them need, is kept from one to the next. A `where` of statistics that are folds is an `if`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ... import dtypes
from ...dtypes import Dtype
from ...ops.rowwise_composite import COSTLY
from ...ops.typing import Typed, TypedStep
from .scalar_source import TYPES, constant, named, statement, stored

FOLDS = {"row_sum": "sum", "row_max": "max", "row_min": "min"}


@dataclass(frozen=True)
class Joining:
    """A sum, max or min of elements, in the dtype in which is computed."""

    name: str
    dtype: Dtype

    @property
    def type(self) -> str:
        return TYPES[self.dtype]

    @property
    def start(self) -> str:
        """Returns the value that changes nothing that is joined to it."""
        if self.name == "sum":
            return "0"
        if self.dtype.is_float:
            return "-INFINITY" if self.name == "max" else "INFINITY"
        if self.dtype is dtypes.bool:
            return "0" if self.name == "max" else "1"
        limits = dtypes.iinfo(self.dtype)
        return constant(limits.min if self.name == "max" else limits.max, self.dtype)

    def join(self, total: str, x: str) -> str:
        if self.name == "sum":
            return f"{total} += {x};"
        if self.dtype.is_float:
            return f"{total} = {self.name}imum_{self.dtype.name}({total}, {x});"
        return f"{total} = {total} {'>' if self.name == 'max' else '<'} {x} ? {total} : {x};"


class Loops(Protocol):
    """The part that differs between backends. A body is a list of statements for element `index` of the row."""

    inputs: list[str]  # lvalues of the operands' elements
    index: str
    position: str  # the element's row-major number

    def each(self, body: Sequence[str], stores: dict[int, str]) -> str:
        """The body for every element, and for some results what is stored there."""

    def fold(self, name: str, how: Joining, value: str, body: Sequence[str]) -> str:
        """Declares `name`: the values joined that the body makes for every element."""

    def keep(self, name: str, dtype: Dtype) -> tuple[str, str]:
        """The declaration of room for a value of each element, and the lvalue of that."""


@dataclass
class _Scope:
    """Statements, and which values they make; `taken` is what is known of conditions inside an `if`."""

    lines: list[str] = field(default_factory=list)
    printed: set[int] = field(default_factory=set)
    taken: dict[int, bool] = field(default_factory=dict)


class RowCode:
    """The code for a row of a typed expression; along: which inputs vary along the row."""

    def __init__(self, typed: Typed, along: Sequence[bool], loops: Loops | None = None):
        self.typed = typed
        self._loops: Any = loops
        self.varies = varying(typed, along)
        self._has_fold = _reaching(typed.values, lambda v: v.op in FOLDS)
        self._scope = _Scope(printed={n for n, v in enumerate(typed.values) if v.op == "constant"})
        self._kept: dict[int, str] = {}
        self._uses: dict[int, int] = {}

    def hoisted(self) -> list[str]:
        """The statements before the loop over rows, for what depends on 0-d operands alone."""
        uniform = [n for n, v in enumerate(self.typed.values) if v.uniform and v.op != "constant"]
        self._scope.printed.update(uniform)
        return [self.statement_of(n) for n in uniform]

    def statistics(self, numbers: Iterable[int]) -> list[str]:
        """The statements that make values that don't vary along the row; after it they can be named."""
        before = len(self._scope.lines)
        for n in numbers:
            self._require(n, self._scope)
        return self._scope.lines[before:]

    def results(self, outputs: Sequence[int], more: Sequence[str] = (), made: Sequence[int] = ()) -> list[str]:
        """The last loop, which stores varying results; `more` statements read varying values, those `made`."""
        numbers = [*(self.typed.outputs[i] for i in outputs), *made]
        stores = {i: stored(self.typed, i) for i in outputs}
        before = len(self._scope.lines)
        body = self._body(numbers, self._scope)
        return [*self._scope.lines[before:], self._loops.each([*body, *more], stores)]

    def inside(self, numbers: Iterable[int]) -> list[str]:
        """The statements inside a loop that make varying values; what they need of statistics is there."""
        return [self.statement_of(n) for n in self._under(numbers)]

    def needed(self, numbers: Iterable[int]) -> list[int]:
        """The values that don't vary which those that do are made of."""
        found: dict[int, None] = {}
        for n in numbers:
            if not self.varies[n]:
                found[n] = None
        for n in self._under(numbers):
            found |= dict.fromkeys(a for a in self.typed.values[n].args if not self.varies[a])
        return [n for n in found if self.typed.values[n].op != "constant"]

    def prepare(self, results: Sequence[int]) -> int:
        """Finds what several loops need and is costly to make, to keep it in the first of them; returns how many."""
        values = self.typed.values
        folded = [v.args[0] for n, v in enumerate(values) if v.op in FOLDS]
        for group in [*([n] for n in folded), results]:
            for n in self._under(group):
                if values[n].op in COSTLY:
                    self._uses[n] = self._uses.get(n, 0) + 1
        return sum(uses > 1 for uses in self._uses.values())

    def _under(self, numbers: Iterable[int], kept: Iterable[int] = ()) -> list[int]:
        """The varying values that some are made of, those first, in order; not below the `kept` ones."""
        found: set[int] = set()
        stack = [n for n in numbers if self.varies[n]]
        while stack:
            n = stack.pop()
            if n not in found:
                found.add(n)
                if n not in kept:
                    stack += [a for a in self.typed.values[n].args if self.varies[a]]
        return sorted(found)

    def read(self, numbers: Iterable[int]) -> list[int]:
        """The inputs that values, once what they need of statistics is there, are made of."""
        numbers = list(numbers)
        under = [*self.needed(numbers), *self._under(numbers)]
        return sorted({v.value for n in under if (v := self.typed.values[n]).op == "input" and not v.uniform})

    def statement_of(self, n: int) -> str:
        """The declaration of a value."""
        loops = self._loops
        return statement(self.typed, n, loops.inputs, [loops.index], loops.position)

    def _body(self, numbers: Iterable[int], scope: _Scope) -> list[str]:
        """The statements inside a loop; costly ones are kept, or were, for a later loop."""
        numbers = list(numbers)
        for n in self.needed(numbers):
            self._require(n, scope)
        lines = []
        for n in self._under(numbers, self._kept):
            v = self.typed.values[n]
            if n in self._kept:
                lines.append(f"{TYPES[v.dtype]} v{n} = {self._kept[n]};")
                continue
            lines.append(self.statement_of(n))
            if self._uses.get(n, 0) > 1 and scope is self._scope:
                room, place = self._loops.keep(f"v{n}", v.dtype)
                scope.lines.append(room)
                self._kept[n] = place
                lines.append(f"{place} = v{n};")
        return lines

    def _require(self, n: int, scope: _Scope) -> None:
        """Prints what makes a value that doesn't vary, unless it is there."""
        if n in scope.printed:
            return
        v = self.typed.values[n]
        if v.op == "where" and self._has_fold[n] and (self._has_fold[v.args[1]] or self._has_fold[v.args[2]]):
            self._branch(v.args[0], n, scope)
            return
        if v.op in FOLDS:
            body = self._body(v.args, scope)
            value = named(v.args[0], self.typed.values[v.args[0]])
            scope.lines.append(self._loops.fold(f"v{n}", Joining(FOLDS[v.op], v.dtype), value, body))
        else:
            for a in v.args:
                self._require(a, scope)
            scope.lines.append(self.statement_of(n))
        scope.printed.add(n)

    def _branch(self, condition: int, number: int, scope: _Scope) -> None:
        """Prints an `if` for all choices between statistics on one condition, and computes only the side taken."""
        values = self.typed.values
        if condition in scope.taken:
            side = values[number].args[1 if scope.taken[condition] else 2]
            self._require(side, scope)
            scope.lines.append(f"{TYPES[values[number].dtype]} v{number} = {named(side, values[side])};")
            scope.printed.add(number)
            return
        self._require(condition, scope)
        chosen = [
            n for n, v in enumerate(values)
            if v.op == "where" and v.args[0] == condition and not self.varies[n] and n not in scope.printed
        ]  # fmt: skip
        scope.lines += [f"{TYPES[values[n].dtype]} v{n};" for n in chosen]
        for taken in (True, False):
            inner = _Scope([], set(scope.printed), {**scope.taken, condition: taken})
            for n in chosen:
                side = values[n].args[1 if taken else 2]
                self._require(side, inner)
                inner.lines.append(f"v{n} = {named(side, values[side])};")
                inner.printed.add(n)
            head = f"if (v{condition}) {{" if taken else "} else {"
            scope.lines += [head, *(f"    {line}" for text in inner.lines for line in text.split("\n"))]
        scope.lines.append("}")
        scope.printed.update(chosen)


def varying(typed: Typed, along: Sequence[bool]) -> list[bool]:
    """Returns for each value whether it varies along the row."""
    found: list[bool] = []
    for v in typed.values:
        if v.op == "input":
            found.append(not v.uniform and along[v.value])
        elif v.op in FOLDS:
            found.append(False)
        else:
            found.append(v.op in ("index", "random_bits") or any(found[a] for a in v.args))
    return found


def _reaching(values: Sequence[TypedStep], wanted) -> list[bool]:
    """Returns for each value whether it, or one that it is made of, is wanted."""
    found: list[bool] = []
    for v in values:
        found.append(wanted(v) or any(found[a] for a in v.args))
    return found
