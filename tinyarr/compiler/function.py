"""compile: a function is traced once for each signature, and runs as a program from then on."""

from __future__ import annotations

import functools
import os
import threading
import time
import types
from collections.abc import Callable, Sequence
from typing import Any

from .. import diagnostics, random
from ..array import Array
from ..device import Device, default_device
from ..errors import ArgumentError, TraceError
from ..ops.primitive import executor
from ..program import Graph, State
from ..tape import recording, watched
from ..tensor import Tensor, result_tensor
from .agree import agree
from .build import build
from .effects import Before, Changes, filled, numbered, standing_in
from .floats import Given, NeedsValue, TracedFloat, value_of
from .interpret import Interpreter
from .lives import made_by
from .memory import Memory
from .passes import PASSES, passes_within
from .plan import plan
from .reach import Reach, difference
from .trace import Trace, TracedStorage

GUARD = 512  # bytes, with TINYARR_GUARD=1
MOST_PROGRAMS = 8  # of one function: more mean that something is different at every call


def compile(function: Callable, *, memory_budget: int | None = None) -> Compiled:
    """The function, run as a program: traced at the first call of each signature, replayed from then on.

    The signature is the shapes, dtypes, devices and strides of the tensors that the function reaches, through its
    arguments, closure, globals and self, and the Python values there: what it does must depend on nothing else. Floats
    among the arguments are inputs like tensors, unless Python asks for their value, to branch on it for one. Tensors
    that it writes, gradients, and attributes and variables that it sets are after each call as if the function itself
    had run; what it returns is new and has no history.

    memory_budget: bytes that what it computes may take at once, beside its arguments and state. Where that needs more,
    elementwise results and norms are made again when they are next read; a warning says if that is not enough.

    Raises TraceError where the function asks for elements, or uses a tensor that can't be found again.
    """
    if not callable(function):
        raise TypeError(f"compile: function is {type(function).__name__}: pass a function, a method or a module")
    if memory_budget is not None and (type(memory_budget) is not int or memory_budget < 0):
        raise ArgumentError(f"compile: memory_budget is {memory_budget!r}: give a number of bytes, or None")
    return Compiled(function, passes_within(memory_budget))


class _Clock:
    """The seconds that each phase took."""

    def __init__(self) -> None:
        self._phases: dict[str, float] = {}
        self._since = time.perf_counter()

    def lap(self, phase: str) -> None:
        before, self._since = self._since, time.perf_counter()
        self._phases[phase] = self._since - before

    @property
    def total(self) -> float:
        return sum(self._phases.values())

    def __str__(self) -> str:
        return ", ".join(f"{phase} {seconds:.3f} s" for phase, seconds in self._phases.items())


def _build(graph: Graph, clock: _Clock) -> Any:
    """What runs a graph: the program of the device that holds all its values, or the interpreter."""
    made, device = None, _device_of(graph)
    if device is not None:
        planned = plan(graph, GUARD if os.environ.get("TINYARR_GUARD") == "1" else 0)
        clock.lap("plan")
        made = device.backend.program(graph, planned)
    return Interpreter(graph) if made is None else made


def _device_of(graph: Graph) -> Device | None:
    """The device that holds all values of a graph, if one does."""
    used = {v.device for n in graph.nodes for v in made_by(n)}
    used |= {s.before.device for s in graph.states} | {v.device for v, _ in graph.constants}
    device = used.pop() if used else default_device()
    return None if used else device


