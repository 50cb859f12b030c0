"""Operand that a kernel reads run by run: a tensor, or an expression that takes its place. Floor 2.

A run is read into a short array of the type in which is computed, and the kernel goes on from there. So what an
expression makes for one kernel alone is never in memory, and a kernel computes the same whatever strides it reads with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ... import views
from ...dtypes import Dtype
from ...ops.typing import Typed, TypedStep
from ...views import Shape
from ..source.scalar_source import TYPES, element, statements, unravel
from .kernel import CCall, COperand, indented, loop


@dataclass(frozen=True)
class CExpression:
    """The first output of an expression over inputs that are broadcast to `shape`; its other outputs are stored.

    dtype: what the first output is rounded to, as if it were stored. order: the axes of `shape` from the outermost to
    the innermost, in which its elements are numbered.
    """

    shape: Shape
    dtype: Dtype
    typed: Typed
    inputs: tuple[COperand, ...]
    outputs: tuple[COperand, ...]
    order: Shape

    @classmethod
    def of(cls, typed: Typed, shape: Shape, inputs: Sequence[COperand], outputs: Sequence[COperand]) -> CExpression:
        """The expression with its first output rounded, and widened to the type in which is computed."""
        values, number, stored = list(typed.values), typed.outputs[0], typed.dtypes[0]
        for dtype in (stored, stored.compute):
            if values[number].dtype is not dtype:
                values.append(TypedStep("cast", (number,), dtype, dtype, False))
                number = len(values) - 1
        wide = Typed(tuple(values), (number, *typed.outputs[1:]), (stored.compute, *typed.dtypes[1:]))
        return cls(shape, stored, wide, tuple(inputs), tuple(outputs), tuple(range(len(shape))))

    @classmethod
    def first(cls, site: CCall) -> CExpression:
        """The first input of a kernel."""
        if site.expression is not None:
            return site.expression
        x = site.inputs[0]
        return cls.of(Typed((TypedStep("input", (), x.dtype, 0, False),), (0,), (x.dtype,)), x.shape, [x], [])

    def run(self, name: str, number: str, length: str, most: int, row: int, place: str = "") -> str:
        """Declares `name`, which points to `length` elements from a row-major number on.

        Runs are cut out of rows of `row` elements, `most` at a time. place: scratch of `most` elements for each thread,
        where the stack has no room.
        """
        operands = [x for x in (*self.inputs, *self.outputs) if x.shape]
        seen = [views.broadcast_to(views.View(x.shape, x.strides), self.shape).strides for x in operands]
        strides = [tuple(s[a] for a in self.order) for s in (*seen, views.contiguous_strides(self.shape))]
        sizes, (*strides, steps) = views.merge_axes(tuple(self.shape[a] for a in self.order), strides)
        is_even = sizes[-1] % row == 0 or (row % most == 0 and sizes[-1] % most == 0)
        compute = TYPES[self.dtype.compute]
        is_plain = len(self.typed.values) == 1 and operands and not self.outputs
        if is_plain and is_even and strides[0][-1] == 1:
            return f"const {compute} *{name} = {operands[0].name} + {unravel(f'({number})', sizes, strides[0])};"
        begin = "number" if is_even else "(number + first)"
        declare, at = [], {}
        for x, by in zip(operands, strides, strict=True):
            declare.append(f"{'const ' * x.readonly}{x.type} *{x.name}_at = {x.name} + {unravel(begin, sizes, by)};")
            at[x.name] = f"{x.name}_at[{element(by[-1:], ['i'])}]"
        target = f"{name}_made[{'i' if is_even else 'first + i'}]"
        position = f"({unravel(begin, sizes, steps)} + {element(steps[-1:], ['i'])})"
        inputs, outputs = ([at.get(x.name, x.at()) for x in xs] for xs in (self.inputs, self.outputs))
        hoisted, inside = statements(self.typed, inputs, [target, *outputs], (), position)
        body = [*declare, loop("i", length if is_even else "count", "\n".join(inside), "#pragma omp simd")]
        if not is_even:
            rest = f"MIN({length} - first, {sizes[-1]} - (number + first) % {sizes[-1]})"
            head = f"for (int64_t first = 0, count; first < {length}; first += count) {{"
            body = [head, indented("\n".join([f"count = {rest};", *body])), "}"]
        text = "\n".join([f"int64_t number = {number};", *hoisted, *body])
        made = f"{compute} {name}_made[{most}];"
        if place:
            made = f"{compute} *{name}_made = ({compute} *)({place}) + omp_get_thread_num() * (int64_t){most};"
        return f"{made}\nconst {compute} *{name} = {name}_made;\n{{\n{indented(text)}\n}}"

    def ordered(self, order: Sequence[int]) -> CExpression:
        return replace(self, order=tuple(order))
