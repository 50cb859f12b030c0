"""compile: a function is traced once for each signature, and runs as a program from then on. Floor 2."""

from __future__ import annotations

import functools
import itertools
import os
import sys
import threading
import time
import types
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import diagnostics, eager, random
from ..device import Device, default_device
from ..errors import ArgumentError, TraceError
from ..forking import renew_in_children
from ..ops.primitive import executor
from ..program import Graph
from ..tape import is_nested, recording, watched
from .capture.assumptions import PLAIN
from .capture.captured import GradientOf, Leaf, Part, difference
from .capture.recent import Recent
from .capture.walk import Walk
from .check_collectives import agree
from .interpret import Interpreter
from .lower import lower
from .memory.plan import plan
from .memory.report import MemoryPlan
from .passes.order import PASSES, passes_within
from .trace.calls import Bound, called
from .trace.symbolic_numbers import is_value, told, value_of
from .trace.templates import TemplateObjects
from .trace.traced import Traced, trace_call
from .uses import made_by

GUARD = 512  # bytes, with TINYARR_GUARD=1
MOST_PROGRAMS = 8  # of one function: more mean that something is different at every call
MOST_TRACES = 20  # for one signature: each finds what the ones before did not know
MOST_SIGNATURES = 256  # kept for a faster look-up; each holds what it is made of
_ARGUMENTS = "arguments[", "keywords["
_PACKAGE = str(Path(__file__).parents[1])


def compile(
    function: Callable, *, state: Any = None, memory_budget: int | None = None, max_programs: int = MOST_PROGRAMS
) -> Compiled:
    """The function, run as a program: traced at the first call of each signature, replayed from then on.

    The signature is the shapes, dtypes, devices and strides of the tensors that the function reaches, through its
    arguments, closure, globals and self, and the Python values there: what it does must depend on nothing else. Ints
    and floats among the arguments are inputs like tensors, unless Python asks for their value, as for a shape; a
    program serves all ints that compare as those in its trace did. Tensors that it writes, gradients, and attributes
    and variables that it sets are after each call as if the function itself had run; what it returns is new.

    Where a gradient is wanted, a call is one operation on the tape: the forward program also returns what backward
    reads, and backward is a program of its own, made when it is first asked for, and differentiable again. A result
    whose graph a backward() inside of the function has freed has no history.

    state: one object or a tuple of them, such as (model, optimizer). With it a call looks at the state and the
    arguments, and at nothing else. What the function reads beside them is a constant, as it is at the first trace: a
    number, a string, a function, a class, a module, or what is made of such and can't change itself. Anything else, as
    a list, a tensor or an object with attributes, raises TraceError, as does a change of what is not state.

    memory_budget: bytes that what it computes may take at once, beside its arguments and state. Where that needs more,
    elementwise results, norms and unfolded windows are made again when next read; a warning says if that is not enough.

    Raises TraceError where the function asks for elements, or uses a tensor that can't be found again; OutOfBounds for
    a bad index, on the CPU with every tensor as it was before the call (random draws count on). On a GPU the program
    runs to its end, whatever it then writes, and the next synchronization raises: load the state again.
    """
    if not callable(function):
        raise TypeError(f"compile: function is {type(function).__name__}: pass a function, a method or a module")
    if memory_budget is not None and (type(memory_budget) is not int or memory_budget < 0):
        raise ArgumentError(f"compile: memory_budget is {memory_budget!r}: give a number of bytes, or None")
    if type(max_programs) is not int or max_programs < 1:
        raise ArgumentError(f"compile: max_programs is {max_programs!r}: give a positive number")
    for x in () if state is None else state if isinstance(state, tuple) else (state,):
        if type(x) in PLAIN:
            raise ArgumentError(f"compile: state is {x!r}, which holds nothing: pass objects, as (model, optimizer)")
    return Compiled(function, passes_within(memory_budget), max_programs=max_programs, state=state)


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
    """Returns the runner of a graph: the program of the device that holds all its values, or the interpreter."""
    made, device = None, _device_of(graph)
    if device is not None:
        planned = plan(graph, GUARD if os.environ.get("TINYARR_GUARD") == "1" else 0)
        clock.lap("plan")
        made = device.backend.program(graph, lower(planned, device.backend))
    return Interpreter(graph) if made is None else made


def _device_of(graph: Graph) -> Device | None:
    """The device that holds all values of a graph, if one does."""
    used = {v.device for n in graph.nodes for v in made_by(n)}
    used |= {s.before.device for s in graph.states} | {v.device for v, _ in graph.constants}
    device = used.pop() if used else default_device()
    return None if used else device


