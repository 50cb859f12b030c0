"""Random number generators: a draw is a pure function of a key (the seed) and a counter. Floor 1.

A generator only hands out counters, one a draw; the bits come from Philox 4x32-10 (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3") keyed by both, and are the same on every device.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import Any

from .errors import ArgumentError, whole_number


def _part_of_state(name: str) -> property:
    return property(lambda self: self.state_dict()[name], lambda self, x: setattr(self, f"_{name}", x))


class Generator:
    """A stream of draws: `Generator(seed)` with 0 <= seed < 2**63. Its whole state is `key` and `counter`."""

    key = _part_of_state("key")
    counter = _part_of_state("counter")

    def __init__(self, seed: int = 0):
        seed = whole_number("Generator", "seed", seed)
        if not 0 <= seed < 2**63:
            raise ArgumentError(f"Generator: seed is {seed}: it must lie in [0, 2**63)")
        trace = drawing.get()
        if trace is not None:
            trace.seed(self, again=hasattr(self, "_key"))
        self._key: Any = seed
        self._counter: Any = 0

    def __repr__(self) -> str:
        return f"Generator(key={self._key}, counter={self._counter})"

    def take(self) -> tuple[Any, Any]:
        """The key and the counter of the next draw: ints, or in a trace what stands for them."""
        replayed = _replayed.get()
        if replayed == []:
            raise ArgumentError("replay: more random numbers were drawn than the first time")
        trace = drawing.get()
        if replayed is not None:
            drawn = replayed.pop(0)
        elif trace is not None:
            drawn = trace.draw(self)
        else:
            drawn = self._key, self._counter
            self._counter += 1
        log = _log.get()
        if log is not None:
            log.append(drawn)
        return drawn

    def state_dict(self) -> dict[str, int]:
        """`{"key", "counter"}`: with load_state_dict, the stream goes on where it was."""
        trace = drawing.get()
        if trace is not None:
            trace.ask_state(self)
        return {"key": self._key, "counter": self._counter}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._key, self._counter = state["key"], state["counter"]


drawing: ContextVar[Any] = ContextVar("drawing", default=None)  # the trace that hands out draws, if one does
_default: ContextVar[Generator] = ContextVar("default_generator")
_log: ContextVar[list | None] = ContextVar("log", default=None)
_replayed: ContextVar[list | None] = ContextVar("replayed", default=None)


def default_generator() -> Generator:
    """The generator used where none is given: each thread has one, from seed 0, so no draw depends on scheduling."""
    generator = _default.get(None)
    if generator is None:
        generator = Generator(0)
        _default.set(generator)
    return generator


def manual_seed(seed: int) -> Generator:
    """Starts the default generator anew from `seed` and returns it."""
    generator = default_generator()
    generator.__init__(seed)  # type: ignore[misc]
    return generator


@contextlib.contextmanager
def use_generator(generator: Generator):
    """Makes `generator` the default inside a `with` block, for this thread or task only."""
    token = _default.set(generator)
    try:
        yield generator
    finally:
        _default.reset(token)


@contextlib.contextmanager
def drawn_by(trace: Any):
    """Makes a trace hand out the draws inside the block; what records or replays draws around it sees none of them."""
    tokens = [(variable, variable.set(x)) for variable, x in ((drawing, trace), (_log, None), (_replayed, None))]
    try:
        yield
    finally:
        for variable, token in tokens:
            variable.reset(token)


@contextlib.contextmanager
def draws():
    """Records every draw made inside the block; yields the list, for `replay`."""
    outer = _log.get()
    log: list[tuple[Any, Any]] = []
    token = _log.set(log)
    try:
        yield log
    finally:
        _log.reset(token)
        if outer is not None:
            outer.extend(log)


@contextlib.contextmanager
def replay(drawn: list[tuple[Any, Any]]):
    """Makes the draws inside the block those of a recorded list, in order."""
    token = _replayed.set(list(drawn))
    try:
        yield
    finally:
        _replayed.reset(token)
