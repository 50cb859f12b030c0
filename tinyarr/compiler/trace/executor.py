"""The tracing executor, in the place of eager mode's: it notes operations instead of running them. Floor 2.

Results are arrays like any other, with shapes, strides and views, but over storages without memory. To read elements
in the middle of a trace raises. `build` then makes a graph of values of what was noted.

Example: of `(x @ w.T).sum()` two instructions are noted, matmul(x, w seen with strides (1, 3)) and sum; `w.T` is a
view.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ... import dtypes, eager, views
from ...array import Array, Storage
from ...device import Device
from ...dtypes import Dtype
from ...errors import ArgumentError, TraceError
from ...ops.create import copy
from ...ops.primitive import executor
from ...random import Generator
from ...tape import repetition
from ...tensor import result_tensor
from ...views import Shape, View
from .integers import bound
from .known_integers import KnownIntegers
from .observed import unobserved

_PACKAGE = str(Path(__file__).parents[2])


class TracedStorage(Storage):
    """Memory that a program will have. line: of the call that computes its contents.

    shown: where eager mode has a view instead, the storage that it is of, and its version then.
    """

    __slots__ = ("line", "shown", "trace")

    def __init__(self, nbytes: int, device: Device, trace: Trace, line: str):
        self.nbytes = nbytes
        self.device = device
        self.version = 0
        self.trace = trace
        self.line = line
        self.shown: tuple[Storage, int] | None = None

    @property
    def memory(self) -> Any:
        if self.trace.ended:
            raise kept_too_long(self)
        raise TraceError(f"{asked_by()}: a tensor of {self.nbytes} bytes was asked for its elements {ADVICE}")


def kept_too_long(storage: TracedStorage) -> TraceError:
    """Returns the error for a tensor that a trace made and that something kept beyond it."""
    return TraceError(
        f"compile: {storage.line}: the tensor that is computed here was kept beyond the call where compile can't "
        "replace it by the result, as in a cache or an exception: return it, or keep it in an attribute"
    )


def _whole(storage: Any) -> Any:
    """Returns the memory of all examples, where that of one in a vmap is given."""
    while hasattr(storage, "base"):
        storage = storage.base
    return storage


def require_current(storage: Storage, use: str = "") -> None:
    """Raises TraceError for a copy that stands for a view, where what it shows was written since, or by what use is."""
    if isinstance(storage, TracedStorage) and storage.shown is not None and not storage.trace.ended:
        shown, version = storage.shown
        if use or shown.version != version:
            what = use or "read after a write into what it is a view of"
            raise TraceError(
                f"compile: {storage.line}: a slice whose start is data is {what}, and in a program it is a copy: write "
                "x[i : i + 8] = ... at once, or copy() the slice first"
            )


ADVICE = (
    "in a function that is being compiled, which has none yet: compute with tensors (where, masks), "
    "or do it outside of the function"
)


class Instruction(NamedTuple):
    """One call: the arrays and Python scalars that it reads, the arrays that it makes or, if `writes`, writes into.

    repetition: as tape.repetition.
    """

    call: Any
    inputs: tuple[Any, ...]
    outputs: tuple[Array, ...]
    writes: bool
    line: str
    repetition: int


class Trace:
    """Record of one run of a function. draws: of each random draw the generator, and stand-ins for key and counter.

    needed: the numbers, by path, that must be there as they are, and why. conditions: comparisons of ints that each
    call brings, with their outcomes, on which the trace depends. as_it_is: why the function can't be compiled.
    """

    def __init__(self, family: object = None) -> None:
        """family: of traces that may read each other's tensors, as the way back those of the way there."""
        self.family = object() if family is None else family
        self.instructions: list[Instruction] = []
        self.constants: list[Array] = []
        self.draws: list[tuple[Generator, Drawn, Drawn]] = []
        self.needed: dict[str, str] = {}
        self.conditions: dict[Any, bool] = {}
        self.as_it_is = ""
        self.ended = False
        self.known_integers = KnownIntegers()
        self.gradients_used: Any = None  # what watches the function ask for them, while it runs
        self._made_here: weakref.WeakSet[TracedStorage] = weakref.WeakSet()
        self._versions: dict[int, tuple[Storage, int]] = {}
        self._made: list[Generator] = []
        self._held: dict[Any, bool] = {}  # by call, whether a program can hold it

    @property
    def trace(self) -> Trace:
        """The trace that an executor belongs to: eager mode to none, a vmap to the one that is outside of it."""
        return self

    @property
    def is_running(self) -> bool:
        """Returns whether the caller is in this trace or one of its family. Another thread is not."""
        return getattr(getattr(executor.get(), "trace", None), "family", None) is self.family

    def run(self, call: Any, operands: Sequence[Any], outs: Sequence[Array] | None) -> Sequence[Array] | None:
        """Notes a call and returns arrays of its results without elements; None where its composite must be traced."""
        for x in operands:
            if isinstance(x, Array):
                self._check(x)
        if call.primitive.view is not None:
            if outs is not None:
                raise ArgumentError(f"{call.primitive.name}: out= came, but the result is a view: assign it instead")
            return views_of(call, operands[0])
        if call not in self._held:
            with unobserved():  # a backend may import its libraries, which takes several times as long under watch
                self._held[call] = call.device.backend.holds(call)
        if not self._held[call]:
            return None
        if outs is not None:
            eager.check_outs(call, outs)
            for out in outs:
                require_current(out.storage, "written into")
                storage = out.storage  # its version counts up, so that backward finds a saved tensor changed
                self._versions.setdefault(id(storage), (storage, storage.version))
                storage.version += 1
            self._record(call, operands, outs, line(), writes=True)
            return outs
        where = line()
        made = [self._traced(call.device, s, d, where) for s, d in zip(call.out_shapes, call.out_dtypes, strict=True)]
        if call.out_shapes == ((),):
            self.known_integers.note(call.primitive, operands, made)
        self._record(call, operands, made, where, writes=False)
        return made

    def _record(
        self, call: Any, operands: Sequence[Any], outputs: Sequence[Array], where: str, *, writes: bool
    ) -> None:
        call, operands = bound(call, operands)
        self.instructions.append(Instruction(call, tuple(operands), tuple(outputs), writes, where, repetition.get()))

    def _check(self, x: Array) -> None:
        if isinstance(x.storage, TracedStorage):
            if x.storage.trace.family is not self.family:
                raise kept_too_long(x.storage)
            require_current(x.storage)

    def shows(self, copied: Array, x: Array) -> None:
        """Remembers that a copy stands for a view of x, so that who would tell the one from the other gets an error."""
        made, source = map(_whole, (copied.storage, x.storage))
        made.shown = getattr(source, "shown", None) or (source, source.version)

    def _traced(self, device: Device, shape: Shape, dtype: Dtype, where: str) -> Array:
        """Returns a dense array without memory."""
        storage = TracedStorage(views.size(shape) * dtype.itemsize, device, self, where)
        self._made_here.add(storage)
        return Array(storage, dtype, shape, views.contiguous_strides(shape), 0)

    def require_nothing_kept(self, caches: Sequence[Any]) -> None:
        """Raises TraceError where something still holds a tensor that the trace made, once its graph is built.

        caches: what functools.lru_cache made; they forget what they know where they may be what holds it.
        """
        if self._made_here:
            for cache in caches:
                cache.cache_clear()
            gc.collect()  # an exception and its frames hold each other
        for storage in self._made_here:
            raise kept_too_long(storage)

    def empty(self, device: Device, shape: Shape, dtype: Dtype) -> Array:
        return self._traced(device, shape, dtype, line())

    def observe(self, x: Array) -> None:
        raise TraceError(f"{asked_by()}: a tensor of shape {x.shape} was asked for its elements {ADVICE}")

    def constant(self, x: Array) -> None:
        """Remembers an array made of Python numbers or of a NumPy array: every call makes the same."""
        self.constants.append(x)

    def restore(self) -> None:
        """Ends the trace, and takes back that memory from outside was written."""
        self.ended = True
        for storage, version in self._versions.values():
            storage.version = version
        self._versions.clear()
        self.known_integers.clear()

    def seed(self, generator: Generator, *, again: bool) -> None:
        """Remembers a generator that the function makes: every call makes the same."""
        if again:
            raise TraceError("manual_seed: came in a function that is being compiled: seed outside of it")
        self._made.append(generator)

    def draw(self, generator: Generator) -> tuple[Any, Any]:
        """The key and counter of a draw, which each call of the program asks for."""
        if any(generator is g for g in self._made):
            generator._counter += 1
            return generator._key, generator._counter - 1
        key, counter = Drawn(), Drawn()
        self.draws.append((generator, key, counter))
        return key, counter


    def ask_state(self, generator: Generator) -> None:
        """Raises TraceError where a trace asks for the key and counter of a generator that each call brings."""
        if not any(generator is g for g in self._made):
            raise TraceError(
                f"compile: the key or counter of {generator} was asked for {ADVICE}, and pass the number as an argument"
            )


