"""From the instructions of a trace to a graph of values in SSA form: each is made once and never changes. Floor 2.

Memory that outlives the trace is cut into regions, each a tensor that the function reaches. A region has a current
value; a write through any view of it makes the next one, which all later reads see. Regions of one storage that are
written do not overlap.

Example: p is a leaf of 4 elements, %0. `p[:2].assign(x)` makes `%5 = %0 with x in elements 0 to 2`; `p.sum()` reads %5
from then on, and the graph ends with p's state before, %0, and after, %5.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import views
from ...array import Array, Storage
from ...device import Device
from ...dtypes import Dtype, float64, int64
from ...errors import TraceError
from ...ops.create import _full
from ...ops.primitive import Call
from ...program import Graph, Node, Read, State, Value, Write
from ...random import default_generator
from ...tensor import Tensor
from ...views import View
from ..capture.captured import Leaf
from .executor import Drawn, Instruction, Trace, TracedStorage
from .symbolic_numbers import SymbolicNumber

_Ends = tuple[int, int]  # the first element, and the one behind the last


class _Region:
    """A stretch of memory: elements `low` to `high` of a storage, seen whole by leaf `leaf` (None: a constant)."""

    def __init__(self, leaf: int | None, whole: Array):
        self.storage, self.leaf, self.like = whole.storage, leaf, whole
        self.low, self.high = self.ends = views.extent(whole.view)
        self.written = False
        self.before: Value
        self.value: Value


def build(trace: Trace, leaves: Sequence[Leaf], results: Sequence[Tensor]) -> Graph:
    """Returns the graph of a trace. Raises TraceError for a tensor that is none of the leaves."""
    return _Builder(trace, leaves).graph(results)


class _Builder:
    def __init__(self, trace: Trace, leaves: Sequence[Leaf]):
        self._trace = trace
        self._leaves = leaves
        self._count = 0
        self._nodes: list[Node | Write] = []
        self._made: dict[int, Value] = {}  # the value of each storage that the trace made
        self._regions: dict[int, dict[_Ends, _Region]] = {}  # of each storage, by their ends
        self._tensors: dict[int, dict[_Ends, tuple[int | None, Array]]] = {}  # the first leaf of each storage and ends
        tensors = [(i, leaf.object.array) for i, leaf in enumerate(leaves) if isinstance(leaf.object, Tensor)]
        for leaf, a in [*tensors, *((None, a) for a in trace.constants)]:
            self._tensors.setdefault(id(a.storage), {}).setdefault(views.extent(a.view), (leaf, a))
        self._ends = {storage: np.array([*found]) for storage, found in self._tensors.items()}
        self._holders: dict[tuple[int, int, int], list[_Ends]] = {}
        self._drawn: dict[Drawn, Value] = {}
        self._numbers: dict[str, tuple[Any, Value]] = {}  # what each is, and its value, by the former's repr

    def graph(self, results: Sequence[Tensor]) -> Graph:
        self._find_regions([r.array for r in results])
        draws = []
        numbers = {id(leaf.object): i for i, leaf in enumerate(self._leaves)}
        for generator, *parts in self._trace.draws:
            values = [self._number(int64) for _ in parts]
            self._drawn.update(zip(parts, values, strict=True))
            if id(generator) not in numbers and generator is not default_generator():
                raise TraceError(f"compile: {generator} is reached by no argument or name: pass it as an argument")
            draws.append((numbers.get(id(generator), -1), *values))
        for instruction in self._trace.instructions:
            self._node(instruction)
        regions = [r for rs in self._regions.values() for r in rs.values()]
        states = [State(r.leaf, _start(self._leaves[r.leaf].object, r), r.before, r.value)
                  for r in regions if r.leaf is not None]  # fmt: skip
        constants = [(r.before, r.like) for r in regions if r.leaf is None]
        found = [self._read(t.array) for t in results]
        return Graph(self._nodes, states, constants, draws, list(self._numbers.values()), found)  # type: ignore[arg-type]

    def _new(self, like: Array) -> Value:
        self._count += 1
        return Value(self._count - 1, like.shape, like.dtype, like.device)

    def _find_regions(self, results: Sequence[Array]) -> None:
        """Finds the smallest tensors among the leaves that hold all that is read or written.

        The smallest, so that a write into one parameter of a segment makes no new value of the others.
        """
        used: list[tuple[Any, bool, str]] = []
        for step in self._trace.instructions:
            used += [(a, False, step.line) for a in step.inputs] + [(a, step.writes, step.line) for a in step.outputs]
        for a, written, line in [*used, *((a, False, "a result") for a in results)]:
            if not isinstance(a, Array) or isinstance(a.storage, TracedStorage):
                continue
            low, high = views.extent(a.view)
            regions = self._regions.setdefault(id(a.storage), {})
            region = self._holding(a.storage, low, high)
            if region is None:
                region = self._from_leaf(a.storage, low, high)
                if region is None:
                    raise TraceError(
                        f"compile: {line}: a tensor of shape {a.shape}, dtype {a.dtype.name} comes from outside, but "
                        "no argument, and nothing that the function names, leads to it: pass it as an argument"
                    )
                regions[region.ends] = region
            region.written |= written
        for regions in self._regions.values():
            while self._join(regions):
                pass
            for r in regions.values():
                self._count += 1
                r.before = r.value = Value(self._count - 1, (r.high - r.low,), r.like.dtype, r.like.device)

    def _from_leaf(self, storage: Storage, low: int, high: int) -> _Region | None:
        """Returns the region of the smallest leaf that holds elements low to high."""
        holders = self._leaves_holding(storage, low, high)
        ends = (low, high)
        if ends not in holders:
            if not holders:
                return self._side_by_side(storage, low, high)
            ends = min(holders, key=lambda found: found[1] - found[0])
        return _Region(*self._tensors[id(storage)][ends])

    def _side_by_side(self, storage: Storage, low: int, high: int) -> _Region | None:
        """Returns the region of neighbouring leaves that hold elements low to high together.

        Example: the gradients of three parameters, of 64, 32 and 32 elements, joined: 64 to 128 is the last two.
        """
        tensors = self._tensors.get(id(storage), {})
        starts = {start: (start, end) for start, end in sorted(tensors) if end > start}
        at, leaf, a = next(((x[0], *tensors[x]) for x in starts.values() if x[0] <= low < x[1]), (high, None, None))
        start = at
        while at < high and at in starts:
            at = starts[at][1]
        if at < high or leaf is None or a is None:
            return None
        whole = Array(storage, a.dtype, (at - start,), (1,), start)
        tensors[start, at] = leaf, whole  # from now on it holds them, as a leaf would
        self._ends[id(storage)] = np.array([*tensors])
        self._holders.clear()
        return _Region(leaf, whole)

    def _leaves_holding(self, storage: Storage, low: int, high: int) -> Sequence[_Ends]:
        """The ends of the leaves that hold elements low to high."""
        key = id(storage), low, high
        if key not in self._holders:
            ends = self._ends.get(id(storage), np.empty((0, 2)))  # an array, since a storage may have thousands
            holds = (ends[:, 0] <= low) & (high <= ends[:, 1]) | (low == high)  # an empty range is within all
            self._holders[key] = [(int(a), int(b)) for a, b in ends[holds]]
        return self._holders[key]

    def _join(self, regions: dict[_Ends, _Region]) -> bool:
        """Joins regions that overlap and are written, and returns whether there were any.

        Example: elements 0 to 4 and 2 to 6, one of them written, become those of the smallest leaf that holds 0 to 6.
        """
        ordered, joined = [regions[ends] for ends in sorted(regions)], False
        lows = [r.low for r in ordered]
        for i, r in enumerate(ordered):
            for j in range(i + 1, bisect_left(lows, r.high)):
                other = ordered[j]
                is_left = regions.get(r.ends) is r and regions.get(other.ends) is other
                if is_left and (r.written or other.written) and r.low < other.high:
                    whole = self._from_leaf(r.storage, r.low, max(r.high, other.high))
                    if whole is None:
                        paths = [self._leaves[x.leaf].path for x in (r, other) if x.leaf is not None]
                        raise TraceError(
                            f"compile: {' and '.join(paths)} share memory that is written: pass what holds both"
                        )
                    whole.written = joined = True
                    for part in ordered[bisect_left(lows, whole.low) : bisect_right(lows, whole.high)]:
                        if part.high <= whole.high:
                            regions.pop(part.ends, None)
                    regions[whole.ends] = whole
        return joined

    def _holding(self, storage: Storage, low: int, high: int) -> _Region | None:
        regions = self._regions[id(storage)]
        if (low, high) in regions or not regions:  # most often; a search at every read would take longer than all else
            return regions.get((low, high))
        return next((regions[ends] for ends in self._leaves_holding(storage, low, high) if ends in regions), None)

    def _region(self, a: Array) -> _Region:
        found = self._holding(a.storage, *views.extent(a.view))
        assert found is not None
        return found

    def _read(self, a: Array) -> Read:
        if isinstance(a.storage, TracedStorage):
            if id(a.storage) not in self._made:  # from empty(): its elements are undefined
                self._made[id(a.storage)] = self._undefined(a)
            return Read(self._made[id(a.storage)], a.view)
        region = self._region(a)
        return Read(region.value, View(a.shape, a.strides, a.offset - region.low if views.size(a.shape) else 0))

    def _operand(self, x: Any) -> Any:
        if isinstance(x, Array):
            return self._read(x)
        if type(x) is Drawn:
            return Read(self._drawn[x], View((), ()))
        if not isinstance(x, SymbolicNumber):
            return x
        if x.trace is not self._trace:
            raise x.needed()
        key = repr(x.expression)
        if key not in self._numbers:
            self._numbers[key] = x.expression, self._number(int64 if x.kind is int else float64)
        return Read(self._numbers[key][1], View((), ()))

    def _number(self, dtype: Dtype) -> Value:
        """A Python number that each call brings."""
        self._count += 1
        return Value(self._count - 1, (), dtype, Device("cpu"))

    def _undefined(self, a: Array) -> Value:
        size = a.storage.nbytes // a.dtype.itemsize
        call = Call(_full, a.device, ((),), ("signed",), {"shape": (size,), "dtype": a.dtype})
        self._count += 1
        value = Value(self._count - 1, (size,), a.dtype, a.device)
        self._nodes.append(Node(call, (0,), (value,), "empty"))
        return value

    def _node(self, step: Instruction) -> None:
        inputs = tuple(map(self._operand, step.inputs))
        outputs = tuple(self._new(a) for a in step.outputs)
        self._nodes.append(Node(step.call, inputs, outputs, step.line, step.repetition))
        for a, value in zip(step.outputs, outputs, strict=True):
            if not step.writes:
                self._made[id(a.storage)] = value
            else:
                self._write(a, value, step.line)

    def _write(self, a: Array, value: Value, line: str) -> None:
        """Gives a storage its next value: the one written if that is all of it, else the old one with a part written.

        Example: p (4,) is %0. After p.assign(x) it is %2, the copy of x; after p[:2].assign(x) it is %3, of the node
        %3 = %0[0: (2,) by (1,)] <- %2.
        """
        old, view = self._read(a)
        if view.offset or views.size(view.shape) != views.size(old.shape) or not views.is_contiguous(view):
            self._count += 1
            output = Value(self._count - 1, old.shape, old.dtype, old.device)
            self._nodes.append(Write(old, view, value, output, line))
            value = output
        if isinstance(a.storage, TracedStorage):
            self._made[id(a.storage)] = value
        else:
            self._region(a).value = value


def _start(leaf: Any, region: _Region) -> int:
    return region.low - leaf.array.offset
