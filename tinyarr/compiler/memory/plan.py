"""The plan of a program's memory: what runs in which order, and where each value is. Floor 2.

Three pure functions: `alias` says which values share their bytes, `lifetimes` from which step to which these are
needed, `allocate` at which offsets of one arena they are.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ... import dtypes, views
from ...ops.primitive import parameter_key
from ...program import Check, Copy, FusedPair, Graph, Location, Place, Plan, PlanStep, Read, Stretch, Value, Write
from ...views import contiguous
from ..uses import END, highest_number, nbytes
from .alias import alias, collectives, is_like, operands, parts_of, spans, writes
from .layout import is_copy, layouts, read_in

ALIGNMENT = 128  # bytes
MUCH_SCRATCH = 2**26  # bytes; twice what a product of cuBLASLt may work in, of which a step has hundreds

Buffers = dict[Value, Place]  # of values that are somewhere else than in the arena
Locations = dict[Value, Location]
Lifetimes = dict[Value, list[Stretch]]  # of each root


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
    working = {} if guard else _scratch(steps)
    offsets, size = allocate(lives | _lives_of(working), guard)
    scratch = {n: (Place("arena", 0, offsets[block]), nbytes(block)) for n, block in working.items()}
    buffers |= {root: Place("arena", 0, offsets[root]) for root in lives}
    return Plan(steps, locations, buffers, frozenset(parts), size, lives, checks, guard, scratch)


def unplanned(graph: Graph) -> Plan:
    """Returns the plan in which every value has a buffer of its own, and every node its kernel.

    It depends on no decision of the planner, and fits graphs whose values are on several devices.
    """
    nodes = [n for node in graph.nodes for n in ((node.first, node.last) if isinstance(node, FusedPair) else (node,))]
    steps, buffers = _in_order(replace(graph, nodes=nodes))
    made = [value for step in steps for value in writes(step)]
    buffers = {value: Place("value", value.number) for value in made} | buffers
    locations = {value: Location(value, 0, contiguous(value.shape)) for value in buffers}
    return Plan(steps, locations, buffers, frozenset(), 0, {})


def arena(graph: Graph) -> int:
    """Returns the bytes of the arena in the plan of a graph."""
    steps, buffers, _, locations = _located(graph)
    lives = {root: life for root, life in lifetimes(steps, locations).items() if root not in buffers}
    return allocate(lives | _lives_of(_scratch(steps)))[1]


def _scratch(steps: Sequence[PlanStep]) -> dict[int, Value]:
    """Returns a block of memory for each step whose kernel works in much, needed at that step alone.

    Example: the gradient of attention by cuDNN wants 1.5 GiB for 64 sequences of 1,024 tokens. Behind the arena they
    would be there in all steps; so they are where the logits are, which are needed earlier.
    """
    sizes: dict[tuple, int] = {}  # equal layers make equal calls
    found = {}
    for number, step in enumerate(steps):
        if isinstance(step, Copy):
            continue
        call = step.call
        key = call.primitive, call.in_shapes, call.in_dtypes, parameter_key(call.params)
        if key not in sizes:
            sizes[key] = call.device.backend.works_in(call)
        if sizes[key] >= MUCH_SCRATCH:
            found[number] = Value(-1 - number, (sizes[key],), dtypes.uint8, call.device)
    return found


def _lives_of(scratch: dict[int, Value]) -> Lifetimes:
    return {block: [Stretch(0, nbytes(block), number, number)] for number, block in scratch.items()}


def lifetimes(steps: Sequence[PlanStep], locations: Locations) -> Lifetimes:
    """Returns for each root the stretches of it that are needed from different steps on, all to the last one.

    A root is needed by itself, through an alias, and in a collective. Until a part of it is made, its bytes are free.

    Example: step 0 makes %1 (4,), step 3 makes %2 (2,), and step 5 joins them to %3 (6,), which step 7 reads: bytes 0
    to 16 of %3 are needed from step 0 to 7 and bytes 16 to 24 from step 3 to 7, if all are float32.
    """
    found: dict[Value, tuple[int, int]] = {}
    # only a root that is larger than an alias of it has several
    joined: dict[Value, list[tuple[int, Value]]] = {
        x.root: [] for value, x in locations.items() if value is not x.root and nbytes(value) < nbytes(x.root)
    }
    needed = list(spans(steps).items())
    needed += [(x.value, life) for life in collectives(steps) for x in operands(steps[life[0]])]
    for value, (first, last) in needed:
        root = locations[value].root
        begin, end = found.get(root, (first, last))
        found[root] = min(begin, first), max(end, last)
        if root in joined:
            joined[root].append((first, value))
    lives = {root: [Stretch(0, nbytes(root), *life)] for root, life in found.items()}
    for root, values in joined.items():
        made = [(first, *_bytes_of(locations[value], value)) for first, value in values]
        lives[root] = [Stretch(*x, found[root][1]) for x in _stretches(made)]
    return lives


def _bytes_of(location: Location, value: Value) -> tuple[int, int]:
    low, high = views.extent(location.view)
    return location.offset + low * value.dtype.itemsize, location.offset + high * value.dtype.itemsize


def _stretches(made: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Returns stretches (from byte, to byte, since step) of a root, of its aliases (step, from byte, to byte).

    Example: (5, 0, 24), (0, 0, 16), (3, 16, 24) are needed as (0, 16, 0), (16, 24, 3).
    """
    cuts = np.unique([end for _, *ends in made for end in ends])
    since = np.zeros(len(cuts), np.int64)
    for first, low, high in sorted(made, reverse=True):  # so that the earliest is what is left
        since[cuts.searchsorted(low) : cuts.searchsorted(high)] = first
    starts = [i for i in range(len(cuts) - 1) if i == 0 or since[i] != since[i - 1]]
    ends = [*starts[1:], len(cuts) - 1]
    return [(int(cuts[i]), int(cuts[j]), int(since[i])) for i, j in zip(starts, ends, strict=True)]


