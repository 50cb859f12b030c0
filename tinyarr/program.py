"""The graph of a traced function, as data: what is computed of what, in the order in which it was written. Floor 2.

A value is the contents of a stretch of memory, at one time; it never changes. An operand is a value read through a
view, so reshaping, transposing and broadcasting are no nodes. A write into memory makes a new value of it: of the
whole, or by a `Write` of a part. The graph starts from the values that the program's state, arguments and constants
have when it is called, and ends by storing the state's last values and by giving results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .device import Device
from .dtypes import Dtype
from .views import Shape, View, contiguous


@dataclass(eq=False, slots=True)
class Value:
    """Elements of one dtype, next to each other; `shape` says how the node that makes them sees them."""

    number: int
    shape: Shape
    dtype: Dtype
    device: Device

    def __repr__(self) -> str:
        return f"%{self.number}"


class Read(NamedTuple):
    """A value seen through a view: offset and strides count elements of the value."""

    value: Value
    view: View

    def __repr__(self) -> str:
        if self.view == contiguous(self.value.shape):
            return repr(self.value)
        return f"{self.value}[{self.view.offset}: {self.view.shape} by {self.view.strides}]"


@dataclass(eq=False, slots=True)
class Node:
    """One call: inputs are Reads and Python scalars, outputs the values that it makes.

    line: where it was written. repetition: not 0 where a checkpointed function runs again: what it makes then is made,
    though it is equal to what its first run made.
    """

    call: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Value, ...]
    line: str
    repetition: int = 0

    def __repr__(self) -> str:
        made = ", ".join(f"{v}: {v.dtype.name}{list(v.shape)}" for v in self.outputs)
        params = "".join(f", {k}={v}" for k, v in self.call.params.items())
        return f"{made} = {self.call.primitive.name}({', '.join(map(repr, self.inputs))}{params})"


@dataclass(eq=False, slots=True)
class FusedPair:
    """Two nodes that one kernel runs: `last` reads the first output of `first`, an elementwise one, as it is made.

    outputs: what is stored of all that they make.
    """

    first: Node
    last: Node
    outputs: tuple[Value, ...]

    @property
    def call(self) -> Any:
        return self.last.call

    @property
    def line(self) -> str:
        return self.last.line

    @property
    def inputs(self) -> tuple[Any, ...]:
        read = (*self.first.inputs, *self.last.inputs)
        return tuple(x for x in read if not (isinstance(x, Read) and x.value in self.first.outputs))

    def __repr__(self) -> str:
        return f"{self.first}; {self.last}"


@dataclass(eq=False, slots=True)
class Write:
    """`output` is the value `old` with `new` in the part of it that `view` shows."""

    old: Value
    view: View
    new: Value
    output: Value
    line: str

    def __repr__(self) -> str:
        return f"{self.output}: {self.output.dtype.name} = {Read(self.old, self.view)} <- {self.new}"


Step = Node | FusedPair | Write


@dataclass(eq=False, slots=True)
class State:
    """Memory that outlives a call: `size` elements of `dtype`, found again in leaf `leaf` of what the function reaches.

    start: how far the memory begins before the leaf's first element. before, after: its values when a call begins and
    ends; the same where it is only read.
    """

    leaf: int
    start: int
    before: Value
    after: Value


@dataclass(eq=False, slots=True)
class Graph:
    """states, constants (values and arrays that hold them), draws (values of each key and counter), numbers feed it.

    numbers: what each is of the Python numbers that a call brings, and its 0-d value, float64 or int64.
    """

    nodes: Sequence[Step]
    states: Sequence[State]
    constants: Sequence[tuple[Value, Any]]
    draws: Sequence[tuple[int, Value, Value]]
    numbers: Sequence[tuple[Any, Value]]
    results: Sequence[Read]

    def __str__(self) -> str:
        lines = [f"{s.before}: {s.before.dtype.name}{list(s.before.shape)} = leaf {s.leaf}" for s in self.states]
        lines += [f"{value}: {value.dtype.name}[] = {expression}" for expression, value in self.numbers]
        lines += [repr(node) for node in self.nodes]
        lines += [f"leaf {s.leaf} = {s.after}" for s in self.states if s.after is not s.before]
        return "\n".join([*lines, f"return {', '.join(map(repr, self.results))}"])


class Place(NamedTuple):
    """`offset` bytes into a buffer: the arena, or state, constant, draw, number or result `number`."""

    buffer: str
    number: int = 0
    offset: int = 0


class Location(NamedTuple):
    """The bytes of a value: those of `root` from byte `offset` on. `view` shows its elements, counted from there.

    Example: %2, the columns 2 to 4 of %3 (4, 5) in float32, is at byte 8 of %3, seen as (4, 3) by (5, 1).
    """

    root: Value
    offset: int
    view: View


class Stretch(NamedTuple):
    """Bytes `low` to `high` of a root, which steps `first` to `last` need."""

    low: int
    high: int
    first: int
    last: int


class Copy(NamedTuple):
    """Copy of what a read shows, dense, to a value's place, or to `part` of it."""

    read: Read
    target: Value
    part: View | None = None


