"""A program on a GPU: its launches captured once in a CUDA graph, which each call replays. Floor 3.

A program works in one arena, which the programs of a device share: it holds values, scratch, numbers that come from
Python, and what is small and has another address at each call: results until they are given away, and state that
moves, as a batch does. A graph holds addresses: launches are captured when a call comes with those of the call before.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import cupy
import numpy as np

from .... import diagnostics, views
from ....array import Array, empty
from ....program import Graph, Lowered, Place
from ..device.launch import bits
from ..libraries import cublaslt
from ..planning.registry import Begin, LibraryCall
from . import redzones
from .lowering import Binding, Launchable, rounded

STAGED = 32 * 2**20  # bytes; larger state, and larger results, are used where they are
UNCAPTURED = ("cupy",)  # libraries that allocate, which a capture does not allow


class Program:
    """run(states, draws, numbers), as the interpreter's, by launches.

    kernels: the tasks, in order; printed, a line each.
    """

    def __init__(self, graph: Graph, lowered: Lowered, backend: Any):
        self._graph, self._backend = graph, backend
        bound = Binding(lowered)
        self.kernels = [self._tuned(task) for task in bound.tasks]
        backend.memory.give_back()
        backend.loader.compile(task.plan for task in self.kernels)
        self._launches = [(task, backend.loader.steps(task.plan)) for task in self.kernels]
        libraries = {s.name for t in self.kernels for s in t.plan.steps if isinstance(s, LibraryCall)}
        self._capturable = libraries.isdisjoint(UNCAPTURED)
        specs = [s.spec for t in self.kernels for s in t.plan.steps if isinstance(s, LibraryCall)]
        self._collectives = [spec for spec in specs if isinstance(spec, Begin)]
        self._constants = [_aligned(x) for _, x in graph.constants]
        self._written = [s.after is not s.before for s in graph.states]
        self._staged: dict[int, int] = {}  # where in the arena the copy of a state is
        self._end = rounded(lowered.arena + bound.scratch)
        self._guard = lowered.guard
        self._blocks = redzones.blocks(self.kernels) if lowered.guard else []
        sizes = [views.size(r.view.shape) * r.value.dtype.itemsize for r in graph.results]
        self._results = [self._take(n, f"result {i}") if n <= STAGED else None for i, n in enumerate(sizes)]
        self._numbers = self._take(8 * (2 * len(graph.draws) + len(graph.numbers)), "numbers from Python")
        self._states: list[int] = []  # addresses of the call before
        self._before: tuple[int, ...] = ()
        self._captured: tuple[tuple[int, ...], Any] = ((), None)
        self._timings: list[list[float]] | None = None

    def __str__(self) -> str:
        return "\n".join(map(str, self.kernels))

    @property
    def arena(self) -> int:
        """Bytes of the arena that the program needs."""
        return self._end

    @contextlib.contextmanager
    def timed(self) -> Iterator[list[list[float]]]:
        """While it lasts, each call launches its kernels one by one, and adds a list of the seconds of each here.

        The calls do what they always do; each waits for the device.
        """
        timings = self._timings = []
        try:
            yield timings
        finally:
            self._timings = None

    def run(
        self, states: Sequence[Array], draws: Sequence[tuple[int, int]], numbers: Sequence[Any]
    ) -> list[Array]:
        backend, graph = self._backend, self._graph
        with backend.lock:
            backend.ready([*states, *self._constants])
            given = [x.data.address for x in states]
            self._stage(states, given)
            base = backend.arena.address(self._end)
            if self._guard:
                redzones.fill(backend, base, self._end)
            words = [np.array([n for pair in draws for n in pair], np.int64).tobytes()]
            words += [np.array(x, v.dtype.numpy).tobytes() for x, (_, v) in zip(numbers, graph.numbers, strict=True)]
            if any(words):
                backend.upload(np.frombuffer(b"".join(words), np.uint8), base + self._numbers)
            for i, at in self._staged.items():
                backend.copy_bytes(given[i], base + at, states[i].nbytes)
            results = [empty(r.value.device, r.view.shape, r.value.dtype) for r in graph.results]
            self._launch(self._addresses(base, given, results))
            if self._guard:
                redzones.check(backend, base, redzones.gaps(self._blocks, self._end))
            for i, at in self._staged.items():
                if self._written[i]:
                    backend.copy_bytes(base + at, given[i], states[i].nbytes)
            for x, place in zip(results, self._results, strict=True):
                if place is not None:
                    backend.copy_bytes(base + place, x.data.address, x.nbytes)
        for x, written in zip(states, self._written, strict=True):
            x.storage.version += written
        return results

    def _tuned(self, task: Launchable) -> Launchable:
        """The task with the fastest algorithms for its products."""
        stream, allocate = self._backend.stream, self._backend.memory.allocate
        steps = [
            replace(step, spec=cublaslt.tune(step.spec, stream, allocate))
            if isinstance(step, LibraryCall) and isinstance(step.spec, cublaslt.Product) else step
            for step in task.plan.steps
        ]  # fmt: skip
        return replace(task, plan=replace(task.plan, steps=steps))

    def _take(self, nbytes: int, owner: str) -> int:
        """A place in the arena behind all others."""
        at = self._end
        self._end += rounded(nbytes) + self._guard
        self._blocks.append(redzones.GuardedBlock(at, at + nbytes, owner))
        return at

    def _stage(self, states: Sequence[Array], given: list[int]) -> None:
        """Finds the states that are not where they were, or where kernels load a value at a time."""
        known = self._states or given
        for i, (x, now, before) in enumerate(zip(states, given, known, strict=True)):
            if ((now != before and x.nbytes <= STAGED) or now % 16) and i not in self._staged:
                self._staged[i] = self._take(x.nbytes, f"the copy of state {i}")
        self._states = given

    def _addresses(self, base: int, given: Sequence[int], results: Sequence[Array]) -> dict[str, list[int]]:
        """Returns the addresses of all buffers, by kind and number."""
        placed = zip(results, self._results, strict=True)
        states = [base + self._staged[i] if i in self._staged else address for i, address in enumerate(given)]
        numbers = base + self._numbers
        return {
            "arena": [base],
            "state": states,
            "constant": [x.data.address for x in self._constants],
            "draw": [numbers + 8 * i for i in range(2 * len(self._graph.draws))],
            "number": [numbers + 8 * (2 * len(self._graph.draws) + i) for i in range(len(self._graph.numbers))],
            "result": [x.data.address if at is None else base + at for x, at in placed],
        }

    def _launch(self, addresses: dict[str, list[int]]) -> None:
        """Replays the graph of these addresses; one by one where there is none yet."""
        stream, key = self._backend.stream, tuple(itertools.chain(*addresses.values()))
        captured, graph = self._captured
        if self._timings is not None or diagnostics.asks("launches"):
            self._launch_timed(addresses)
        elif captured == key:
            for spec in self._collectives:
                spec.group.begin(spec.operation)
            graph.launch(stream)
        elif self._before == key and self._capturable:
            stream.begin_capture()
            try:
                self._launch_all(addresses)
            except BaseException:
                with contextlib.suppress(Exception):
                    stream.end_capture()
                raise
            graph = stream.end_capture()
            self._captured = key, graph
            graph.launch(stream)
        else:
            self._launch_all(addresses)
        self._before = key

    def _launch_all(self, addresses: dict[str, list[int]]) -> None:
        for task, steps in self._launches:
            _run(task, steps, addresses)

    def _launch_timed(self, addresses: dict[str, list[int]]) -> None:
        """Launches one by one, with events between, and keeps or tells the seconds of each kernel."""
        events = [cupy.cuda.Event() for _ in range(len(self._launches) + 1)]
        stream = self._backend.stream
        events[0].record(stream)
        for (task, steps), event in zip(self._launches, events[1:], strict=True):
            _run(task, steps, addresses)
            event.record(stream)
        stream.synchronize()
        seconds = [cupy.cuda.get_elapsed_time(*pair) / 1000 for pair in itertools.pairwise(events)]
        if self._timings is not None:
            self._timings.append(seconds)
        for taken, task in zip(seconds, self.kernels, strict=True):
            diagnostics.tell("launches", f"{1e3 * taken:9.3f} ms  {task}")


def _run(task: Launchable, steps: Sequence[Any], addresses: dict[str, list[int]]) -> None:
    def address(x: Any) -> int:
        return addresses[x.buffer][x.number] + x.offset if type(x) is Place else bits(x)

    where = [list(map(address, places)) for places in (task.inputs, task.outputs, task.scratch)]
    for step in steps:
        step(where)


def _aligned(x: Array) -> Array:
    """The array, or a copy of it, where kernels can load 16 bytes at once."""
    if x.data.address % 16 == 0:
        return x
    copied = empty(x.device, x.shape, x.dtype)
    x.device.backend.copy(x, copied)
    return copied