def allocate(lives: Lifetimes, guard: int = 0) -> tuple[dict[Value, int], int]:
    """Returns the offset of each root in the arena, and the size of that, which is the least that was found.

    Each root, those of several stretches first and then the largest, gets the lowest gap between those placed before it
    that some step needs together with it. Where that takes more than the step that needs most, other orders of equally
    large ones are tried. For GPT-2 124M and 1558M and Llama 1B the first order has no gap there.
    Source: Pisarchyk & Lee 2020, "Efficient memory management for deep neural net inference", greedy by size.

    Example: %1 of 1,024 bytes is needed at steps 0 to 1, %2 of 512 at steps 1 to 2, %3 of 256 at steps 2 to 3. %1 is at
    0. %2 is at 1,024, since step 1 needs both. %3 is at 0: step 2 needs no %1 any more. The arena has 1,536 bytes.
    """
    if guard:
        lives = {root: [Stretch(0, nbytes(root), 0, 0)] for root in lives}
    need = {root: rounded(nbytes(root)) + guard for root in lives}
    change = np.zeros(2 + max((stretches[0].last for stretches in lives.values()), default=0), np.int64)
    for root, stretches in lives.items():
        for low, high, start, last in stretches:
            size = need[root] if len(stretches) == 1 else rounded(high) - low
            change[start] += size
            change[last + 1] -= size
    least = change.cumsum().max()
    first = {root: min(stretch.first for stretch in stretches) for root, stretches in lives.items()}
    lengths = {root: first[root] - stretches[0].last for root, stretches in lives.items()}  # the longest-lived first
    zeros, one = dict.fromkeys(lives, 0), {root: len(stretches) == 1 for root, stretches in lives.items()}
    found = []
    for before, after in ((zeros, lengths), (one, lengths), (zeros, zeros), (zeros, first)):
        roots = sorted(lives, key=lambda v: (before[v], -need[v], after[v], v.number))
        found.append(_first_fit(roots, lives, need, first))
        if found[-1][1] <= least:
            break
    return min(found, key=lambda offsets_and_size: offsets_and_size[1])


def _first_fit(
    roots: Sequence[Value], lives: Lifetimes, need: dict[Value, int], since: dict[Value, int]
) -> tuple[dict[Value, int], int]:
    """Places roots in their order; since: the first step that needs each."""
    offsets: dict[Value, int] = {}
    placed = np.empty((4, sum(map(len, lives.values()))), np.int64)  # begins, ends, first and last steps, by begins
    bottom, top = np.zeros(1, np.int64), np.full(1, np.iinfo(np.int64).max)
    count = 0
    for root in roots:
        stretches, size = lives[root], need[root]
        begins, ends, firsts, lasts = placed[:, :count]
        (beside,) = ((firsts <= stretches[0].last) & (lasts >= since[root])).nonzero()
        gaps = np.concatenate((bottom, np.maximum.accumulate(ends[beside])))
        rooms = np.concatenate((begins[beside], top)) - gaps
        offsets[root] = offset = int(gaps[(rooms >= size).argmax()])
        for low, high, first, last in stretches:
            at = placed[0, :count].searchsorted(offset + low)
            placed[:, at + 1 : count + 1] = placed[:, at:count]
            placed[:, at] = offset + low, offset + (size if len(stretches) == 1 else rounded(high)), first, last
            count += 1
    return offsets, int(placed[1].max(initial=0))


def rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


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
    buffers |= {value: Place("number", i) for i, (_, value) in enumerate(graph.numbers)}
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
        if isinstance(step, Copy | FusedPair) or step.call.primitive.bounds is None:
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
    """Returns whether a step is a copy within the same memory in the same order: then nothing runs for it.

    Example: %2 (2, 3) is the copy of the transpose of %1 (3, 2), and both are at byte 0 of %1, whose layout is (3, 2)
    by (1, 3): seen transposed, that is (2, 3) by (3, 1), as %2 is.
    """
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
    """Returns the step with operands that are views of memory instead of row-major values.

    Example: %1 (3, 2) has the layout (3, 2) by (1, 3), so %1[0: (2, 3) by (1, 2)] becomes %1[0: (2, 3) by (3, 1)].
    """
    if isinstance(step, FusedPair):
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
