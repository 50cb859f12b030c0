"""From what a trace wrote down to a graph of values.

Memory that outlives the trace is cut into regions, each a tensor that the function reaches: what is written through
one view of it is read through all others. Regions of one storage do not overlap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .. import views
from ..array import Array, Storage
from ..device import Device
from ..dtypes import Dtype, float64, int64
from ..errors import TraceError
from ..program import Graph, Node, Read, State, Value, Write
from ..random import default_generator
from ..tensor import Tensor
from ..views import View
from .capture import Leaf
from .symbolic_numbers import SymbolicFloat, SymbolicInt
from .trace import Drawn, Instruction, Trace, TracedStorage


class _Region:
    """A stretch of memory: elements `low` to `high` of a storage, seen whole by leaf `leaf` (None: a constant)."""

    def __init__(self, storage: Storage, low: int, high: int, leaf: int | None, like: Array):
        self.storage, self.low, self.high, self.leaf, self.like = storage, low, high, leaf, like
        self.written = False
        self.before: Value
        self.value: Value


def _holds(ends: tuple[int, int], low: int, high: int) -> bool:
    return low == high or (ends[0] <= low and high <= ends[1])  # nothing is anywhere


def build(trace: Trace, leaves: Sequence[Leaf], results: Sequence[Tensor]) -> Graph:
    """The graph of a trace. Raises TraceError for a tensor that is none of the leaves."""
    return _Builder(trace, leaves).graph(results)


class _Builder:
    def __init__(self, trace: Trace, leaves: Sequence[Leaf]):
        self._trace = trace
        self._leaves = leaves
        self._count = 0
        self._nodes: list[Node | Write] = []
        self._made: dict[int, Value] = {}  # the value of each storage that the trace made
        self._regions: dict[int, dict[tuple[int, int], _Region]] = {}  # of each storage, by their ends
        self._tensors: dict[int, dict[tuple[int, int], int]] = {}  # the first leaf of each storage and ends
        for i, leaf in enumerate(leaves):
            if isinstance(leaf.object, Tensor):
                a = leaf.object.array
                self._tensors.setdefault(id(a.storage), {}).setdefault(views.extent(a.view), i)
        self._drawn: dict[Drawn, Value] = {}
        self._floats: dict[str, tuple[Any, Value]] = {}  # what each is, and its value, by the former's repr

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
        return Graph(self._nodes, states, constants, draws, list(self._floats.values()), found)  # type: ignore[arg-type]

    def _new(self, like: Array) -> Value:
        self._count += 1
        return Value(self._count - 1, like.shape, like.dtype, like.device)

    def _find_regions(self, results: Sequence[Array]) -> None:
        """The smallest tensors among the leaves that hold all that is read or written."""
        constants = {id(c.storage): c for c in self._trace.constants}
        used: list[tuple[Any, bool, str]] = []
        for step in self._trace.instructions:
            used += [(a, False, step.line) for a in step.inputs] + [(a, step.writes, step.line) for a in step.outputs]
        for a, written, line in [*used, *((a, False, "a result") for a in results)]:
            if not isinstance(a, Array) or isinstance(a.storage, TracedStorage):
                continue
            low, high = views.extent(a.view)
            regions = self._regions.setdefault(id(a.storage), {})
            region = self._holding(regions, low, high)
            if region is None:
                if id(a.storage) in constants:
                    whole = constants[id(a.storage)]
                    region = _Region(a.storage, *views.extent(whole.view), None, whole)
                else:
                    region = self._from_leaf(a.storage, low, high)
                if region is None:
                    raise TraceError(
                        f"compile: {line}: a tensor of shape {a.shape}, dtype {a.dtype.name} comes from outside, but "
                        "no argument, and nothing that the function names, leads to it: pass it as an argument"
                    )
                regions[region.low, region.high] = region
            region.written |= written
        for regions in self._regions.values():
            self._join(regions)
            for r in regions.values():
                self._count += 1
                r.before = r.value = Value(self._count - 1, (r.high - r.low,), r.like.dtype, r.like.device)

    def _from_leaf(self, storage: Storage, low: int, high: int) -> _Region | None:
        """The region of the smallest leaf that holds elements low to high."""
        tensors = self._tensors.get(id(storage), {})
        ends = (low, high)
        if ends not in tensors:
            holding = [found for found in tensors if _holds(found, low, high)]
            if not holding:
                return None
            ends = min(holding, key=lambda found: found[1] - found[0])
        leaf = tensors[ends]
        return _Region(storage, *ends, leaf, self._leaves[leaf].object.array)

    def _join(self, regions: dict[tuple[int, int], _Region]) -> None:
        """Regions that overlap and are written become one."""
        ordered = [regions[ends] for ends in sorted(regions)]
        for i, r in enumerate(ordered):
            for j in range(i + 1, len(ordered)):
                other = ordered[j]
                if other.low >= r.high:
                    break
                if (r.written or other.written) and r.low < other.high:
                    joined = self._from_leaf(r.storage, r.low, max(r.high, other.high))
                    if joined is None:
                        paths = [self._leaves[x.leaf].path for x in (r, other) if x.leaf is not None]
                        raise TraceError(
                            f"compile: {' and '.join(paths)} share memory that is written: pass what holds both"
                        )
                    joined.written = True
                    del regions[r.low, r.high], regions[other.low, other.high]
                    regions[joined.low, joined.high] = joined
                    return self._join(regions)

    @staticmethod
    def _holding(regions: dict[tuple[int, int], _Region], low: int, high: int) -> _Region | None:
        exact = regions.get((low, high))  # most often; a search at every read would take longer than all else
        return exact or next((r for ends, r in regions.items() if _holds(ends, low, high)), None)

    def _region(self, a: Array) -> _Region:
        found = self._holding(self._regions[id(a.storage)], *views.extent(a.view))
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
        if type(x) is SymbolicInt:
            raise x.needed()
        if type(x) is not SymbolicFloat:
            return x
        if x.trace is not self._trace:
            raise x.needed()
        key = repr(x.expression)
        if key not in self._floats:
            self._floats[key] = x.expression, self._number(float64)
        return Read(self._floats[key][1], View((), ()))

    def _number(self, dtype: Dtype) -> Value:
        """A Python number that each call brings."""
        self._count += 1
        return Value(self._count - 1, (), dtype, Device("cpu"))

    def _undefined(self, a: Array) -> Value:
        from ..ops.create import _full
        from ..ops.primitive import Call

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
        """The storage's value from now on: the new one if that is all of it, else the old one with a part written."""
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
