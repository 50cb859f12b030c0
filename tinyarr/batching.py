"""vmap: a function of one example, mapped over an axis of its arguments, for all examples at once. Floor 5.

Inside, a tensor has the shape of one example. Its storage remembers the array of all of them, and how far apart they
are. `Batch` is an executor: it takes a call on single examples and applies the primitive, by its batching rule, to the
arrays of all. Views need no rule, as a view of one example is a view of each. The tape lies above: what is recorded
inside, and differentiated there, is about single examples. For a gradient from outside the whole map is one operation.

Example: in `vmap(lambda x: x[0] * 2)(X)` with X (5, 3), x has shape (3,) and its examples are 3 elements apart; x[0]
has shape (), 3 apart; and multiply runs once, on the 5 elements of X[:, 0].
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import dtypes, eager, random, views
from .array import Array, Storage
from .autograd import walk
from .batching_rules import Summable, one_by_one, rule_of
from .device import Device
from .errors import ArgumentError, ShapeError, TraceError
from .ops.create import _copy, contiguous, copy
from .ops.primitive import apply, executor
from .ops.reduce import sum
from .ops.shape import moveaxis
from .random import Generator
from .tape import Edge, edge_of, gradient_spec, numbers, reachable, record_custom, recording
from .tensor import Tensor, result_tensor
from .transforms import _mapped
from .views import View

RANDOMNESS = ("error", "different", "same")


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
        self._base, self.summable = (None, base) if isinstance(base, Summable) else (base, None)

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

    def __getattr__(self, name: str) -> Any:
        return getattr(self.outer, name)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        token = executor.set(self)
        try:
            with random.drawn_by(self):
                yield
        finally:
            executor.reset(token)

    def holds(self, x: Any) -> bool:
        """Returns whether an array has an example of its own for each of the batch."""
        return isinstance(x, Array) and isinstance(x.storage, BatchedStorage) and x.storage.level is self.level

    def whole(self, x: Array) -> Array:
        """The array of all examples, the first axis; what is the same for all is repeated, with stride 0."""
        storage, stride = (x.storage.base, x.storage.stride) if self.holds(x) else (x.storage, 0)
        return Array(storage, x.dtype, (self.size, *x.shape), (stride, *x.strides), x.offset)

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

    def total(self, x: Array) -> Tensor:
        """The sum over all examples."""
        if self.holds(x) and x.storage.summable is not None:
            return result_tensor(x.storage.summable.total().array.through(x.view))
        return sum(result_tensor(self.whole(x)), axis=0)

    def run(self, call: Any, operands: Sequence[Any], outs: Sequence[Array] | None) -> Sequence[Array] | None:
        """Runs a call for all examples; None where the composite is to be mapped."""
        batched = [self.holds(x) for x in operands]
        if outs is not None and (any(batched) or any(map(self.holds, outs))):
            return self._write(call, operands, outs)
        is_drawn = any(type(x) is _OwnDraw and x.level is self.level for x in operands)
        if not any(batched) and not is_drawn:
            return self.outer.run(call, operands, outs)
        if call.primitive.view is not None:
            return self._view(call, operands[0])
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

    def _view(self, call: Any, x: Array) -> Sequence[Array]:
        found = call.primitive.view(x.view, **call.params)
        if found is None:  # no strides show it so: an explicit copy, as in eager mode
            x = copy(result_tensor(x)).array
            found = call.primitive.view(x.view, **call.params)
        return [x.through(view) for view in ([found] if isinstance(found, View) else found)]

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


class _Map:
    """One call of a mapped function: how tensors come in and out, and its gradient.

    entries: the edge of each tensor inside that stands for one with a history, and that one.
    """

    def __init__(self, size: int, randomness: str):
        self.level = object()
        self.size = size
        self.randomness = randomness
        self.oldest = next(numbers)
        self.entries: dict[Edge, Tensor] = {}

    def batch(self, is_summed: bool = False) -> Batch:
        return Batch(self.level, self.size, self.randomness, is_summed)

    def enter(self, batch: Batch, x: Tensor) -> Tensor:
        """One example of those along the first axis."""
        inside = result_tensor(batch.one(x.array))
        if x._requires_grad:
            inside._requires_grad = True
            self.entries[inside, 0] = x
        return inside

    def leave(self, batch: Batch, results: Sequence[Tensor]) -> list[Tensor]:
        """All examples of tensors from inside, along the first axis, with their history as one operation."""
        wholes = [result_tensor(batch.whole(x.array)) for x in results]
        kept = [i for i, x in enumerate(results) if x._requires_grad] if recording.get() else []
        roots = [edge_of(results[i]) for i in kept]
        inside = reachable(roots, self.oldest)
        found = dict.fromkeys(roots + [edge for node in inside for edge in node.edges if edge is not None])
        targets = [edge for edge in found if self._is_target(batch, edge)]
        if not targets:
            return wholes
        edges = [edge_of(self.entries[edge]) if edge in self.entries else edge for edge in targets]

        def rule(gs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
            return self._carried_back(roots, targets, gs)

        record_custom("vmap", rule, [gradient_spec(e) for e in edges], edges, [wholes[i] for i in kept], ())
        return wholes

    def _is_target(self, batch: Batch, edge: Edge) -> bool:
        """Returns whether a gradient leaves by an edge: to an entry, or to what the function found outside."""
        parent = edge[0]
        if isinstance(parent, Tensor):
            return edge in self.entries or not batch.holds(parent.array)
        return parent.number < self.oldest

    def _carried_back(
        self, roots: Sequence[Edge], targets: Sequence[Edge], gs: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """The gradients of the targets: an entry's of each example, that of what is the same for all summed."""
        again = _Map(self.size, self.randomness)
        again.level, again.oldest, again.entries = self.level, self.oldest, dict(self.entries)
        create_graph = recording.get()
        batch = again.batch(is_summed=not create_graph)
        with batch.running():
            pairs = [(edge, again.enter(batch, g)) for edge, g in zip(roots, gs, strict=True) if g is not None]
            found = walk(pairs, targets, create_graph, True, self.oldest)
        if create_graph:
            left = iter(again.leave(batch, [g for g in found if g is not None]))
            wholes = [None if g is None else next(left) for g in found]
            return [
                g if g is None or edge in self.entries else sum(g, axis=0)
                for edge, g in zip(targets, wholes, strict=True)
            ]
        return [
            None if g is None else result_tensor(batch.whole(g.array)) if edge in self.entries else batch.total(g.array)
            for edge, g in zip(targets, found, strict=True)
        ]


