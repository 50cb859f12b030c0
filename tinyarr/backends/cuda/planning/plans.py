"""From a call to its plan. Nothing here needs CuPy or a device, so every kernel can be planned anywhere. Floor 3."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .... import views
from ....ops import rowwise_composite  # noqa: F401, rows too long for a kernel take it
from ....ops.elementwise_primitive import Pointwise
from ....ops.rowwise import Rowwise
from ....ops.typing import Typed, TypedStep
from ....views import View
from ...source.scalar_source import identifier
from ..kernels import (
    attention,
    collective,
    elementwise,
    index,
    loss,
    matmul,
    norm,
    reduce,
    rowwise,
    scan,
    softmax,
    sort,
)
from .prologues import Prologue, fill
from .registry import CudaKernel, Input, LaunchPlan, Operand, Output, record_of

# Importing them fills KERNELS.
FAMILIES = (attention, collective, index, loss, matmul, norm, reduce, scan, softmax, sort)

Planner = Callable[[Sequence[Operand], Sequence[Operand]], LaunchPlan]


def planner(call: Any, in_place: bool = False) -> Planner | None:
    """plan(inputs, outputs) for a call; None where its composite must serve.

    in_place: the first output is the memory of the first input.
    """
    if isinstance(call.primitive, Pointwise):
        typed = call.primitive.typed(call.in_shapes, call.in_dtypes, call.params)

        def plan_elementwise(inputs: Sequence[Operand], outputs: Sequence[Operand]) -> LaunchPlan:
            sources = [(x, Input(i)) for i, x in enumerate(inputs)]
            targets = [(y, Output(i)) for i, y in enumerate(outputs)]
            name = identifier(call.primitive.name)
            return LaunchPlan(elementwise.plan(name, typed, call.out_shapes[0], sources, targets))

        return plan_elementwise
    if call.primitive.parts is not None:
        return functools.partial(_copies, call)
    record = _record(call)
    if record is None or record.plan(*dense_operands(call), **call.params) is None:
        return None
    plan, params, copies = record.plan, call.params, record.updates and not in_place

    def plan_family(inputs: Sequence[Operand], outputs: Sequence[Operand]) -> LaunchPlan:
        found = plan(inputs, outputs, **params)
        assert found is not None, "whether there is a kernel must not depend on strides"
        start = elementwise.copy((inputs[0], Input(0)), (outputs[0], Output(0))) if copies else []
        return replace(found, steps=[*start, *found.steps])

    return plan_family


def _record(call: Any) -> CudaKernel | None:
    """The kernel of a call that isn't elementwise: one written by hand, or printed from a row expression."""
    record = record_of(call.primitive)
    if record is not None or not isinstance(call.primitive, Rowwise):
        return record

    def plan(inputs: Sequence[Operand], outputs: Sequence[Operand], **_: Any) -> LaunchPlan | None:
        return rowwise.plan(call, inputs, outputs)

    return CudaKernel(plan, "dense", lambda call: "dense", False)


def _copies(call: Any, inputs: Sequence[Operand], outputs: Sequence[Operand]) -> LaunchPlan:
    """Puts operands into their parts of a result, and zeros around them, in eager mode; programs have copies."""
    (out,) = outputs
    parts = call.primitive.parts(View(out.shape, out.strides, 0), call.in_shapes, call.params)
    covered = sum(views.size(part.shape) for part in parts) == views.size(out.shape)
    steps = [] if covered else elementwise.fill(0, (out, Output(0)))
    for i, (x, (shape, strides, first)) in enumerate(zip(inputs, parts, strict=True)):
        offset = first * out.dtype.itemsize
        part = out._replace(shape=shape, strides=strides, aligned=out.aligned and offset % 16 == 0)
        steps += elementwise.copy((x, Input(i)), (part, Output(0, offset)))
    return LaunchPlan(steps)


def group_planner(first: Any, last: Any, stored: Sequence[int]) -> Planner | None:
    """plan(inputs, outputs) for a kernel whose first operand an elementwise call makes as it is read.

    The inputs are those of `last`, of which the first is in no memory, then those of `first`; the outputs those of
    `last`, then the `stored` ones of `first`. None where the kernel needs its operand in memory.
    """
    alone, whole = takes_expression(last), dense_operands(last)[0][0]
    if alone is None:
        return None
    typed = first.primitive.typed(first.in_shapes, first.in_dtypes, first.params)
    picked = (0, *stored)
    expression = replace(
        typed, outputs=tuple(typed.outputs[i] for i in picked), dtypes=tuple(typed.dtypes[i] for i in picked)
    )
    given, made = len(last.in_shapes), len(last.out_shapes)

    def plan_group(inputs: Sequence[Operand], outputs: Sequence[Operand]) -> LaunchPlan:
        read = [(x, Input(given + i)) for i, x in enumerate(inputs[given:])]
        kept = [(y, Output(made + i)) for i, y in enumerate(outputs[made:])]
        filling = Prologue(expression, whole.shape, read, [(whole, None), *kept])
        found = fill(alone([whole, *inputs[1:given]], outputs[:made]), Input(0), filling)
        assert found is not None, "whether a slot can be filled must not depend on strides"
        return found

    return plan_group


@functools.lru_cache(4096)
def takes_expression(call: Any) -> Planner | None:
    """Returns the planner of a call whose kernel can make its first operand of an expression; None for another one."""
    alone, whole = planner(call), dense_operands(call)[0][0]
    if alone is None or not whole.shape or fill(alone(*dense_operands(call)), Input(0), _anything(whole)) is None:
        return None
    return alone


def _anything(x: Operand) -> Prologue:
    """Returns the least prologue of an operand: the operand itself."""
    values = (TypedStep("input", (), x.dtype, 0, False),)
    return Prologue(Typed(values, (0,), (x.dtype,)), x.shape, [(x, Input(0))], [(x, None)])


def dense_operands(call: Any) -> tuple[list[Operand], list[Operand]]:
    """The operands of a call as they are where nothing is strided or misaligned."""

    def dense(shapes: Sequence, kinds: Sequence) -> list[Operand]:
        return [Operand(s, views.contiguous_strides(s), d) for s, d in zip(shapes, kinds, strict=True)]

    return dense(call.in_shapes, call.in_dtypes), dense(call.out_shapes, call.out_dtypes)


def layouts(call: Any) -> Callable[[Any], Sequence[str]] | None:
    """Returns the layout that each operand's strides must suit (eager.fit); None where any do."""
    record = _record(call)
    if record is None or record.layouts is None:
        return None
    each = (record.layouts,) * len(call.in_shapes) if isinstance(record.layouts, str) else record.layouts
    return lambda call: each


def out_layouts(call: Any) -> tuple[str, ...]:
    """Returns the layout that each result's strides must suit."""
    record = _record(call)
    return ("any" if record is None else record.out_layout(call),) * len(call.out_shapes)
