"""From a planned graph to the kernel calls that run it: C prints them, CUDA binds them, NumPy runs them. Floor 2.

Decided here, once for every backend: an operand that a kernel can't read with its strides is copied into scratch
before, and a result that it can't write where it belongs is copied from scratch after; concat and the padding of a
slice's gradient are copies into parts and fills.

Example: of `y = concat([x.T, a + b])`, where the planner makes `a + b` in its part of `y`, two calls are left: `add`,
whose output is that part of `y`, and `copy` from `x.T` into the other part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from .. import eager, views
from ..dtypes import Dtype
from ..ops.create import _copy, _full
from ..ops.primitive import Call
from ..program import Argument, Copy, FusedPair, IndexCheck, KernelCall, Lowered, Node, Place, Plan, Read, Value, Wait
from ..views import Shape, View
from .memory.plan import ALIGNMENT
from .uses import is_wait


def lower(plan: Plan, backend: Any = None) -> Lowered:
    """Returns the kernel calls of a plan.

    backend: the one whose kernels for programs run, in the layouts that it names; None: the kernels of eager mode,
    which copies operands itself.
    """
    return _Lowering(plan, backend).lowered()


class _Lowering:
    def __init__(self, plan: Plan, backend: Any):
        self._plan = plan
        self._backend = backend
        self._calls: list[KernelCall | Wait | IndexCheck] = []
        self._moves: dict[tuple, Call] = {}
        self._used = self._most = 0  # bytes of scratch: in this step, and the most in any
        self._number, self._line = 0, ""

    def lowered(self) -> Lowered:
        plan = self._plan
        # Before all steps: a bad index then ends the call with every state as it was.
        for number, read, bounds in plan.checks:
            step: Any = plan.steps[number]
            self._calls.append(IndexCheck(step.call, self._at(*read), bounds, step.line, number))
        for number, step in enumerate(plan.steps):
            self._number, self._line = number, getattr(step, "line", "")
            self._device = step.target.device if isinstance(step, Copy) else step.call.device
            # Steps share scratch, one after the other. Behind a guard no two blocks are in one place, so that a write
            # past the end of any of them is seen.
            self._used = self._used if plan.guard else 0
            first = len(self._calls)
            self._step(step)
            self._most = max(self._most, self._used)
            if self._used:  # the kernels' own scratch begins behind what is copied for all calls of the step
                at, calls = self._scratch_from(self._used), self._calls[first:]
                self._calls[first:] = [
                    replace(x, scratch=(at, None)) if isinstance(x, KernelCall) and x.scratch[1] is None else x
                    for x in calls
                ]
        return Lowered(self._calls, plan.arena, self._most, plan.guard)

    def _step(self, step: Node | FusedPair | Copy) -> None:
        if isinstance(step, Copy):
            self._copy(self._at(*step.read), self._at(step.target, step.part or views.contiguous(step.read.view.shape)))
        elif isinstance(step, FusedPair):
            self._group(step)
        elif is_wait(step):
            ((begun,), (made,)) = self._reads(step), self._made(step)
            self._calls.append(Wait(step.call, begun, self._line, self._number))
            if begun.place != made.place:
                self._copy(begun, made)
        elif step.call.primitive.parts is not None:
            self._join(step)
        else:
            self._launch(step.call, self._fitted(step), self._made(step))

    def _group(self, group: FusedPair) -> None:
        """One kernel, or two where the second wants its operand in memory."""
        first, last = group.first, group.last
        read, results, shape = self._reads(first), self._made(last), last.call.in_shapes[0]
        kept = [self._as_made(*y) if y[0] in group.outputs else None for y in zip(first.outputs, first.call.out_shapes)]
        if self._backend.joins_expression(first.call, last.call, [i for i, y in enumerate(kept) if y is not None]):
            between = Argument(None, shape, views.contiguous_strides(shape), first.call.out_dtypes[0])
            nothing = self._scratch_from(0), 0
            prologue = KernelCall(first.call, tuple(read), tuple(kept), first.line, self._number, nothing)
            self._launch(last.call, [between, *self._fitted(last, 1)], results, prologue)
            return
        made = zip(kept, first.call.out_shapes, first.call.out_dtypes, strict=True)
        apart = [self._in_scratch(shape, dtype) if y is None else y for y, shape, dtype in made]
        self._launch(first.call, read, apart)
        seen = views.reshape(View(apart[0].shape, apart[0].strides, 0), shape)
        assert seen is not None, "a layout is chosen only where all views of the value can be had"
        between = self._fit(_seen(apart[0], seen), self._backend.in_layouts(last.call)[0])
        self._launch(last.call, [between, *self._fitted(last, 1)], results)

    def _join(self, node: Node) -> None:
        """Copies of the operands that are not made in their place, and zeros around them."""
        call, (out,) = node.call, self._made(node)
        parts = call.primitive.parts(View(out.shape, out.strides, 0), call.in_shapes, call.params)
        is_made = [isinstance(x, Read) and self._plan.is_part(x.value) for x in node.inputs]
        if sum(views.size(part.shape) for part in parts) < views.size(out.shape):
            if any(is_made):  # already there: zeros must go around it
                (start,) = call.primitive.parts(views.contiguous(out.shape), call.in_shapes, call.params)
                for around in _around(View(out.shape, out.strides, 0), start):
                    self._fill(_seen(out, around))
            else:
                self._fill(out)
        for x, part, made in zip(self._reads(node), parts, is_made, strict=True):
            if not made:
                self._copy(x, _seen(out, part))

    def _launch(
        self, call: Call, inputs: Sequence[Any], outputs: Sequence[Argument], prologue: KernelCall | None = None
    ) -> None:
        made = list(outputs)
        if self._backend is not None and "ticket" not in call.params:  # a collective works where its operands are
            for i, (y, layout) in enumerate(zip(outputs, self._backend.out_layouts(call), strict=True)):
                if layout != "any" and not _is_writable(y, layout):
                    made[i] = self._in_scratch(y.shape, y.dtype)
        scratch = self._plan.scratch.get(self._number, (self._scratch_from(0), None))
        self._calls.append(KernelCall(call, tuple(inputs), tuple(made), self._line, self._number, scratch, prologue))
        for there, wanted in zip(made, outputs, strict=True):
            if there is not wanted:
                self._copy(there, wanted)

    def _copy(self, source: Argument, target: Argument) -> None:
        if 0 not in source.shape:
            self._move(_copy, source, target, (source.shape,), (source.dtype,), {})

    def _fill(self, target: Argument) -> None:
        """Zeros."""
        if 0 not in target.shape:
            params = {"shape": target.shape, "dtype": target.dtype}
            self._move(_full, 0, target, ((),), ("signed",), params)

    def _move(
        self, primitive: Any, source: Any, target: Argument, shapes: Any, kinds: Any, params: dict[str, Any]
    ) -> None:
        """One Call serves all that are alike, so that a backend finds their kernel again."""
        key = primitive, target.shape, target.dtype
        if key not in self._moves:
            self._moves[key] = Call(primitive, self._device, shapes, kinds, params)
        self._launch(self._moves[key], [source], [target])

    def _reads(self, node: Node, first: int = 0) -> list[Any]:
        """The operands from number `first` on."""
        return [self._at(*x) if isinstance(x, Read) else x for x in node.inputs[first:]]

    def _fitted(self, node: Node, first: int = 0) -> list[Any]:
        """The operands from number `first` on, as the kernel takes them."""
        reads = self._reads(node, first)
        if self._backend is None:
            return reads
        return [self._fit(*x) for x in zip(reads, self._backend.in_layouts(node.call)[first:], strict=True)]

    def _fit(self, x: Any, layout: str) -> Any:
        """An operand where its strides suit a kernel, else a dense copy of it."""
        if layout == "any" or not isinstance(x, Argument) or eager.suits(x.view, layout):
            return x
        dense = self._in_scratch(x.shape, x.dtype)
        self._copy(x, dense)
        return dense

    def _made(self, node: Node) -> list[Argument]:
        return [self._as_made(*y) for y in zip(node.outputs, node.call.out_shapes, strict=True)]

    def _as_made(self, value: Value, shape: Shape) -> Argument:
        """A result as its kernel writes it: in the shape in which it goes through it."""
        view = views.reshape(self._plan.layout(value), shape)
        assert view is not None, "a layout is chosen only where the kernel can write it"
        return self._at(value, view)

    def _at(self, value: Value, view: View) -> Argument:
        place, (shape, strides, start) = self._plan.place(value), view
        if start:
            place = Place(place.buffer, place.number, place.offset + start * value.dtype.itemsize)
        return Argument(place, shape, strides, value.dtype)

    def _in_scratch(self, shape: Shape, dtype: Dtype) -> Argument:
        """A dense tensor in scratch until the end of the step; behind a guard, for good."""
        place = self._scratch_from(self._used)
        nbytes = views.size(shape) * dtype.itemsize
        self._used += -(-nbytes // ALIGNMENT) * ALIGNMENT + self._plan.guard
        return Argument(place, shape, views.contiguous_strides(shape), dtype)

    def _scratch_from(self, used: int) -> Place:
        return Place("arena", 0, self._plan.arena + used)


def _is_writable(y: Argument, layout: str) -> bool:
    """Returns whether a kernel that stores 16 bytes at once can; a single element is stored alone."""
    return (y.aligned or views.size(y.shape) <= 1) and eager.suits(y.view, layout)


def _seen(x: Argument, view: View) -> Argument:
    """Returns another view of an argument; its offset counts from where the argument begins."""
    assert x.place is not None
    place = x.place._replace(offset=x.place.offset + view.offset * x.dtype.itemsize)
    return Argument(place, view.shape, view.strides, x.dtype)


def _around(whole: View, box: View) -> list[View]:
    """Returns the parts of a view outside of a box: axis by axis those before and behind it, cut to it along axes done.

    box: as part of a row-major view of that shape. Example: of (4, 5) around rows 1 to 2 and columns 2 to 4 are left
    row 0, row 3, and of rows 1 to 2 columns 0 to 1.
    """
    found, shape, offset = [], list(whole.shape), whole.offset
    row_major = views.contiguous_strides(whole.shape)
    for axis, (n, count, stride, step) in enumerate(zip(whole.shape, box.shape, whole.strides, row_major, strict=True)):
        start = box.offset // step % n
        for first, left in ((0, start), (start + count, n - start - count)):
            if left:
                part = (*shape[:axis], left, *shape[axis + 1 :])
                found.append(View(part, whole.strides, offset + first * stride))
        shape[axis], offset = count, offset + start * stride
    return found
