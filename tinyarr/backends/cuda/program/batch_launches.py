"""Launches of one kernel that follow each other become one, where none needs what another one makes.

A training step ends with hundreds of launches that each do little: the square sum of every gradient, the update of
every parameter. What joins them gets a table of their arguments; each of its blocks finds the launch that it stands
for, and does what it would have done there (joined.cu). So no bit changes.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from .... import views
from ....program import Lowered, Place
from ....views import View
from ..kernels.elementwise import FEW_BLOCKS
from ..planning.registry import Input, Launch, LaunchPlan, Output, Scratch, Struct
from .lowering import Binding, Launchable, rounded

TABLE = 32_764  # bytes of arguments that a launch may have, from CUDA 12.1 on
OLD_TABLE = 4_096  # and before
LARGE = 2**14  # blocks; a launch of more fills a GPU many times over, and would gain nothing

# Two tasks may change places unless one writes bytes that the other touches, scratch among them. Scratch of both is no
# conflict: tasks of one launch get each their own.
CONFLICTS = {"read": ("write", "scratch"), "write": ("read", "write", "scratch"), "scratch": ("read", "write")}


class _Stretches:
    """Stretches of bytes that don't overlap, in ascending order."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def overlap(self, begin: int, end: int) -> bool:
        at = bisect_right(self._ends, begin)
        return at < len(self._ends) and self._begins[at] < end

    def add(self, begin: int, end: int) -> None:
        first, last = bisect_right(self._ends, begin), bisect_left(self._begins, end)
        if first < last:
            begin, end = min(begin, self._begins[first]), max(end, self._ends[last - 1])
        self._begins[first:last], self._ends[first:last] = [begin], [end]


class Joined(NamedTuple):
    """Tasks as a Binding has them, and the bytes of their scratch."""

    tasks: list[Launchable]
    scratch: int


@dataclass(frozen=True)
class JoinedTask(Launchable):
    """Tasks of one title as one; its operands are theirs, one task's behind the other's."""

    members: tuple[Launchable, ...] = ()

    def __str__(self) -> str:
        first, last = (f"{x.dtype.name}{list(x.shape)}" for x in (self.makes[0], self.makes[-1]))
        return f"{f'{len(self.members)} x {self.title}':40} {f'{first} ... {last}':40} {self.line}".rstrip()


def join(lowered: Binding, plan: Lowered, table: int = TABLE) -> Joined:
    """The tasks of a program, those joined that can be.

    The scratch of joined tasks lies behind that of all others, for each of them works in its own. table: bytes of
    arguments that a launch may have.
    """
    end = plan.arena + lowered.scratch
    start = rounded(end)
    tasks: list[Launchable] = []
    for run in _runs(lowered.tasks):
        alike = defaultdict(list)
        for task in run:
            alike[task.title].append(task)
        for members in alike.values():
            begin = rounded(end) if plan.guard else start
            joined = _joined(members, begin, table, plan.guard) if len(members) > 1 else None
            tasks += members if joined is None else [joined]
            if joined is not None and joined.scratch:
                end = max(end, joined.scratch[-1].offset + rounded(joined.plan.scratch[-1]) + plan.guard)
    return Joined(tasks, end - plan.arena)


def _runs(tasks: Sequence[Launchable]) -> Iterator[list[Launchable]]:
    """Tasks that follow each other, can be joined and may run in any order; each of the others alone."""
    run: list[Launchable] = []
    touched: dict[tuple, _Stretches] = defaultdict(_Stretches)
    for task in tasks:
        joinable = all(isinstance(s, Launch) and s.types and math.prod(s.grid) <= LARGE for s in task.plan.steps)
        if run and not (joinable and _is_free(task, touched)):
            yield run
            run = []
            touched.clear()
        if not joinable:
            yield [task]
            continue
        run.append(task)
        for kind, buffer, low, high in _spans(task):
            touched[kind, buffer].add(low, high)
    if run:
        yield run


def _is_free(task: Launchable, touched: dict[tuple, _Stretches]) -> bool:
    """Returns whether a task may run before those that have touched these bytes."""
    return not any(
        (other, buffer) in touched and touched[other, buffer].overlap(low, high)
        for kind, buffer, low, high in _spans(task)
        for other in CONFLICTS[kind]
    )