class Compiled:
    """A compiled function.

    passes: what is done to its graphs; passes/order.py names what little of it changes a result. build(graph): what
    runs one, by default the device's own program; with Interpreter, the kernels of eager mode, and so its bits.
    max_programs: after so many, a new signature runs as the function itself. state: see compile. seconds: spent on
    making programs.
    """

    captured = ("function",)  # by the walk of another compiled function

    def __init__(
        self,
        function: Callable,
        passes: Sequence[Callable[[Graph], Graph]] = PASSES,
        build: Callable[[Graph], Any] | None = None,
        max_programs: int = MOST_PROGRAMS,
        state: Any = None,
    ):
        functools.update_wrapper(self, function, updated=())  # attributes are asked of the function itself
        self.function = function
        self._name = getattr(function, "__qualname__", type(function).__name__)
        self._passes = passes
        self._build = build
        self._max_programs = max_programs
        self._state = state if state is None or isinstance(state, tuple) else (state,)
        self._programs: list[_Program] = []
        self._by_signature: dict[tuple, tuple[_Program, ...]] = {}
        self._varying: set[str] = set()  # the numbers outside of the arguments that were seen to change
        self._needed: dict[str, str] = {}  # the numbers that belong to the signature although they change, and why
        self._fixed: dict[str, str] = {}  # the ints whose value a program needed, and why
        self._more_code: dict[types.CodeType, dict[str, Any]] = {}  # that ran although no walk comes to it
        self._constants: dict[Any, Part] = {}  # that traces with a given state have read
        self._has_given_up = False
        self._warned: set[str] = set()
        self._recent: Recent | None = None
        self._lock = threading.RLock()
        renew_in_children(self, "_lock", threading.RLock)
        self.seconds = 0.0

    @property
    def programs(self) -> list[Any]:
        """Runners, one for each signature; of a C library, `source` and `kernels` show the code."""
        return [program.runner for program in self._programs]

    @property
    def memory(self) -> list[MemoryPlan]:
        """The plan of memory of each: what it holds, and when. On `meta` nothing was allocated for it."""
        found = []
        for graph in self.graphs:
            planned, device = plan(graph), _device_of(graph)
            scratch = 0 if device is None else device.backend.scratch(graph, lower(planned, device.backend))
            found.append(MemoryPlan(graph, planned, scratch))
        return found

    @property
    def graphs(self) -> list[Graph]:
        """Graphs after the passes, one for each signature."""
        return [program.graph for program in self._programs]

    @property
    def backward_programs(self) -> list[Any]:
        """Runners of backward, one for each program on the way back that was asked for."""
        histories = [program.history for program in self._programs if program.history is not None]
        return [way.runner for history in histories for part in history.parts for way in part.pullback.ways]

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the function: a model's parameters() and eval(), its weights, a function's own."""
        if name.startswith("__") or "function" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.function, name)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def __reduce__(self) -> tuple:
        """Returns the function, and the options it is compiled with, for copy and pickle."""
        return type(self), (self.function, self._passes, self._build, self._max_programs, self._state)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if executor.get() is not eager or watched():  # in a trace or a vmap; and gradients are looked at one by one
            return self.function(*args, **kwargs)
        with self._lock:
            mode = recording.get(), is_nested(), default_device()
            if self._recent is not None:
                again = self._recent.again(mode, args, kwargs)
                if again is not None and self._recent.program.admits(again.numbers):
                    return self._recent.program.run(again)
                self._recent = None
            capture, program = self._find(mode, args, kwargs)
            if program is None:
                return self.function(*args, **kwargs)
            recent = Recent(capture, program, mode, args, kwargs)
            bound = recent.bound(args, kwargs)
            assert bound is not None, "arguments are like themselves"
            result = program.run(bound)
            self._recent = recent
            return result

    def _find(self, mode: tuple, args: tuple, kwargs: dict[str, Any]) -> tuple[Walk, _Program | None]:
        """Returns the capture of a call, and its program; None where the function is to run as it is."""
        # A trace may show that the value of a number, or code that no walk came to, belongs to the signature. Then it
        # is thrown away, and the next round looks at that too. A value that only this trace needs makes a program for
        # this value beside those for many: x[i : i + 8] is one for all i but the last, where less than 8 are left.
        fixed: dict[str, str] = {}
        for traces in range(MOST_TRACES):
            capture = self._capture(args, kwargs)
            key = (*capture.signature, *mode)
            known = self._by_signature.get(key, ())
            program = next((p for p in known if p.admits(capture.numbers)), None)
            program = program or next((p for p in self._programs if p.fits(capture, mode)), None)
            if program is None:
                if self._vary(capture):
                    continue
                if len(self._programs) >= self._max_programs:
                    self._give_up(capture)
                    return capture, None
                if traces > MOST_TRACES // 2:
                    fixed |= dict.fromkeys(_ints(capture), "its value was needed")
                made = self._make(capture, mode, args, kwargs, fixed)
                if made is None:
                    continue
                if isinstance(made, str):
                    self._warn(f"{self._name} runs as it is: {made}")
                    return capture, None
                self._programs.append(made)
                program = made
            if len(self._by_signature) >= MOST_SIGNATURES:
                self._by_signature.clear()
            if program not in known:
                self._by_signature[key] = (*known, program)
            return capture, program
        self._warn(f"{self._name} runs as it is: each of {MOST_TRACES} traces ran other code or needed other numbers")
        return capture, None

    def _capture(self, args: tuple, kwargs: dict[str, Any], fixed: Iterable[str] = ()) -> Walk:
        needed = {*self._needed, *fixed}
        return Walk(self.function, args, kwargs, self._varying, needed, self._more_code, self._state)

    def _vary(self, capture: Walk) -> bool:
        """Makes inputs of numbers if all that is new about a signature is their values. Returns whether it did."""
        for program in self._programs:
            paths = program.numbers_that_differ(capture)
            if paths and not paths & (self._varying | self._needed.keys()):
                self._varying |= paths
                return True
        return False

    def _make(
        self, capture: Walk, mode: tuple, args: tuple, kwargs: dict[str, Any], fixed: dict[str, str]
    ) -> _Program | str | None:
        """The program for a new signature, or why there can't be one; None where numbers turn out to be needed.

        fixed: the ints, by path, of which the program is to be for this value alone, and why.
        """
        why = self._why(capture)
        clock = _Clock()
        deep = self._capture(args, kwargs, fixed) if fixed else capture
        deep = deep if self._state is None else deep.deepened(self.function)
        traced = trace_call(self.function, deep, args, kwargs, self._name, self._made)
        caches = [x for x in deep.objects.values() if isinstance(x, functools._lru_cache_wrapper)]
        traced.trace.instructions.clear()  # they hold what the trace made: whatever is left is held by the function
        if traced.history is None:  # whose tape may keep what the trace made
            traced.trace.require_nothing_kept(caches)
        if traced.trace.as_it_is:
            return traced.trace.as_it_is
        if traced.needed:
            ints = traced.needed.keys() & _ints(capture)
            fixed |= {path: traced.needed[path] for path in ints}
            self._fixed |= fixed
            self._needed |= {path: why for path, why in traced.needed.items() if path not in ints}
            self._varying -= self._needed.keys()
            reasons = (f"{self._name}: {path}: {why}" for path, why in traced.needed.items())
            diagnostics.tell("trace", "\n".join(reasons))
            return None
        traced.trace.conditions |= {is_value(path, capture.numbers[path]): True for path in fixed}
        if traced.more_code:  # what it names belongs to the signature too
            self._more_code |= traced.more_code
            return None
        self._refuse_opaque(deep, traced.names)
        for key, x in traced.constants.items():
            if self._constants.setdefault(key, x) != x:
                raise TraceError(
                    f"compile: {self._name} was traced when {key[1]}, which is not in state, was something else: put "
                    "it in state, or pass it"
                )
        clock.lap("trace")
        graph, runner = self._made(traced.graph, clock)
        why = f"{why} ({len(graph.nodes)} nodes: {clock})"
        diagnostics.tell("trace", f"{self._name}: traced: {why}")
        return _Program(runner, graph, traced, capture, mode, why)

    def _made(self, graph: Graph, clock: _Clock | None = None) -> tuple[Graph, Any]:
        """Returns a graph after the passes, and its runner."""
        clock = _Clock() if clock is None else clock
        for change in self._passes:
            graph = change(graph)
        clock.lap("passes")
        agree(graph, self._name)
        runner = _build(graph, clock) if self._build is None else self._build(graph)
        clock.lap("compile")
        self.seconds += clock.total
        return graph, runner

    def _refuse_opaque(self, capture: Walk, names: frozenset[str]) -> None:
        for path, kind in capture.opaque.items():
            is_replaced = capture.slots[path] is not None or path.startswith(_ARGUMENTS)
            if not is_replaced and capture.leads(capture.names[path], names):
                raise TraceError(
                    f"compile: {self._name} uses {path}, of type {kind}, whose state can't be seen, so a later call "
                    "could not tell that it has changed: pass what is taken of it as an argument"
                )

    def _warn(self, what: str) -> None:
        """Says once that the function is not compiled."""
        if what not in self._warned:
            self._warned.add(what)
            level, frame = 1, sys._getframe()
            while frame.f_back is not None and frame.f_code.co_filename.startswith(_PACKAGE):
                level, frame = level + 1, frame.f_back
            warnings.warn(f"compile: {what}", stacklevel=level)

    def _give_up(self, capture: Walk) -> None:
        if not self._has_given_up:
            self._has_given_up = True
            self._warn(
                f"{self._name} was traced for {self._max_programs} signatures, and another came: from now on it runs "
                "as it is where the signature is a new one. Make what changes at each call a tensor, or raise "
                f"max_programs\n{self.explain()}\nnow: {self._why(capture)}"
            )

    def explain(self) -> str:
        """Returns the reason of each trace, a line each: how it differs from the most similar signature.

        Below, the numbers that belong to the signature, and why.
        """
        traced = [f"{i + 1}: {program.why}" for i, program in enumerate(self._programs)]
        return "\n".join(traced + [f"{path}: {why}" for path, why in (self._needed | self._fixed).items()])

    def _why(self, capture: Walk) -> str:
        found = [program.difference(capture) for program in self._programs]
        if not found:
            return "the first call"
        least = min(found, key=len)
        return "; ".join(least[:5]) if least else "gradient mode or default device"


def _ints(capture: Walk) -> set[str]:
    """The paths of the ints that each call brings."""
    return {path for path, x in capture.numbers.items() if type(x) is int}


class _Program:
    """Program of one signature: a runner, and templates of what the function returns and changes.

    leaves: the paths to which numbers in the graph refer. places: of each its number, and the states that are found
    again there.
    """

    def __init__(self, runner: Any, graph: Graph, traced: Traced, capture: Walk, mode: tuple, why: str):
        self.graph = graph
        self.history = traced.history
        self.why = why
        self.runner = runner
        self.conditions = traced.trace.conditions
        self._traced = traced
        self._mode = mode
        self._parts = self._used(capture)
        self.leaves = traced.leaves
        self.places: dict[str, tuple[int, list]] = {path: (i, []) for i, path in enumerate(traced.leaves)}
        for i, state in enumerate(graph.states):
            self.places[traced.leaves[state.leaf]][1].append((i, state))

    def fits(self, capture: Walk, mode: tuple) -> bool:
        """Returns whether all that the trace depended on is in a call as it was then."""
        return mode == self._mode and self._used(capture) == self._parts and self.admits(capture.numbers)

    def ignores(self, path: str, capture: Walk) -> bool:
        """Returns whether a tensor is reached only as a gradient that the function does not ask for."""
        names = capture.names[path]
        return any(type(name) is GradientOf for name in names) and not capture.leads(names, self._traced.reached)

    @property
    def asks_for_gradients(self) -> bool:
        return any(type(name) is GradientOf for name in self._traced.names)

    def admits(self, numbers: Mapping[str, Any]) -> bool:
        """Returns whether the ints of a call of this signature compare as those in the trace did."""
        return all(value_of(test, numbers) is outcome for test, outcome in self.conditions.items())

    def difference(self, capture: Walk) -> list[str]:
        found = difference(self._used(capture), self._parts)
        if found:
            return found
        # Later conditions hold where the earlier ones do: 6 % i is asked for where i is not 0.
        numbers, conditions = capture.numbers, self.conditions.items()
        failed = (told(test, numbers) for test, is_so in conditions if value_of(test, numbers) is not is_so)
        return [*itertools.islice(failed, 1)]

    def numbers_that_differ(self, capture: Walk) -> set[str]:
        """The paths of the ints and floats that have other values, if nothing else is different."""
        now = self._used(capture)
        if now.keys() != self._parts.keys():
            return set()
        paths = {path for path, part in now.items() if part != self._parts[path]}
        kinds = [(type(x), x[0], self._parts[path][0]) for path in paths if isinstance(x := now[path], tuple) and x
                 and isinstance(self._parts[path], tuple) and self._parts[path]]  # fmt: skip
        plain = all(kind is tuple and a is b and a in (int, float) for kind, a, b in kinds) and len(kinds) == len(paths)
        return paths if plain else set()

    def _used(self, capture: Walk) -> dict[str, Part]:
        return capture.used(self._traced.reached, self._traced.looked_at)

    def run(self, call: Bound) -> Any:
        """Returns new results as the function would, and repeats its side effects. call: see Recent."""
        draws = [(call.leaves[g] if g >= 0 else random.default_generator()).take() for g, *_ in self.graph.draws]
        results = called(self.runner, self.graph, call.memory, draws, call.numbers)
        if self.history is not None:
            self.history.record([*map(Leaf, self.leaves, call.leaves)], results, draws, call.numbers)
        filling = TemplateObjects(call.objects, results, call.numbers)
        returned = filling.fill(self._traced.returned)
        self._traced.changes.repeat(call, filling)
        self._traced.output.repeat(filling)
        return returned
