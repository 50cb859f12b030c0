"""From a call to its plan. Nothing here needs CuPy or a device, so every kernel can be planned anywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ... import views
from . import attention, elementwise, index, loss, matmul, norm, reduce, scan, shape, softmax, sort
from .registry import KERNELS, Input, Operand, Output, Plan

FAMILIES = (attention, index, loss, matmul, norm, reduce, scan, shape, softmax, sort)  # importing them fills KERNELS

Planner = Callable[[Sequence[Operand], Sequence[Operand]], Plan]


def planner(call: Any) -> Planner | None:
    """plan(inputs, outputs) for a call; None where its composite must serve."""
    if hasattr(call.primitive, "typed"):
        typed = call.primitive.typed(call.in_shapes, call.in_dtypes, call.params)

        def plan_elementwise(inputs: Sequence[Operand], outputs: Sequence[Operand]) -> Plan:
            sources = [(x, Input(i)) for i, x in enumerate(inputs)]
            targets = [(y, Output(i)) for i, y in enumerate(outputs)]
            return Plan(elementwise.plan(call.primitive.name, typed, call.out_shapes[0], sources, targets))

        return plan_elementwise
    record = KERNELS.get(call.primitive.name)
    if record is None or record.plan(*dense_operands(call), **call.params) is None:
        return None
    plan, params = record.plan, call.params

    def plan_family(inputs: Sequence[Operand], outputs: Sequence[Operand]) -> Plan:
        found = plan(inputs, outputs, **params)
        assert found is not None, "whether there is a kernel must not depend on strides"
        return found

    return plan_family


def dense_operands(call: Any) -> tuple[list[Operand], list[Operand]]:
    """The operands of a call as they are where nothing is strided or misaligned."""

    def dense(shapes: Sequence, kinds: Sequence) -> list[Operand]:
        return [Operand(s, views.contiguous_strides(s), d) for s, d in zip(shapes, kinds, strict=True)]

    return dense(call.in_shapes, call.in_dtypes), dense(call.out_shapes, call.out_dtypes)


def layouts(call: Any) -> Callable[[Any], Sequence[str]] | None:
    """What each operand's strides must suit (eager.fit); None where any do."""
    record = None if hasattr(call.primitive, "typed") else KERNELS[call.primitive.name]
    if record is None or record.layouts is None:
        return None
    each = (record.layouts,) * len(call.in_shapes) if isinstance(record.layouts, str) else record.layouts
    return lambda call: each