class Compiled:
    """A compiled function.

    passes: what is done to its graphs; passes.py names what little of it changes a result. build(graph): what runs one,
    by default the device's own program; with Interpreter, the kernels of eager mode, and so its bits. seconds: spent on
    making programs so far.
    """

    def __init__(
        self,
        function: Callable,
        passes: Sequence[Callable[[Graph], Graph]] = PASSES,
        build: Callable[[Graph], Any] | None = None,
    ):
        functools.update_wrapper(self, function)
        self.function = function
        self._name = getattr(function, "__qualname__", type(function).__name__)
        self._passes = passes
        self._build = build
        self._programs: dict[tuple, _Program] = {}
        self._needed: dict[str, str] = {}  # the float arguments that belong to the signature, and why
        self._lock = threading.RLock()
        self.seconds = 0.0

    @property
    def programs(self) -> list[Any]:
        """What runs each of them; of a C library, `source` and `kernels` show the code."""
        return [program.runner for program in self._programs.values()]

    @property
    def memory(self) -> list[Memory]:
        """The plan of memory of each: what it holds, and when. On `meta` nothing was allocated for it."""
        found = []
        for graph in self.graphs:
            planned, device = plan(graph), _device_of(graph)
            found.append(Memory(graph, planned, 0 if device is None else device.backend.scratch(graph, planned)))
        return found

    @property
    def graphs(self) -> list[Graph]:
        """What was traced, one graph for each signature."""
        return [program.graph for program in self._programs.values()]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if isinstance(executor.get(), Trace) or watched():  # gradients are looked at one by one
            return self.function(*args, **kwargs)
        with self._lock:
            reach = Reach(self.function, args, kwargs, self._needed)
            key = reach.signature, recording.get(), default_device()
            program = self._programs.get(key)
            if program is None:
                why = self._why(reach)
                if len(self._programs) == MOST_PROGRAMS:
                    raise TraceError(
                        f"compile: {self._name} was traced for {MOST_PROGRAMS} signatures, and another "
                        f"came: make what changes at each call a tensor\n{self.explain()}\nnow: {why}"
                    )
                clock = _Clock()
                traced = _trace(self.function, reach, args, kwargs)
                if isinstance(traced, dict):
                    self._needed |= traced
                    diagnostics.tell("trace", "\n".join(f"{self._name}: {path}: {why}" for path, why in traced.items()))
                    return self(*args, **kwargs)
                graph, returned, changes = traced
                clock.lap("trace")
                for change in self._passes:
                    graph = change(graph)
                clock.lap("passes")
                agree(graph, self._name)
                runner = _build(graph, clock) if self._build is None else self._build(graph)
                clock.lap("compile")
                self.seconds += clock.total
                why = f"{why} ({len(graph.nodes)} nodes: {clock})"
                diagnostics.tell("trace", f"{self._name}: traced: {why}")
                program = self._programs[key] = _Program(runner, graph, returned, changes, reach.paths, why)
            return program.run(reach)

    def explain(self) -> str:
        """Why the function was traced, a line for each time: what was different from the most similar signature.

        Below, the floats among the arguments that belong to the signature, and why.
        """
        traced = [f"{i + 1}: {program.why}" for i, program in enumerate(self._programs.values())]
        return "\n".join(traced + [f"{path}: {why}" for path, why in self._needed.items()])

    def _why(self, reach: Reach) -> str:
        found = [difference(reach, key[0], program.paths) for key, program in self._programs.items()]
        if not found:
            return "the first call"
        least = min(found, key=len)
        return "; ".join(least[:5]) if least else "gradient mode or default device"


class _Program:
    """What runs a graph, and where its results go: to what the function returns, and to what it changes."""

    def __init__(self, runner: Any, graph: Graph, returned: Any, changes: Changes, paths: Sequence[str], why: str):
        self.graph = graph
        self.paths = paths
        self.why = why
        self._returned = returned
        self._changes = changes
        self.runner = runner

    def run(self, reach: Reach) -> Any:
        leaves = reach.leaves
        memory = [_memory(leaves[state.leaf].object.array, state) for state in self.graph.states]
        draws = [(leaves[g].object if g >= 0 else random.default_generator()).take() for g, *_ in self.graph.draws]
        given = list(reach.floats.values())
        floats = [float(value_of(x, given)) for x, _ in self.graph.floats]
        results = [result_tensor(x) for x in self.runner.run(memory, draws, floats)]
        self._changes.repeat(reach, results, given)
        return filled(self._returned, results, given)


def _memory(leaf: Array, state: State) -> Array:
    return Array(leaf.storage, leaf.dtype, state.before.shape, (1,), leaf.offset + state.start)


def _trace(
    function: Callable, reach: Reach, args: tuple, kwargs: dict[str, Any]
) -> tuple[Graph, Any, Changes] | dict[str, str]:
    """The graph, what is returned and what changes; or, by path, why float arguments are needed as they are."""
    for path, x in reach.leaves:
        if isinstance(x, Tensor) and x.node is not None:
            raise TraceError(f"compile: {path} is the result of recorded operations: detach() it, or compile those too")
        if isinstance(x, Tensor) and isinstance(x.array.storage, TracedStorage):
            raise TraceError(f"compile: {path} was kept by an earlier trace where it can't be replaced: return it")
    trace, tensors = Trace(), []  # type: ignore[var-annotated]
    floats = {path: TracedFloat(trace, Given(number)) for number, path in enumerate(reach.floats)}
    with standing_in(floats, args, kwargs) as (args, kwargs):
        before = Before(reach)
        tokens = executor.set(trace), random.drawing.set(trace)
        try:
            result = function(*args, **kwargs)
            changes = before.changes(tensors)
            returned = numbered(result, tensors)
            graph = build(trace, reach.leaves, tensors)
        except (Exception, NeedsValue) as error:
            if isinstance(error, TypeError):  # perhaps what takes nothing but Python's own floats
                trace.needed |= dict.fromkeys(range(len(floats)), f"without its value came: {error}")
            if not trace.needed:
                raise
        finally:
            executor.reset(tokens[0])
            random.drawing.reset(tokens[1])
            before.restore()
            trace.restore()
    if trace.needed:
        return {path: trace.needed[n] for n, path in enumerate(floats) if n in trace.needed}
    return graph, returned, changes