def vmap(function: Callable, in_axes: Any = 0, out_axes: Any = 0, *, randomness: str = "error") -> Callable:
    """A function that applies `function`, which takes one example, to all examples along an axis of its arguments.

    in_axes: the axis of the examples, an int, or None for an argument that is the same for all: one for every
    positional argument, or a tuple with one for each, which may be a list, tuple or dict as the argument is. Keyword
    arguments are the same for all. out_axes: in the same way the axis at which results are joined; None for one that is
    the same for all. randomness: of random draws in the function: "error", "different" (each example its own), "same".

    The function runs once, on tensors with the shapes of one example: it can't ask for their elements (`item`, `if`).
    Operations run for all examples at once; a primitive of your own that has neither a composite nor a batching rule
    runs for one after the other. It may be nested, compiled, differentiated, and differentiate itself. Raises
    ShapeError where arguments have different numbers of examples, ArgumentError for axes that do not fit.
    Source: torch.func.vmap.

    Each example's own gradient:

    >>> import tinyarr
    >>> loss = lambda w, x, y: (w @ x - y) ** 2
    >>> w, X, Y = tinyarr.Tensor([1.0, 2.0]), tinyarr.Tensor([[1.0, 0.0], [3.0, 1.0]]), tinyarr.Tensor([0.0, 4.0])
    >>> tinyarr.vmap(tinyarr.grad(loss), in_axes=(None, 0, 0))(w, X, Y)
    Tensor([[2., 0.],
            [6., 2.]])
    """
    if randomness not in RANDOMNESS:
        raise ArgumentError(f"vmap: randomness is {randomness!r}: use one of {', '.join(RANDOMNESS)}")

    @functools.wraps(function, updated=())
    def mapped(*args: Any, **kwargs: Any) -> Any:
        given: list[Any] = []
        _mapped(args, given.append)
        axes = _axes("in_axes", in_axes, args)
        moved = [x if axis is None else _in_front(x, axis) for x, axis in zip(given, axes, strict=True)]
        sizes = {x.shape[0]: x for x, axis in zip(moved, axes, strict=True) if axis is not None}
        if len(sizes) != 1:
            came = f"arguments have {sorted(sizes)} examples" if sizes else "no argument has an axis of examples"
            raise ShapeError(f"vmap: {came}, in_axes is {in_axes}: all that are mapped must have equally many")
        this = _Map(*sizes, randomness)
        batch = this.batch()
        entered = iter([x if axis is None else this.enter(batch, x) for x, axis in zip(moved, axes, strict=True)])
        with batch.running():
            result = function(*_mapped(args, lambda _: next(entered)), **kwargs)
        results: list[Any] = []
        _mapped(result, results.append)
        axes = _axes("out_axes", out_axes, result)
        for x, axis in zip(results, axes, strict=True):
            if not isinstance(x, Tensor):
                raise ArgumentError(f"vmap: the function returned {type(x).__name__}: return tensors")
            if axis is None and batch.holds(x.array):
                raise ArgumentError("vmap: out_axes is None for a result that is another for each example: give an axis")
        wholes = this.leave(batch, [x for x, axis in zip(results, axes, strict=True) if axis is not None])
        left = iter(wholes)
        joined = iter([x if axis is None else moveaxis(next(left), 0, axis) for x, axis in zip(results, axes)])
        return _mapped(result, lambda _: next(joined))

    return mapped


def _axes(name: str, axes: Any, tree: Any) -> list[int | None]:
    """The axis of each tensor in lists, tuples and dicts of any depth, where one may stand for all below it."""
    if axes is None or (isinstance(axes, int) and not isinstance(axes, bool)):
        found: list[Any] = []
        _mapped(tree, found.append)
        return [axes] * len(found)
    if isinstance(tree, dict) and isinstance(axes, dict) and axes.keys() == tree.keys():
        return [a for key, part in tree.items() for a in _axes(name, axes[key], part)]
    if isinstance(tree, list | tuple) and isinstance(axes, list | tuple) and len(axes) == len(tree):
        return [a for spec, part in zip(axes, tree) for a in _axes(name, spec, part)]
    raise ArgumentError(f"vmap: {name} is {axes!r}: give an int or None, or as many of them, arranged alike, as tensors")


def _in_front(x: Any, axis: int) -> Tensor:
    if not isinstance(x, Tensor):
        raise ArgumentError(f"vmap: an argument holds {type(x).__name__}: make it a tensor, or give None in in_axes")
    if not x.ndim:
        raise ShapeError("vmap: an argument is 0-d, and has no axis of examples: give None in in_axes")
    return x if axis == 0 else moveaxis(x, axis, 0)
