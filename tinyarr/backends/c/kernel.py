"""C functions of primitives: operands, the function's frame, and the table of families. Floor 2.

All threads call a kernel together; `omp for` inside shares its work and ends with a barrier. How work is cut depends
on shapes alone, so the number of threads changes no bit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ... import views
from ...dtypes import Dtype
from ...ops.primitive import Primitive, defined
from ...views import Shape
from ..source.scalar_source import TYPES, cast, constant, element, unravel

PARALLEL = "#pragma omp for schedule(static)"
SMALL = 4096  # elements: less work than this is done by one thread
LANES = 32  # sums that are made side by side: as many on every processor, so that they are the same
FOLDED = 1024  # elements at most that are added up in the lanes: 32 a lane, so that rounding errors stay few
STRIP = 256  # neighbouring results that are made together at most
ON_STACK = 4096  # elements of a thread's own that need no scratch
LINE = 128  # bytes that scratch is aligned to


@dataclass(frozen=True)
class COperand:
    """A tensor that a kernel reads or writes, or (`constant`) a Python scalar; strides count elements."""

    name: str
    dtype: Dtype
    shape: Shape
    strides: Shape
    constant: Any = None
    readonly: bool = False

    @property
    def type(self) -> str:
        return TYPES[self.dtype]

    @property
    def size(self) -> int:
        return views.size(self.shape)

    def at(self, *positions: str) -> str:
        """The C lvalue of the element at positions along the axes."""
        if self.constant is not None:
            return constant(self.constant, self.dtype)
        return f"{self.name}[{element(self.strides, positions)}]"

    def load(self, *positions: str) -> str:
        """The C value of an element, in the dtype that it is computed in."""
        return cast(self.at(*positions), self.dtype, self.dtype.compute)

    def store(self, value: str, *positions: str) -> str:
        """The C statement that writes a value of the dtype that it is computed in."""
        return f"{self.at(*positions)} = {cast(value, self.dtype.compute, self.dtype)};"

    def offset(self, number: str, axes: Sequence[int]) -> str:
        """Returns the C offset of the element of this row-major number along some axes, first along the others."""
        shape, (strides,) = views.merge_axes(tuple(self.shape[a] for a in axes), [tuple(self.strides[a] for a in axes)])
        return unravel(number, shape, strides)

    def row(self, number: str) -> tuple[str, COperand]:
        """A declaration of a pointer to a row, the last axis, by the row-major number along all others; and the row."""
        name = f"{self.name}_row"
        offset = self.offset(number, range(len(self.shape) - 1))
        declaration = f"{'const ' if self.readonly else ''}{self.type} *{name} = {self.name} + {offset};"
        return declaration, COperand(name, self.dtype, self.shape[-1:], self.strides[-1:])


@dataclass
class CCall:
    """One node of a program: its call, its operands with the strides that they have there, and the threads.

    expression: what takes the place of the first input, whose elements are not in memory.
    """

    call: Any
    inputs: list[COperand]
    outputs: list[COperand]
    threads: int
    expression: Any = None
    scratch: int = 0  # bytes
    support: list[str] = field(default_factory=list)  # what the function needs before it: dtypes of product.c

    @property
    def key(self) -> Any:
        """Equal for sites whose functions have equal bodies."""
        operands = [*self.inputs, *(self.expression.inputs if self.expression else ())]
        constants = [repr(x.constant) for x in operands]  # 0.0 == -0.0
        return self.call, self.expression, *self.inputs, None, *self.outputs, *constants

    @property
    def params(self) -> dict[str, Any]:
        return self.call.params

    def take_scratch(self, nbytes: int) -> str:
        """Reserves bytes of scratch; returns the C expression of where they begin."""
        start = self.scratch
        self.scratch += -(-nbytes // LINE) * LINE
        return f"scratch + {start}" if start else "scratch"

    def product(self, dtype: Dtype) -> str:
        """The name of the family of products in `dtype`, which the function then may call."""
        if dtype.name not in self.support:
            self.support.append(dtype.name)
        return dtype.name


KERNELS: dict[Primitive, Callable[[CCall], str]] = {}


def kernel(primitive: Primitive | str, **options: Any) -> Callable[[Callable], Callable]:
    """Decorator: `function(site, **options)` gives the body of the C function of a primitive.

    The body sees the operands by their names, `scratch`, and, to report a bad index, `error` and `launch`.
    """

    def register(function: Callable) -> Callable:
        KERNELS[defined(primitive)] = functools.partial(function, **options) if options else function
        return function

    return register


def indented(text: str, by: int = 4) -> str:
    """The lines of a text moved to the right; directives stay at the left."""
    lines = text.strip("\n").split("\n")
    return "\n".join(line if line.startswith("#") or not line else " " * by + line for line in lines)


def parallel(size: int, work: int) -> str:
    """The directive before a loop over `size` jobs of `work` elements in all; small ones are one thread's."""
    return PARALLEL if size > 1 and work > SMALL else "#pragma omp single"