def _spans(task: Launchable) -> Iterator[tuple[str, Any, int, int]]:
    """The bytes that a task works on: how, in which buffer, from where to before where."""
    read = [x for x in task.inputs if type(x) is Place]
    for kind, places, operands in (("read", read, task.reads), ("write", task.outputs, task.makes)):
        for place, x in zip(places, operands, strict=True):
            low, high = views.extent(View(x.shape, x.strides, 0))
            size = x.dtype.itemsize
            yield kind, place[:2], place.offset + low * size, place.offset + high * size
    for place, nbytes in zip(task.scratch, task.plan.scratch, strict=True):
        yield "scratch", place[:2], place.offset, place.offset + nbytes


def _joined(members: Sequence[Launchable], start: int, table: int, guard: int) -> JoinedTask | None:
    """The tasks as one, with scratch from an offset of the arena on; None if that makes no launch less.

    First the first launches of all members run, then the second ones.
    """
    levels: list[dict[tuple, list[Launch]]] = []
    given: dict[type, int] = {Input: 0, Output: 0, Scratch: 0}
    for task in members:
        for level, step in enumerate(task.plan.steps):
            assert isinstance(step, Launch)
            if level == len(levels):
                levels.append(defaultdict(list))
            kind = step.source, step.function, step.block, step.shared_bytes, step.types
            levels[level][kind].append(replace(step, arguments=tuple(_renumbered(a, given) for a in step.arguments)))
        given[Input] += len(task.inputs)
        given[Output] += len(task.outputs)
        given[Scratch] += len(task.scratch)
    steps = [launch for level in levels for launches in level.values() for launch in _launches(launches, table)]
    if len(steps) == sum(len(task.plan.steps) for task in members):
        return None
    blocks = [n for task in members for n in task.plan.scratch]
    offsets = itertools.accumulate((rounded(n) + guard for n in blocks), initial=start)
    return JoinedTask(
        members[0].title,
        members[0].line,
        LaunchPlan(steps, tuple(blocks)),
        tuple(x for task in members for x in task.inputs),
        tuple(y for task in members for y in task.outputs),
        tuple(Place("arena", 0, at) for at, _ in zip(offsets, blocks)),
        tuple(x for task in members for x in task.reads),
        tuple(y for task in members for y in task.makes),
        members=tuple(members),
    )


def _renumbered(argument: Any, given: dict[type, int]) -> Any:
    """An argument of a task whose operands come behind so many others."""
    if type(argument) is Struct:
        return Struct(_renumbered(a, given) for a in argument)
    first = given.get(type(argument))
    return argument if first is None else argument._replace(number=argument.number + first)


def _launches(launches: Sequence[Launch], table: int) -> list[Launch]:
    """Launches of one kernel as one, or as several where the table would be too large."""
    most = table // (8 * (len(_row(launches[0], launches[0].grid)) + 1))
    count = -(-len(launches) // -(-len(launches) // most))
    parts = [launches[i : i + count] for i in range(0, len(launches), count)]
    return [part[0] if len(part) == 1 else _launch(part) for part in parts]


def _launch(launches: Sequence[Launch]) -> Launch:
    like = launches[0]
    passes = -(-sum(x.one_pass for x in launches) // FEW_BLOCKS)
    grids = [(-(-x.one_pass // passes), 1, 1) if x.one_pass else x.grid for x in launches]
    *first, blocks = itertools.accumulate(map(math.prod, grids), initial=0)
    rows = [value for x, grid in zip(launches, grids, strict=True) for value in _row(x, grid)]
    name = f"{like.function}_joined"
    macros = {
        "JOINED": name,
        "MEMBER_KERNEL": like.function,
        "MEMBERS": len(launches),
        "BLOCK_THREADS": math.prod(like.block),
        "FIELDS": " ".join(f"alignas(8) {kind} a{i};" for i, kind in enumerate(like.types)),
        "ARGUMENTS": ", ".join(f"member->a{i}" for i in range(len(like.types))),
    }
    files = ["member.cuh" if file == "kernel.cuh" else file for file in like.source.files]
    source = replace(
        like.source,
        files=(*files, "joined.cu"),
        macros=(*like.source.macros, *((macro, str(value)) for macro, value in macros.items())),
    )
    arguments = (Struct((*map(np.int64, first), *rows)),)
    return Launch(source, name, (blocks, 1, 1), like.block, arguments, like.shared_bytes)


def _row(launch: Launch, grid: tuple[int, int, int]) -> list[Any]:
    """Returns the row of a launch in the table: its grid and its arguments, 8 bytes each."""
    row: list[Any] = [np.int64(n) for n in grid]
    for a in launch.arguments:
        row += a if type(a) is Struct else [a]
    return row
