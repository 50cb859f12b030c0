"""Slots: an elementwise expression in the place of a tensor that a kernel reads or writes. Floor 3.

A kernel that takes its operand through `fetch`, or gives its result away through `put` (types.cuh), does not care
whether that is a pointer or an expression: of other tensors at the same positions, whose further results are
stored on the way, or of what the kernel would have stored. So neighbours need no memory of their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ....ops.typing import Typed
from ....views import Shape
from ..kernels import elementwise
from .elementwise_source import FILES
from .registry import Input, Launch, LaunchPlan, Operand, Output, Scratch, Struct

Address = Input | Output | Scratch


@dataclass(frozen=True)
class Prologue:
    """An expression over operands broadcast to `shape`, that of the tensor which it replaces.

    inputs, outputs: its operands, and where they are. What the kernel holds in registers has no address: the first
    output of an expression that is read, the first input of one that is written to. That tensor is not 0-d.
    """

    typed: Typed
    shape: Shape
    inputs: Sequence[tuple[Operand, Address | None]]
    outputs: Sequence[tuple[Operand, Address | None]]


def fill(plan: LaunchPlan, replaced: Address, filling: Prologue) -> LaunchPlan | None:
    """The plan with an expression in place of the tensor at an address; None where a step needs that in memory."""
    steps = []
    for step in plan.steps:
        at = [i for i, a in enumerate(step.arguments) if type(a) is type(replaced) and a.number == replaced.number]
        if at:
            slots = {number: macro for macro, number in step.slots} if isinstance(step, Launch) else {}
            if len(at) > 1 or at[0] not in slots:
                return None
            step = _filled(step, slots[at[0]], at[0], filling)  # type: ignore[arg-type]
        steps.append(step)
    return LaunchPlan(steps, plan.scratch)


def _filled(launch: Launch, macro: str, number: int, filling: Prologue) -> Launch:
    loop = elementwise.lay_out(macro, filling.typed, filling.shape, filling.inputs, filling.outputs)
    macros = dict(launch.source.macros)
    if loop.pack % int(macros.get("PACK", 1)):
        loop.pack = 1
    name = macro.lower()
    macros[macro] = name
    files = tuple(dict.fromkeys((*FILES, *launch.source.files)))
    text = launch.source.text + loop.function(name)
    arguments = list(launch.arguments)
    arguments[number] = Struct(loop.arguments())
    slots = tuple(slot for slot in launch.slots if slot[0] != macro)
    source = replace(launch.source, files=files, macros=tuple(macros.items()), text=text)
    return replace(launch, source=source, arguments=tuple(arguments), slots=slots)
