"""Collectives over NCCL, on a stream of their own beside that of kernels. Floor 3.

Each begins when the kernels launched before it have run. A plan lets the kernels that come wait for it at once; a
program leaves that out, and lets them wait at its node `wait`. What is only moved is moved as bytes, and what
NCCL can't add up is added up in a wider dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from .... import dtypes, views
from ....ops import collective
from ..planning.registry import Begin, Input, LaunchPlan, LibraryCall, Operand, Output, Scratch, kernel, library
from . import elementwise

REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter")
WIDER = {
    dtypes.int16: dtypes.int32, dtypes.uint16: dtypes.uint32,
    dtypes.float8_e4m3fn: dtypes.float32, dtypes.float8_e5m2: dtypes.float32,
}  # fmt: skip


@library("nccl")
def prepare(spec: Begin) -> Callable[[int, int, int], None]:
    from ..libraries import nccl

    return nccl.prepare(spec)


@library("nccl_wait")
def prepare_wait(ticket: int | None) -> Callable[[int], None]:
    from ..libraries import nccl

    return nccl.prepare_wait(ticket)


def waiting(ticket: int | None) -> LaunchPlan:
    """Kernels launched from now on find what the collective of a ticket makes."""
    return LaunchPlan([LibraryCall("nccl_wait", ticket, ())])


def begun(plan: LaunchPlan) -> LaunchPlan:
    """A collective's plan without the wait at its end, if it works on nothing but its operand and its result."""
    waits = plan.steps and isinstance(plan.steps[-1], LibraryCall) and plan.steps[-1].name == "nccl_wait"
    return replace(plan, steps=plan.steps[:-1]) if waits else plan


def _register(name: str) -> None:
    @kernel(name, layouts="dense")
    def plan(inputs, outputs, *, group, op="sum", root=0, ticket=None):
        (x,), (out,) = inputs, outputs
        if 0 in x.shape:
            return LaunchPlan([])
        operands = (x, Input(0)), (out, Output(0))
        if name not in REDUCTIONS:
            nbytes = views.size(x.shape) * x.dtype.itemsize
            return _planned(Begin(name, group, dtypes.uint8, nbytes, op, root, ticket), *operands)
        count = views.size(out.shape)
        if x.dtype not in WIDER:
            return _planned(Begin(name, group, x.dtype, count, op, root, ticket), *operands)
        wide = WIDER[x.dtype]
        widened = [Operand(y.shape, views.contiguous_strides(y.shape), wide) for y in (x, out)]
        given, made = (widened[0], Scratch(0)), (widened[1], Scratch(1))
        call = _planned(Begin(name, group, wide, count, op, root, ticket), given, made)
        steps = [*elementwise.cast(operands[0], given), *call.steps, *elementwise.cast(made, operands[1])]
        return LaunchPlan(steps, tuple(views.size(y.shape) * wide.itemsize for y in widened))


def _planned(spec: Begin, source: tuple[Operand, Any], target: tuple[Operand, Any]) -> LaunchPlan:
    begin = LibraryCall("nccl", spec, (source[1], target[1]))
    return LaunchPlan([begin, *waiting(spec.ticket).steps])


for _name in (*REDUCTIONS, "broadcast", "all_gather"):
    _register(_name)


@kernel(collective.wait, layouts="dense")
def wait(inputs, outputs, *, ticket):
    """Copies, in eager mode, where each collective has been waited for. Programs wait as `Binding` says."""
    return LaunchPlan(elementwise.copy((inputs[0], Input(0)), (outputs[0], Output(0))))
