"""The batching executor: a call on one example runs for all examples at once. Floor 5.

A tensor of one example has that one's shape. Its storage remembers the memory of all of them, and how far apart they
are. Views need no rule, as a view of one example is a view of each; any other call runs, by its primitive's batching
rule, on the arrays of all. The tape lies above: it only knows of single examples.

Example: in `vmap(lambda x: x[0] * 2)(X)` with X (5, 3), x has shape (3,) and its examples are 3 elements apart; x[0]
has shape (), 3 apart; and multiply runs once, on the 5 elements of X[:, 0].
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .. import dtypes, eager, random, views
from ..array import Array, Storage
from ..compiler.trace.executor import views_of
from ..device import Device
from ..errors import ArgumentError, TraceError
from ..ops.create import _copy, contiguous
from ..ops.elementwise import add
from ..ops.primitive import apply, executor
from ..ops.reduce import sum
from ..ops.shape import stack
from ..random import Generator
from ..tape import recording
from ..tensor import Tensor, result_tensor
from .rules import Summable, call_of_all, one_by_one, rule_of


class BatchedStorage(Storage):
    """Memory of one example, which is every example's: of `base`, where they are `stride` elements apart.

    level: of the map that it belongs to. summable: what makes the base, once it is needed.
    """

    __slots__ = ("_base", "level", "stride", "summable")

    def __init__(self, level: object, device: Device, nbytes: int, stride: int, base: Storage | Summable):
        self.level = level
        self.device = device
        self.nbytes = nbytes
        self.stride = stride
        self._base: Storage | None = None if isinstance(base, Summable) else base
        self.summable: Summable | None = base if isinstance(base, Summable) else None

    @property
    def base(self) -> Storage:
        if self._base is None:
            assert self.summable is not None
            self._base, self.summable = self.summable.whole().array.storage, None
        return self._base

    @property
    def memory(self) -> Any:
        raise TraceError(
            "vmap: a tensor of one example was used where the function that is mapped has ended: return it instead"
        )

    @property
    def version(self) -> int:
        return 0 if self._base is None else self._base.version

    @version.setter
    def version(self, value: int) -> None:
        self.base.version = value


class _OwnDraw:
    """Counter of a draw in which each example has numbers of its own."""

    def __init__(self, level: object, counter: Any):
        self.level = level
        self.counter = counter


dtypes.SCALARS[_OwnDraw] = "signed"


class Batch:
    """Executor that runs calls on single examples for all `size` of them, by the executor that is outside of it."""

    def __init__(self, level: object, size: int, randomness: str, is_summed: bool = False):
        """is_summed: products are made only where more than their sum over the examples is asked for."""
        self.level = level
        self.size = size
        self.randomness = randomness
        self.is_summed = is_summed
        self.outer = executor.get()
        self._outside = contextvars.copy_context()

    @property
    def trace(self) -> Any:
        """The trace that is outside, if one is: it runs."""
        return getattr(self.outer, "trace", None)

    @contextlib.contextmanager
    def running(self) -> Iterator[Batch]:
        token = executor.set(self)
        try:
            with random.drawn_by(self):
                yield self
        finally:
            executor.reset(token)

    def holds(self, x: Any) -> bool:
        """Returns whether an array is of one example, and not the same for all."""
        return isinstance(x, Array) and self._batched(x.storage) is not None

    def _batched(self, storage: Storage) -> BatchedStorage | None:
        return storage if isinstance(storage, BatchedStorage) and storage.level is self.level else None

    def whole(self, x: Array, ndim: int = 0) -> Array:
        """The array of all examples, the first axis; what is the same for all is repeated, with stride 0.

        Axes of size 1 before an example's own make it one of `ndim` at least.
        """
        batched = self._batched(x.storage)
        storage, stride = (x.storage, 0) if batched is None else (batched.base, batched.stride)
        new = ndim - len(x.shape)
        shape, strides = (self.size, *(1,) * new, *x.shape), (stride, *(0,) * new, *x.strides)
        return Array(storage, x.dtype, shape, strides, x.offset)

    def one(self, whole: Array) -> Array:
        """The array of one example of those along the first axis."""
        shape, strides = whole.shape[1:], whole.strides[1:]
        nbytes = views.size(shape) * whole.dtype.itemsize
        storage = BatchedStorage(self.level, whole.device, nbytes, whole.strides[0], whole.storage)
        return Array(storage, whole.dtype, shape, strides, whole.offset)

    def _later(self, call: Any, made: Summable) -> Array:
        """The array of one example of those that are made when they are needed."""
        (shape,), (dtype,) = call.out_shapes, call.out_dtypes
        later = Summable(*(functools.partial(self._applied, lambda f=f: contiguous(f())) for f in made))
        storage = BatchedStorage(self.level, call.device, views.size(shape) * dtype.itemsize, views.size(shape), later)
        return Array(storage, dtype, shape, views.contiguous_strides(shape), 0)

    def _summable(self, x: Array) -> Summable | None:
        batched = self._batched(x.storage)
        return None if batched is None else batched.summable

    def _adds_summable(self, x: Any, y: Any) -> bool:
        if type(x) is not Array or type(y) is not Array or x.shape != y.shape:
            return False
        return self._summable(x) is not None or self._summable(y) is not None

    def total(self, x: Array) -> Tensor:
        """The sum over all examples."""
        summable = self._summable(x)
        if summable is not None:
            return result_tensor(summable.total().array.through(x.view))
        return self._applied(sum, result_tensor(self.whole(x)), axis=0)

    def _sum(self, x: Array, y: Array) -> Summable:
        """The sum of gradients of a weight that is used more than once."""
        total = self._applied(add, self.total(x), self.total(y))
        return Summable(lambda: add(result_tensor(self.whole(x)), result_tensor(self.whole(y))), lambda: total)

    def run(self, call: Any, operands: Sequence[Any], outs: Sequence[Array] | None) -> Sequence[Array] | None:
        """Runs a call for all examples; None where the composite is to be mapped."""
        level = self.level
        batched = tuple([
            type(x) is Array and type(x.storage) is BatchedStorage and x.storage.level is level for x in operands
        ])  # fmt: skip
        if outs is not None and (any(batched) or any(map(self.holds, outs))):
            return self._write(call, operands, outs)
        is_drawn = any([type(x) is _OwnDraw and x.level is level for x in operands])
        if not any(batched) and not is_drawn:
            return self.outer.run(call, operands, outs)
        if call.primitive.view is not None:
            return views_of(call, operands[0])
        if call.primitive is add and self._adds_summable(*operands):
            return [self._later(call, self._sum(*operands))]
        of_all = None if is_drawn else call_of_all(call, self.size, batched)
        if of_all is not None:  # the short way: most operations are elementwise
            ndim = len(call.out_shapes[0])
            made = self.outer.run(of_all, [self.whole(x, ndim) if b else x for x, b in zip(operands, batched)], None)
            if made is not None:
                return [self.one(x) for x in made]
        return self._by_rule(call, operands, batched, is_drawn)

    def _by_rule(
        self, call: Any, operands: Sequence[Any], batched: Sequence[bool], is_drawn: bool
    ) -> Sequence[Array] | None:
        given = [result_tensor(self.whole(x)) if b else self._given(x) for x, b in zip(operands, batched, strict=True)]
        rule = rule_of(call, is_drawn)
        made = None if rule is None else self._applied(rule, call, self.size, given, batched)
        if isinstance(made, Summable):
            if self.is_summed:
                return [self._later(call, made)]
            made = self._applied(made.whole)
        if made is None:
            if call.primitive.composite is not None and call.primitive.bounds is None:
                return None
            made = self._applied(one_by_one, call, self.size, given, batched)
        return [self.one(x.array) for x in (made if isinstance(made, tuple | list) else (made,))]

    def _applied(self, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Calls a function of all examples by the executor outside; the tape is above."""
        tokens = executor.set(self.outer), recording.set(False)
        try:
            return function(*args, **kwargs)
        finally:
            executor.reset(tokens[0])
            recording.reset(tokens[1])

    def _given(self, x: Any) -> Any:
        """An operand that is the same for all examples, as the executor outside takes it."""
        if isinstance(x, Array):
            return result_tensor(x)
        return x.counter if type(x) is _OwnDraw and x.level is self.level else x

    def _write(self, call: Any, operands: Sequence[Any], outs: Sequence[Array]) -> Sequence[Array] | None:
        """Runs a call into memory of each example, or into memory that all share what is the same for all."""
        eager.check_outs(call, outs)
        made = operands if call.primitive is _copy else self.run(call, operands, None)
        if made is None:
            return None
        for out, x in zip(outs, made, strict=True):
            if not self.holds(out):
                raise ArgumentError(
                    f"{call.primitive.name}: out is one tensor for all examples of vmap, each of which would write "
                    "something else: write into a tensor made with empty() inside the function, or return the result"
                )
            self._applied(apply, _copy, result_tensor(self.whole(x)), out=result_tensor(self.whole(out)))
        return outs

    def each(self, function: Callable, given: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Calls a function of tensors for one example after the other, and joins its results; without examples []."""
        wholes = [None if x is None else result_tensor(self.whole(x.array)) for x in given]

        def joined() -> list[Tensor | None]:
            made = [function([None if x is None else x[i] for x in wholes]) for i in range(self.size)]
            return [None if same[0] is None else stack(same) for same in zip(*made, strict=True)]

        return [None if x is None else result_tensor(self.one(x.array)) for x in self._applied(joined)]

    def empty(self, device: Any, shape: Any, dtype: Any) -> Array:
        """Memory to be written, so each example has its own."""
        return self.one(self.outer.empty(device, (self.size, *shape), dtype))

    def observe(self, x: Array) -> None:
        if self.holds(x):
            raise TraceError(
                f"vmap: the elements of a tensor of shape {x.shape} were asked for, which are others for each example: "
                "compute with tensors (where, masks)"
            )
        self.outer.observe(x)

    def constant(self, x: Array) -> None:
        self.outer.constant(x)

    # What generators ask of a trace

    def draw(self, generator: Generator) -> tuple[Any, Any]:
        if self.randomness == "error":
            raise ArgumentError(
                "vmap: the function draws random numbers: pass randomness='different', by which each example draws its "
                "own, or 'same'"
            )
        key, counter = self._outside.run(generator.take)
        return key, _OwnDraw(self.level, counter) if self.randomness == "different" else counter

    def seed(self, generator: Generator, *, again: bool) -> None:
        drawing = self._outside.get(random.drawing)
        if drawing is not None:
            drawing.seed(generator, again=again)

    def ask_state(self, generator: Generator) -> None:
        drawing = self._outside.get(random.drawing)
        if drawing is not None:
            drawing.ask_state(generator)