PlanStep = Node | FusedPair | Copy


class Check(NamedTuple):
    """Indices that are checked before any step runs, though step number `step` is what uses them first.

    bounds: what they may be (ops.primitive.Bounds).
    """

    step: int
    read: Read
    bounds: Any


@dataclass(frozen=True)
class Plan:
    """A program's steps, and where in memory they find each value.

    steps: nodes and copies in order, whose operands are views of memory. locations: of every value. buffers: the places
    of their roots. parts: the values that are made in their place within another one. arena: its bytes. lives: of each
    root in it, which bytes are needed when. checks: the indices that come with a call and that steps
    behind the first write into state use. guard: where not 0, all that is in the arena is apart, with so many bytes
    behind it that nothing writes. scratch: of a step whose kernel needs much to work in, where in the arena it may, and
    in how many bytes; others work behind the arena.
    """

    steps: Sequence[PlanStep]
    locations: dict[Value, Location]
    buffers: dict[Value, Place]
    parts: frozenset[Value]
    arena: int
    lives: dict[Value, list[Stretch]]
    checks: Sequence[Check] = ()
    guard: int = 0
    scratch: Mapping[int, tuple[Place, int]] = field(default_factory=dict)

    def place(self, value: Value) -> Place:
        """Returns where a value begins."""
        root, offset, _ = self.locations[value]
        buffer, number, start = self.buffers[root]
        return Place(buffer, number, start + offset)

    def layout(self, value: Value) -> View:
        """Returns the view of the memory at a value's place that shows it in its own shape.

        Example: of (2, 3) elements that are column by column in memory, (2, 3) by (1, 2).
        """
        return self.locations[value].view

    def is_part(self, value: Value) -> bool:
        """Returns whether a value is made in its place within another one."""
        return value in self.parts


class Argument(NamedTuple):
    """A tensor as a kernel call reads or writes it: strides count elements, from `place` on.

    place: None for what the call's own prologue makes, which is in no memory.
    """

    place: Place | None
    shape: Shape
    strides: Shape
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.dtype.name}{list(self.shape)}"

    @property
    def buffer(self) -> tuple[str, int]:
        """The kind and the number of the buffer that it is in."""
        assert self.place is not None
        return self.place.buffer, self.place.number

    @property
    def view(self) -> View:
        """The view of its buffer, whose elements are counted from the start."""
        return View(self.shape, self.strides, 0 if self.place is None else self.place.offset // self.dtype.itemsize)

    @property
    def aligned(self) -> bool:
        """Returns whether it begins at a multiple of 16 bytes, to be loaded at once; every buffer begins at one."""
        return self.place is None or self.place.offset % 16 == 0


@dataclass(frozen=True, slots=True)
class KernelCall:
    """One run of the kernel of a primitive, or of its expression.

    call: the primitive, its parameters, and the shapes and dtypes of its operands (ops.primitive.Call). inputs:
    Arguments and Python scalars. line: where it was written. step: the plan's step that it belongs to.
    scratch: where in the arena memory begins in which the kernel itself may work, and how many bytes the planner has
    kept for it there; None: as many as it wants, behind all else.
    prologue: an elementwise call that makes the first input as it is read; its outputs are None where they are not
    stored.
    """

    call: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    line: str
    step: int
    scratch: tuple[Place, int | None]
    prologue: KernelCall | None = None


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for the collective with the ticket of `call`: later steps find its result in `operand`."""

    call: Any
    operand: Argument
    line: str
    step: int


@dataclass(frozen=True, slots=True)
class IndexCheck:
    """Indices that `call` will use are within bounds (ops.primitive.Bounds), or the program ends here with an error."""

    call: Any
    indices: Argument
    bounds: Any
    line: str
    step: int


@dataclass(frozen=True)
class Lowered:
    """Program as data, in order: compiler/lower.py makes it, and each backend has a way to run it.

    arena: bytes of values, as planned. scratch: bytes behind them that operands are copied into; where a kernel's own
    begins says its call. guard: where not 0, all blocks are apart, with so many bytes behind each that nothing writes.
    """

    calls: Sequence[KernelCall | Wait | IndexCheck]
    arena: int
    scratch: int
    guard: int = 0