class Drawn:
    """A draw's key or counter: an int that each call brings."""


dtypes.SCALARS[Drawn] = "signed"


class WatchedArray(Array):
    """Stand-in for an array of a tensor from outside during a trace; it tells whether anything of it was asked for."""

    __slots__ = ("watched",)

    def __init__(self, watched: Array):
        self.watched = watched

    def __getattr__(self, name: str) -> Any:
        """Fills Array's slots, once any of them is needed."""
        for slot in Array.__slots__:
            setattr(self, slot, getattr(self.watched, slot))
        return getattr(self.watched, name)

    @property
    def was_looked_at(self) -> bool:
        try:
            object.__getattribute__(self, "storage")
        except AttributeError:
            return False
        return True


def asked_by() -> str:
    """The function of tinyarr's that was called from outside of it, and where: `repeat (file:line)`."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        if not frame.f_code.co_filename.endswith("other_names.py"):  # which calls the function that was named
            name = frame.f_code.co_name
        frame = frame.f_back
    return f"{name.strip('_')} ({frame.f_code.co_filename}:{frame.f_lineno})"


def line() -> str:
    """`file:line` of the innermost caller outside of tinyarr."""
    frame: Any = sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}"


def views_of(call: Any, x: Array) -> Sequence[Array]:
    """Returns what a call of a primitive that only views shows of x."""
    found = call.primitive.view(x.view, **call.params)
    if found is None:  # no strides show it so: an explicit copy, as in eager mode
        x = copy(result_tensor(x)).array
        found = call.primitive.view(x.view, **call.params)
    return [x.through(view) for view in ([found] if isinstance(found, View) else found)]
