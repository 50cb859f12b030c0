"""The plan of a program's memory: what runs in which order, and where each value is.

Three pure functions: `alias` says which values share their bytes, `lifetimes` from which step to which these are
needed, `allocate` at which offsets of one arena they are.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from .. import views
from ..program import Check, Copy, Graph, Group, Location, Place, Plan, PlanStep, Read, Value, Write
from ..views import contiguous
from .alias import alias, collectives, is_like, operands, parts_of, spans, writes
from .layout import is_copy, layouts, read_in
from .lives import END, highest_number, nbytes

ALIGNMENT = 128  # bytes

Buffers = dict[Value, Place]  # of values that are somewhere else than in the arena
Locations = dict[Value, Location]
Lifetimes = dict[Value, tuple[int, int]]  # of each root the first and the last step that needs it


def plan(graph: Graph, guard: int = 0) -> Plan:
    """Returns the plan of a graph.

    guard: bytes to keep free behind each root in the arena, of which then no two are in one place one after the other.
    """
    steps, buffers, given, locations = _located(graph)
    written = min((number for number, step in enumerate(steps) for value in writes(step)
                   if buffers.get(locations[value].root, Place("")).buffer == "state"), default=END)  # fmt: skip
    left = [number for number, step in enumerate(steps) if not _is_done(step, locations)]
    checks = [c._replace(step=left.index(c.step)) for c in given if c.step >= written]
    steps = [_through_memory(steps[number], locations) for number in left]
    parts = {x.value for s in steps for x, _ in parts_of(s) if locations[x.value].root is locations[writes(s)[0]].root}
    lives = {root: life for root, life in lifetimes(steps, locations).items() if root not in buffers}
    offsets, size = allocate(lives, guard)
    buffers |= {root: Place("arena", 0, offset) for root, offset in offsets.items()}
    return Plan(steps, locations, buffers, frozenset(parts), size, lives, checks, guard)


def arena(graph: Graph) -> int:
    """Returns the bytes of the arena in the plan of a graph."""
    steps, buffers, _, locations = _located(graph)
    lives = lifetimes(steps, locations)
    return allocate({root: life for root, life in lives.items() if root not in buffers})[1]


def lifetimes(steps: Sequence[PlanStep], locations: Locations) -> Lifetimes:
    """Returns the first and the last step that needs each root: by itself, through an alias, or in a collective.

    Example: step 0 makes %1, step 3 its alias %2, step 5 reads %2: (0, 5) for %1, if nothing reads it later.
    """
    found: Lifetimes = {}
    needed = [(locations[value].root, life) for value, life in spans(steps).items()]
    needed += [(locations[x.value].root, life) for life in collectives(steps) for x in operands(steps[life[0]])]
    for root, (first, last) in needed:
        begin, end = found.get(root, (first, last))
        found[root] = min(begin, first), max(end, last)
    return found


def allocate(lives: Lifetimes, guard: int = 0) -> tuple[dict[Value, int], int]:
    """Returns the offset of each root in the arena, and the size of that, which is the least that was found.

    Each root, the largest first, gets the lowest gap between those placed before it that some step needs together with
    it. Where that takes more than the step that needs most, other orders of equally large ones are tried. For GPT-2
    124M and 1558M and Llama 1B the first order has no gap there.
    Source: Pisarchyk & Lee 2020, "Efficient memory management for deep neural net inference", greedy by size.

    Example: %1 of 1,024 bytes is needed at steps 0 to 1, %2 of 512 at steps 1 to 2, %3 of 256 at steps 2 to 3. %1 is at
    0. %2 is at 1,024, since step 1 needs both. %3 is at 0: step 2 needs no %1 any more. The arena has 1,536 bytes.
    """
    if guard:
        lives = dict.fromkeys(lives, (0, 0))
    need = {root: -(-nbytes(root) // ALIGNMENT) * ALIGNMENT + guard for root in lives}
    change = np.zeros(2 + max((last for _, last in lives.values()), default=0), np.int64)
    for root, (first, last) in lives.items():
        change[first] += need[root]
        change[last + 1] -= need[root]
    least = change.cumsum().max()
    lengths = {root: first - last for root, (first, last) in lives.items()}  # the longest-lived first
    starts = {root: first for root, (first, _) in lives.items()}
    found = []
    for second in (lengths, dict.fromkeys(lives, 0), starts):
        found.append(_first_fit(sorted(lives, key=lambda v: (-need[v], second[v], v.number)), lives, need))
        if found[-1][1] == least:
            break
    return min(found, key=lambda offsets_and_size: offsets_and_size[1])


def _first_fit(order: Sequence[Value], lives: Lifetimes, need: dict[Value, int]) -> tuple[dict[Value, int], int]:
    offsets: dict[Value, int] = {}
    placed = np.empty((4, len(order)), np.int64)  # begins, ends, first and last steps, in the order of the offsets
    for count, root in enumerate(order):
        first, last = lives[root]
        begins, ends, since, until = placed[:, :count]
        beside = np.flatnonzero((since <= last) & (until >= first))
        gaps = np.zeros(len(beside) + 1, np.int64)  # where each begins; the last one has no end
        np.maximum.accumulate(ends[beside], out=gaps[1:])
        fits = gaps + need[root] <= np.append(begins[beside], np.iinfo(np.int64).max)
        offsets[root] = offset = int(gaps[fits.argmax()])
        at = begins.searchsorted(offset)
        placed[:, at + 1 : count + 1] = placed[:, at:count]
        placed[:, at] = offset, offset + need[root], first, last
    return offsets, int(placed[1].max(initial=0))


def _located(graph: Graph) -> tuple[list[PlanStep], Buffers, list[Check], Locations]:
    """Returns the steps with all copies, the places outside of the arena, indices to check, and the aliases."""
    steps, buffers = _in_order(graph)
    given, unchecked = _indices(steps, buffers)
    fixed = {value: unchecked + 1 if place.buffer == "state" else 0 for value, place in buffers.items()}
    return steps, buffers, given, alias(steps, layouts(graph), fixed)


def _in_order(graph: Graph) -> tuple[list[PlanStep], Buffers]:
    """Returns the steps with every copy that might be needed, and the places that are known before.

    Example: `%5 = %2 with %4 in it`, and %5 is what state 0 becomes and the program returns: a copy of %2 to %5, one of
    %4 into a part of %5, one of %5 to the result, and one of %5 to the state. Most are done by their locations.
    """
    buffers = {s.before: Place("state", i) for i, s in enumerate(graph.states)}
    buffers |= {value: Place("constant", i) for i, (value, _) in enumerate(graph.constants)}
    drawn = [value for _, *values in graph.draws for value in values]
    buffers |= {value: Place("draw", i) for i, value in enumerate(drawn)}
    buffers |= {value: Place("float", i) for i, (_, value) in enumerate(graph.floats)}
    count = highest_number(graph)
    steps: list[PlanStep] = []
    changed = [s for s in graph.states if s.after is not s.before]
    renamed: dict[Value, Value] = {}
    ended = {s.before for s in changed}
    for after in dict.fromkeys(s.after for s in changed if s.after in ended):  # states are exchanged: one needs a copy
        count += 1
        renamed[after] = Value(count, after.shape, after.dtype, after.device)
        steps.append(Copy(_whole(after), renamed[after]))
    for node in graph.nodes:
        if isinstance(node, Write):
            steps.append(Copy(_whole(node.old), node.output))
            steps.append(Copy(Read(node.new, contiguous(node.view.shape)), node.output, node.view))
        else:
            steps.append(node)
    for i, (value, view) in enumerate(graph.results):
        count += 1
        target = Value(count, view.shape, value.dtype, value.device)
        buffers[target] = Place("result", i)
        steps.append(Copy(Read(renamed.get(value, value), view), target))
    for s in changed:  # after the results, which may be old contents
        steps.append(Copy(Read(renamed.get(s.after, s.after), contiguous(s.before.shape)), s.before))
    return steps, buffers


def _indices(steps: Sequence[PlanStep], buffers: Buffers) -> tuple[list[Check], int]:
    """Returns a check of the indices that come with a call, at their first use, and the last step that uses others.

    A program ends at a bad index. So that a call that raises leaves state as it was, nothing of state is written up to
    that last step, and what later steps would find is checked before all steps.
    """
    found: list[Check] = []
    known: set[tuple[Read, Any]] = set()
    unchecked = -1
    for number, step in enumerate(steps):
        if isinstance(step, Copy | Group) or step.call.primitive.bounds is None:
            continue
        bounds = step.call.primitive.bounds(step.call.in_shapes, step.call.params)
        read = step.inputs[bounds.operand]
        key = read, bounds._replace(operand=0)
        if not step.call.device.backend.stops or key in known:
            continue
        known.add(key)
        if read.value in buffers:
            found.append(Check(number, read, bounds))
        else:
            unchecked = number
    return found, unchecked


def _is_done(step: PlanStep, locations: Locations) -> bool:
    """Returns whether a step copies what is in the same memory in the same order already."""
    if not isinstance(step, Copy) and not is_copy(step):
        return False
    (x,), (value,) = operands(step), writes(step)
    if x.value not in locations or (isinstance(step, Copy) and step.part is not None):
        return False
    source, target = locations[x.value], locations[value]
    view, shown = read_in(source.view, x.view), views.reshape(target.view, x.view.shape)
    start = source.offset + view.offset * x.value.dtype.itemsize
    return source.root is target.root and start == target.offset and shown is not None and is_like(view, shown)


def _through_memory(step: Any, locations: Locations) -> Any:
    """The step with operands that are views of memory instead of row-major values."""

    if isinstance(step, Group):
        return replace(step, first=_through_memory(step.first, locations), last=_through_memory(step.last, locations))
    inputs = (step.read,) if isinstance(step, Copy) else step.inputs
    seen = list(inputs)
    for i, x in enumerate(inputs):
        if isinstance(x, Read) and x.value in locations:
            view = read_in(locations[x.value].view, x.view)
            if view is not x.view:
                seen[i] = Read(x.value, view)
    if all(map(operator.is_, seen, inputs)):
        return step
    return step._replace(read=seen[0]) if isinstance(step, Copy) else replace(step, inputs=tuple(seen))


def _whole(value: Value) -> Read:
    return Read(value, contiguous(value.shape))