def loop(i: str, size: int | str, body: str, directive: str = "") -> str:
    """for (i = 0; i < size; i++) body."""
    head = f"{directive}\n" if directive else ""
    return f"{head}for (int64_t {i} = 0; {i} < {size}; {i}++) {{\n{indented(body)}\n}}"


def fold(
    total: str, type_: str, length: int | str, value: str, start: str = "0", join: str = "{0} += {1};", before: str = ""
) -> str:
    """Declares `total`, the values for i = 0, 1, ... joined: as many side by side as there are lanes, then those.

    before: statements that make a value. A length that isn't known is at most FOLDED; of more, so many at a time are
    joined in pairs.
    """
    if isinstance(length, int) and length > FOLDED:
        size = f"MIN({FOLDED}, {length} - from)" if length % FOLDED else str(FOLDED)
        lanes = _fold("joined", type_, size, value, start, join, before, "from")
        body = f"const int64_t from = k * {FOLDED};\n{lanes}"
        pairs = in_pairs(type_, -(-length // FOLDED), 1, f"{body}\npiece[0] = joined;", start, join)
        return f"{type_} {total};\n{{\n{indented(pairs)}\n    {total} = total[0];\n}}"
    return _fold(total, type_, length, value, start, join, before)


def _fold(
    total: str, type_: str, length: int | str, value: str, start: str, join: str, before: str, begin: str = "0"
) -> str:
    lane, next_lane = "lanes[lane]", "lanes[lane + half]"
    i = "first + lane" if begin == "0" else f"{begin} + first + lane"
    inside = "\n".join([f"int64_t i = {i};", *([before] if before else []), join.format(lane, value)])
    lines = [
        f"{type_} lanes[{LANES}];",
        loop("lane", LANES, f"{lane} = {start};"),
        "int64_t first = 0;",
        f"for (; first + {LANES} <= {length}; first += {LANES})",
        indented(loop("lane", LANES, inside, "#pragma omp simd")),
        loop("lane", f"{length} - first", inside),
        f"for (int64_t half = {LANES // 2}; half; half /= 2)",
        indented(loop("lane", "half", join.format(lane, next_lane))),
        f"{total} = lanes[0];",
    ]
    text = indented("\n".join(lines))
    return f"{type_} {total};\n{{\n{text}\n}}"


def in_pairs(type_: str, pieces: int, width: int | str, piece: str, start: str = "0", join: str = "{0} += {1};") -> str:
    """Declares the array `total`: what `piece` writes into the array `piece`, for k = 0, 1, ..., joined in pairs.

    Of `pieces` numbers each is then in log2(pieces) additions. width: of the arrays, at most STRIP. Joined are always
    as many neighbours as they have been joined of: `stack` holds a total for each bit of the number of pieces.
    """
    most = width if isinstance(width, int) else STRIP
    if pieces == 1:
        return f"const int64_t k = 0;\n{type_} piece[{most}], *total = piece;\n{piece}"
    each = "piece[i]", "stack[depth][i]"
    push = "\n".join([
        "for (int64_t bits = k; bits & 1; bits >>= 1) {",
        "    depth--;",
        indented(loop("i", width, join.format(*each), "#pragma omp simd")),
        "}",
        loop("i", width, f"{each[1]} = {each[0]};", "#pragma omp simd"),
        "depth++;",
    ])  # fmt: skip
    return "\n".join([
        f"{type_} piece[{most}], total[{most}], stack[{pieces.bit_length()}][{most}];",
        "int64_t depth = 0;",
        loop("k", pieces, f"{piece}\n{push}"),
        loop("i", width, f"total[i] = {start};"),
        "while (depth) {",
        "    depth--;",
        indented(loop("i", width, join.format("total[i]", each[1]))),
        "}",
    ])  # fmt: skip


def rows(site: CCall, operands: Sequence[COperand], body: Callable[..., str], shape: Shape = ()) -> str:
    """A parallel loop over the rows of operands that have equal leading axes; body(*rows) gives what it does.

    shape: of all rows, by default the first operand's.
    """
    index, shape = "row", shape or operands[0].shape
    count = views.size(shape[:-1])
    made = site.inputs[0] if site.expression else None
    pairs = [_row_made(site, o, index) if o is made else o.row(index) for o in operands]
    declarations, parts = zip(*pairs, strict=True)
    text = "\n".join([*declarations, body(*parts)])
    return loop(index, count, text, parallel(count, views.size(shape)))


def _row_made(site: CCall, x: COperand, number: str) -> tuple[str, COperand]:
    """Returns what COperand.row does, for the operand whose elements an expression makes."""
    n, dtype = x.shape[-1], x.dtype.compute
    place = site.take_scratch(site.threads * n * dtype.itemsize) if n > ON_STACK else ""
    declaration = site.expression.run(f"{x.name}_row", f"{number} * {n}", str(n), n, n, place)
    return declaration, COperand(f"{x.name}_row", dtype, (n,), (1,), readonly=True)


def vector(x: COperand) -> COperand:
    """A tensor of statistics, one for each row, seen as rows of one element."""
    return replace(x, shape=(*x.shape, 1), strides=(*x.strides, 1))
