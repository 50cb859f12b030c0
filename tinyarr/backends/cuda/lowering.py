"""From a planned program to launches: for each of its steps the plan of its kernel, and where the operands stand.

What a kernel can't take as it lies is copied into scratch before, and what it can't write where it is wanted is copied
from there after. Nothing here needs CuPy or a device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ... import eager, views
from ...ops.collective import wait
from ...ops.create import _copy
from ...ops.shape import _concat, _unslice
from ...program import Copy, Graph, Group, Node, Place, Read, Value
from ...program import Plan as ProgramPlan
from ...views import View
from . import collective, elementwise, planning, shape
from .registry import Input, Launch, LibraryCall, Operand, Output, Plan, Report

SCRATCH_ALIGNMENT = 512  # bytes


@dataclass(frozen=True)
class Task:
    """One kernel's plan, which may be several launches, and what it works on.

    inputs, outputs, scratch: a Place each; of an input that is a Python scalar its value. reads, makes: the operands,
    for who wants to know how much is moved.
    """

    title: str
    line: str
    plan: Plan
    inputs: tuple[Any, ...]
    outputs: tuple[Place, ...]
    scratch: tuple[Place, ...]
    reads: tuple[Operand, ...]
    makes: tuple[Operand, ...]

    def __str__(self) -> str:
        made = " ".join(f"{x.dtype.name}{list(x.shape)}" for x in self.makes)
        return f"{self.title:40} {made:40} {self.line}".rstrip()


@dataclass(frozen=True)
class _Placed:
    """An operand and where it is: a Place, or the value of a Python scalar."""

    operand: Operand
    at: Any

    @property
    def view(self) -> View:
        return View(self.operand.shape, self.operand.strides, self.at.offset // self.operand.dtype.itemsize)


class Lowering:
    """tasks: what runs, in order. scratch: bytes that they work in, behind the arena."""

    def __init__(self, graph: Graph, plan: ProgramPlan):
        self._program = plan
        self._used = 0
        self._line = ""
        self.tasks: list[Task] = []
        self.scratch = 0
        for step in plan.steps:
            if step is not None:
                self._used = self._used if plan.guard else 0
                self._line = getattr(step, "line", "")
                self._step(step)

    def _step(self, step: Node | Group | Copy) -> None:
        if isinstance(step, Copy):
            view = views.contiguous(step.read.view.shape) if step.part is None else step.part
            if step.part is not None or not self._is_there(step.read, step.target):
                self._copy(self._at(step.read.value, step.read.view), self._at(step.target, view))
        elif isinstance(step, Group):
            self._group(step)
        elif step.call.primitive is _copy and self._is_there(step.inputs[0], step.outputs[0]):
            pass
        elif step.call.primitive in (_concat, _unslice):
            self._arrange(step)
        elif "ticket" in step.call.params:
            self._collective(step)
        else:
            call = step.call
            layouts = planning.layouts(call)
            inputs = [self._read(*x) for x in zip(step.inputs, call.in_dtypes, strict=True)]
            if layouts is not None:
                inputs = [self._fitted(*x) for x in zip(inputs, layouts(call), strict=True)]
            outputs = [self._made(*y) for y in zip(step.outputs, call.out_shapes, strict=True)]
            self._launch(call.primitive.name, partial(planning.planner, call), inputs, outputs, _layouts(call))

    def _group(self, group: Group) -> None:
        """One kernel, or two where the second wants its operand in memory."""
        first, last = group.first, group.last
        name = f"{first.call.primitive.name}_{last.call.primitive.name}"
        stored = [i for i, v in enumerate(first.outputs) if v in group.outputs]
        read = [self._read(*x) for x in zip(first.inputs, first.call.in_dtypes, strict=True)]
        kept = {i: self._made(first.outputs[i], first.call.out_shapes[i]) for i in stored}
        layouts = planning.layouts(last.call)
        fit = ("any",) * len(last.inputs) if layouts is None else layouts(last.call)
        later = zip(last.inputs[1:], last.call.in_dtypes[1:], strict=True)
        others = [self._fitted(self._read(*x), layout) for x, layout in zip(later, fit[1:], strict=True)]
        results = [self._made(*y) for y in zip(last.outputs, last.call.out_shapes, strict=True)]
        joined = planning.group_planner(first.call, last.call, stored)
        whole = planning.dense_operands(last.call)[0][0]
        if joined is not None:
            between = _Placed(whole, 0)  # in registers: no address
            made = [*results, *kept.values()]
            self._launch(name, lambda _: joined, [between, *others, *read], made, _layouts(last.call, len(kept)))
            return
        apart = [
            kept[i] if i in kept else self._in_scratch(first.call.out_shapes[i], v.dtype)
            for i, v in enumerate(first.outputs)
        ]
        alone = [partial(planning.planner, call) for call in (first.call, last.call)]
        self._launch(first.call.primitive.name, alone[0], read, apart, ("any",) * len(apart))
        seen = views.reshape(apart[0].view, whole.shape)
        assert seen is not None, "a layout is chosen only where all views of the value can be had"
        between = self._fitted(_Placed(_seen_as(apart[0].operand, seen), apart[0].at), fit[0])
        self._launch(last.call.primitive.name, alone[1], [between, *others], results, _layouts(last.call))

    def _collective(self, node: Node) -> None:
        """Begins or ends one. Between the two it works where its operand and its result are, never in scratch."""
        call = node.call
        read, made = self._at(*node.inputs[0]), self._made(node.outputs[0], call.out_shapes[0])
        if call.primitive is not wait:
            planner = planning.planner(call)
            assert planner is not None and _suits(read, "dense") and _suits(made, "dense")
            self._add(call.primitive.name, collective.begun(planner([read.operand], [made.operand])), [read], [made])
        elif 0 not in call.in_shapes[0]:
            self._add("wait", collective.waiting(call.params["ticket"]), [read], [read])
            if not self._is_there(node.inputs[0], node.outputs[0]):
                self._copy(read, made)

    def _arrange(self, node: Node) -> None:
        """Joining, and placing in zeros, of what is not made in its place already."""
        call = node.call
        (out,) = (self._made(*y) for y in zip(node.outputs, call.out_shapes, strict=True))
        inputs = [self._read(*x) for x in zip(node.inputs, call.in_dtypes, strict=True)]
        placed = [isinstance(x, Read) and self._program.is_part(x.value) for x in node.inputs]
        steps = shape.arrange(call, [x.operand for x in inputs], out.operand, placed)
        self._add(call.primitive.name, Plan(steps), inputs, [out])

    def _launch(
        self, title: str, planner_of: Callable[[bool], planning.Planner | None], inputs: Sequence[_Placed],
        outputs: Sequence[_Placed], layouts: Sequence[str],
    ) -> None:  # fmt: skip
        """planner_of(in_place): whether the first output is the memory of the first input."""
        made = [
            y if layout == "any" or (_suits(y, layout) and _is_aligned(y))
            else self._in_scratch(y.operand.shape, y.operand.dtype)
            for y, layout in zip(outputs, layouts, strict=True)
        ]  # fmt: skip
        planner = planner_of(bool(inputs) and inputs[0] == made[0])
        assert planner is not None, "a graph holds only what has a kernel"
        plan = planner([x.operand for x in inputs], [y.operand for y in made])
        self._add(title, plan, inputs, made)
        for there, wanted in zip(made, outputs, strict=True):
            if there is not wanted:
                self._copy(there, wanted)

    def _add(self, title: str, plan: Plan, inputs: Sequence[_Placed], outputs: Sequence[_Placed]) -> None:
        if not plan.steps:
            return
        scratch = tuple(self._take(n) for n in plan.scratch)
        plan = replace(plan, steps=[self._at_line(step) for step in plan.steps])
        places = tuple(x.at for x in inputs), tuple(y.at for y in outputs)
        operands = tuple(x.operand for x in inputs if isinstance(x.at, Place)), tuple(y.operand for y in outputs)
        self.tasks.append(Task(title, self._line, plan, *places, scratch, *operands))

    def _copy(self, source: _Placed, target: _Placed) -> None:
        there = _seen_as(target.operand, View(source.operand.shape, target.operand.strides, 0))
        plan = Plan(elementwise.copy((source.operand, Input(0)), (there, Output(0))))
        self._add("copy", plan, [source], [target])

    def _at_line(self, step: Launch | LibraryCall) -> Launch | LibraryCall:
        """The step, whose reports say which line of the traced function it is of."""
        if not self._line or isinstance(step, LibraryCall):
            return step
        at = f" ({self._line.replace('{', '{{').replace('}', '}}')})"
        arguments = [a._replace(message=a.message + at) if isinstance(a, Report) else a for a in step.arguments]
        return replace(step, arguments=tuple(arguments))

    def _read(self, x: Any, dtype: Any) -> _Placed:
        return self._at(x.value, x.view) if isinstance(x, Read) else _Placed(Operand((), (), dtype), x)

    def _made(self, value: Value, shape: views.Shape) -> _Placed:
        """An output as its kernel sees it: in the shape in which the kernel goes through it."""
        view = views.reshape(self._program.layout(value), shape)
        assert view is not None, "a layout is chosen only where all views of the value can be had"
        return self._at(value, view)

    def _at(self, value: Value, view: View) -> _Placed:
        place = self._program.place(value)
        at = place._replace(offset=place.offset + view.offset * value.dtype.itemsize)
        return _Placed(Operand(view.shape, view.strides, value.dtype, at.offset % 16 == 0), at)

    def _fitted(self, x: _Placed, layout: str) -> _Placed:
        """The operand where it suits a kernel, else a dense copy."""
        if not isinstance(x.at, Place) or _suits(x, layout):
            return x
        dense = self._in_scratch(x.operand.shape, x.operand.dtype)
        self._copy(x, dense)
        return dense

    def _in_scratch(self, shape: views.Shape, dtype: Any) -> _Placed:
        operand = Operand(shape, views.contiguous_strides(shape), dtype)
        return _Placed(operand, self._take(views.size(shape) * dtype.itemsize))

    def _take(self, nbytes: int) -> Place:
        """Scratch until the end of the step; behind a guard, for good."""
        at = Place("arena", 0, rounded(self._program.arena) + self._used)
        self._used += rounded(nbytes) + self._program.guard
        self.scratch = max(self.scratch, self._used + SCRATCH_ALIGNMENT)
        return at

    def _is_there(self, read: Read, target: Value) -> bool:
        """Whether what is read, dense, has the place of a value already."""
        here, there = self._program.place(read.value), self._program.place(target)
        return here == there and read.view.offset == 0 and views.is_contiguous(read.view)


def rounded(nbytes: int) -> int:
    """Up to where the next block of scratch may begin."""
    return -(-nbytes // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT


def _seen_as(operand: Operand, view: View) -> Operand:
    return operand._replace(shape=view.shape, strides=view.strides)


def _layouts(call: Any, more: int = 0) -> tuple[str, ...]:
    """What the results of a call can be written in, and what is stored beside them."""
    return planning.out_layouts(call) + ("any",) * more


def _is_aligned(x: _Placed) -> bool:
    """Whether 16 bytes can be stored at once; a single element is never stored otherwise than alone."""
    return x.operand.aligned or views.size(x.operand.shape) <= 1


def _suits(x: _Placed, layout: str) -> bool:
    return eager.suits(x.view, layout)
