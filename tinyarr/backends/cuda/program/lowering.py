"""From a program's kernel calls to launches: each call's plan, bound to where its operands are. Floor 3.

Nothing here needs CuPy or a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ....program import Argument, KernelCall, Lowered, Place, Wait
from ..kernels import collective
from ..planning import plans
from ..planning.registry import Launch, LaunchPlan, LibraryCall, Operand, Report

SCRATCH_ALIGNMENT = 512  # bytes


@dataclass(frozen=True)
class Launchable:
    """One kernel's plan, which may be several launches, and what it works on.

    inputs, outputs, scratch: a Place each; of an input that is a Python scalar its value. reads, makes: the operands,
    for who wants to know how much is moved. step: of the program's plan.
    """

    title: str
    line: str
    plan: LaunchPlan
    inputs: tuple[Any, ...]
    outputs: tuple[Place, ...]
    scratch: tuple[Place, ...]
    reads: tuple[Operand, ...]
    makes: tuple[Operand, ...]
    step: int = 0

    def __str__(self) -> str:
        made = " ".join(f"{x.dtype.name}{list(x.shape)}" for x in self.makes)
        return f"{self.title:40} {made:40} {self.line}".rstrip()


class Binding:
    """Launches of a lowered program. tasks: in order. scratch: bytes that they work in, behind the arena."""

    def __init__(self, lowered: Lowered):
        self._lowered = lowered
        self._end = lowered.arena + lowered.scratch  # of all scratch so far
        self.tasks: list[Launchable] = []
        for call in lowered.calls:
            if isinstance(call, KernelCall):
                self._kernel(call)
            elif isinstance(call, Wait) and 0 not in call.operand.shape:
                plan = collective.waiting(call.call.params["ticket"])
                self._add("wait", plan, call, [call.operand], [call.operand])

    @property
    def scratch(self) -> int:
        return self._end - self._lowered.arena

    def _kernel(self, call: KernelCall) -> None:
        primitive, kinds = call.call.primitive, call.call.in_dtypes
        title, inputs, outputs = primitive.name, call.inputs, call.outputs
        if call.prologue is None:
            planner = plans.planner(call.call, in_place=inputs[:1] == outputs[:1])
        else:
            first = call.prologue.call
            stored = [i for i, y in enumerate(call.prologue.outputs) if y is not None]
            planner = plans.group_planner(first, call.call, stored)
            title, kinds = f"{first.primitive.name}_{title}", (*kinds, *first.in_dtypes)
            inputs = (*inputs, *call.prologue.inputs)
            outputs = (*outputs, *(call.prologue.outputs[i] for i in stored))
        assert planner is not None, "a program holds only what has a kernel"
        plan = planner([_operand(*x) for x in zip(inputs, kinds, strict=True)], [_operand(y) for y in outputs])
        if "ticket" in call.call.params:
            plan = collective.begun(plan)
        self._add(title, plan, call, inputs, outputs)

    def _add(
        self, title: str, plan: LaunchPlan, call: KernelCall | Wait, inputs: Sequence[Any], outputs: Sequence[Argument]
    ) -> None:
        if not plan.steps:
            return
        plan = replace(plan, steps=[_at_line(step, call.line) for step in plan.steps])
        scratch = tuple(self._scratch(plan, call)) if isinstance(call, KernelCall) else ()
        places = tuple(_address(x) for x in inputs), tuple(_address(y) for y in outputs)
        reads = tuple(_operand(x) for x in inputs if isinstance(x, Argument) and x.place is not None)
        makes = tuple(_operand(y) for y in outputs)
        self.tasks.append(Launchable(title, call.line, plan, *places, scratch, reads, makes, call.step))

    def _scratch(self, plan: LaunchPlan, call: KernelCall) -> list[Place]:
        """Places for the blocks in which a kernel works: for the time of its call; behind a guard, for good."""
        start, found = self._end if self._lowered.guard else call.scratch.offset, []
        at = call.scratch._replace(offset=rounded(start))
        for nbytes in plan.scratch:
            found.append(at)
            at = at._replace(offset=at.offset + rounded(nbytes) + self._lowered.guard)
            self._end = max(self._end, at.offset)
        return found


def rounded(nbytes: int) -> int:
    """Up to where the next block of scratch may begin."""
    return -(-nbytes // SCRATCH_ALIGNMENT) * SCRATCH_ALIGNMENT


def _address(x: Any) -> Any:
    """A place, or the value of a Python scalar; 0 for what is in no memory."""
    return (0 if x.place is None else x.place) if isinstance(x, Argument) else x


def _operand(x: Any, kind: Any = None) -> Operand:
    return Operand(x.shape, x.strides, x.dtype, x.aligned) if isinstance(x, Argument) else Operand((), (), kind)


def _at_line(step: Launch | LibraryCall, line: str) -> Launch | LibraryCall:
    """The step, whose reports say which line of the traced function it is of."""
    if not line or isinstance(step, LibraryCall):
        return step
    at = f" ({line.replace('{', '{{').replace('}', '}}')})"
    arguments = [a._replace(message=a.message + at) if isinstance(a, Report) else a for a in step.arguments]
    return replace(step, arguments=tuple(arguments))
