"""Control: what each rank hears of the others, so that no loss of one leaves the rest waiting. Floor 4.

All are connected with the server on rank 0. Three things end every rank: one that dies or raises an exception; one
that has ended while another waits for it; one that keeps another waiting for longer than the time-out. A rank that
waits gets RankError; one that computes or hangs is ended here, for nothing else could.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import sys
import threading
import time
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

from ...errors import RankError
from .connection import Connection
from .server import Server, beat, left, what, without_reaching

_GRACE = 2.0  # seconds for the main thread to come to a wait and raise RankError there
_LAST_WORDS = 1.0  # seconds a failed rank stays: mpiexec kills the others when one ends, and they have to say why
# How wait polls: first without letting go of the core, then letting others have it, at last every 100 µs: the shortest
# pauses that Linux makes take that.
_SPINS, _YIELDS, _PAUSE = 200, 1000, 1e-5
_REMEMBERED = 64  # collectives of a group whose names are kept


class _Wait(NamedTuple):
    """Wait of this rank. number: of the group's collective; None is for exchange, whose keys are groups of their own.

    asks: whether what is waited for is an answer of the server.
    """

    group: str
    number: int | None
    ranks: list[int]
    asks: bool = False


class Control:
    """This rank's connection to the others, and whether all of them are still there.

    connection: with the server, to which `handshake` has introduced this rank. server: the server itself, on rank 0.
    processes: host and process id of each rank, as messages name them.
    """

    def __init__(self, rank: int, size: int, timeout: float, connection: Connection, server: Server | None):
        self.rank, self.processes = rank, [""] * size
        self._timeout, self._server, self._connection = timeout, server, connection
        self._begun: dict[str, deque[tuple[int, str]]] = {}
        self._waiting: _Wait | None = None
        self._values: dict[str, list[Any]] = {}
        self._questions = itertools.count()
        self._gone: dict[int, dict[str, tuple[int, str]]] | None = None  # of those who ended before the server did
        self._silent = 0
        self._lost: str | None = None
        self._met, self._told, self._ended = threading.Event(), threading.Event(), threading.Event()
        _watch(self)
        for work in (self._hear, self._beat):
            threading.Thread(target=work, name=f"tinyarr-{work.__name__.strip('_')}", daemon=True).start()

    def meet(self, progress: Callable[[], None] = lambda: None) -> None:
        """Returns when all ranks have come, and calls `progress` meanwhile. Raises RankError that names who did not."""
        while not self._met.wait(0.01):
            progress()
            self._raise_if_lost("init")

    def exchange(self, key: str, value: Any, ranks: Sequence[int], begun: tuple[str, int] | None = None) -> list[Any]:
        """The value of each of `ranks`, in that order. All of them give theirs under the same key, used only once.

        Values are what JSON can write; a tuple comes back as a list. begun: group and number of the collective that
        messages name; else they name the key.
        """
        self._connection.send("value", key=key, value=value, ranks=list(ranks))
        return self._answer(key, ranks, begun)

    def first(self, key: str, value: Any) -> Any:
        """Returns the first of all values that any rank has brought under a key; None brings nothing."""
        answer = f"first/{self.rank}/{next(self._questions)}"
        self._connection.send("first", key=key, value=value, answer=answer)
        return self._answer(answer, (0,))[0]

    def begin(self, group: str, number: int, operation: str) -> None:
        """Notes which collective of a group begins; the next beat tells the others."""
        if group not in self._begun:
            self._begun[group] = deque(maxlen=_REMEMBERED)
        self._begun[group].append((number, operation))

    def wait(self, done: Callable[[], bool], group: str, number: int, ranks: Sequence[int]) -> None:
        """Returns once `done()` says that a collective has ended. Raises RankError where a rank is lost."""
        self._wait(done, _Wait(group, number, list(ranks)), 0)

    def _answer(self, key: str, ranks: Sequence[int], begun: tuple[str, int] | None = None) -> list[Any]:
        """Returns the server's answer to a question asked before, under its key."""
        group, number = begun or (key, None)
        # It comes by a thread, which needs us idle.
        self._wait(lambda: key in self._values, _Wait(group, number, list(ranks), asks=True), _SPINS + _YIELDS)
        return self._values.pop(key)

    def _wait(self, done: Callable[[], bool], waiting: _Wait, polls: int) -> None:
        if done():
            return
        self._waiting = waiting
        try:
            while not done():
                self._raise_if_lost("wait")
                polls += 1
                if polls > _SPINS + _YIELDS:
                    time.sleep(_PAUSE)
                elif polls > _SPINS:
                    os.sched_yield()
        finally:
            self._waiting = None

    def close(self) -> None:
        """Says farewell: this rank ends as it should."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._lost = self._lost or "this rank has said farewell: call nothing of distributed any more"
        self._connection.send("farewell", begun=self._progress())
        if self._server is not None:
            self._server.join()
        self._connection.end()
        _live.discard(self)

    def _raise_if_lost(self, operation: str) -> None:
        if self._lost is not None:
            self._told.set()
            raise RankError(f"{operation}: {self._lost}")

    def _progress(self) -> dict[str, tuple[int, str]]:
        return {group: recent[-1] for group, recent in list(self._begun.items()) if recent}

    def _describe(self, waiting: _Wait, beats: int) -> dict[str, Any]:
        """A wait, as the server judges it."""
        begun = tuple(self._begun.get(waiting.group, ()))
        operation = next((name for n, name in begun if n == waiting.number), "something")
        return {**waiting._asdict(), "operation": operation, "beats": beats}

    def _hear(self) -> None:
        """The thread that receives."""
        while True:
            try:
                messages = self._connection.receive()
            except (EOFError, ValueError):
                if self._gone is None and not self._ended.is_set():
                    self._lose(f"{self._name(0)} has ended without a word: look for why in its output")
                return
            self._silent = 0
            for message in messages:
                kind = message["kind"]
                if kind == "met":
                    self.processes = message["processes"]
                    self._met.set()
                elif kind == "values":
                    self._values[message["key"]] = message["values"]
                elif kind == "closing":
                    self._gone = {int(rank): begun for rank, begun in message["gone"].items()}
                elif kind == "lost":
                    self._lose(message["why"])

    def _beat(self) -> None:
        """The thread that tells the server how far this rank is, and counts how long the server has been silent."""
        interval = beat(self._timeout)
        last, beats = None, 0
        while not self._ended.wait(interval):
            waiting = self._waiting
            beats = beats + 1 if waiting is last else 0
            last = waiting
            described = None if waiting is None else self._describe(waiting, beats)
            if self._gone is None:
                self._connection.send("state", begun=self._progress(), waiting=described)
                self._silent += 1
                if self._silent * interval > self._timeout:
                    self._lose(f"{self._name(0)} has not been heard of for {self._timeout:g} s: it is stopped, or "
                               "its machine cannot be reached")
            elif described is not None:
                self._judge_alone(described, beats * interval >= self._timeout)

    def _judge_alone(self, waiting: dict[str, Any], late: bool) -> None:
        """Rank 0 has ended as it should and the server with it: who has ended before is known, no more."""
        assert self._gone is not None
        gone = left(waiting, self._gone)
        if gone:
            self._lose(without_reaching([*map(self._name, gone)], waiting))
        elif late or waiting["asks"]:
            self._lose(f"{what(waiting)}, has not ended, and {self._name(0)}, which keeps watch and passes values "
                       "around, has: let rank 0 end last")

    def _name(self, rank: int) -> str:
        process = self.processes[rank]  # empty until all have met
        return f"rank {rank} ({process})" if process else f"rank {rank}"

    def _lose(self, why: str) -> None:
        """The run is lost. Called in a thread of ours: ends the process where the main thread doesn't hear of it."""
        if self._lost is not None or self._ended.is_set():
            return
        self._lost = why
        if self._told.wait(_GRACE / 4):
            return
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        self._say_why("It is here:\n" + "".join(traceback.format_stack(frame)))
        if not self._told.wait(_GRACE * 3 / 4):
            os._exit(1)

    def _say_why(self, more: str = "") -> None:
        text = f"tinyarr: rank {self.rank} ends: {self._lost}\n{more}"
        os.write(2, text.encode(errors="backslashreplace"))  # an exception's text may hold half a surrogate pair

    def _raised(self, error: BaseException) -> None:
        """The process is about to end by this exception."""
        if self._lost is None:
            self._connection.send("raised", error=f"{type(error).__name__}: {error}")
            self._lost = "this rank has raised an exception"
        self._told.set()

    def _end(self) -> None:
        """Leaves the run when the interpreter ends, and says why if this rank is lost."""
        if self._lost is None:
            self.close()
            return
        if not self._told.is_set():
            self._say_why()
        end_failed()

    def _abandon(self) -> None:
        """Cuts a forked child off, which is no rank: nothing is said when it ends, or when it does not."""
        self._ended.set()
        self._connection.abandon()
        if self._server is not None:
            self._server.abandon()


def end_failed() -> NoReturn:
    """Ends the process at exit without what else would be done then: MPI_Finalize waits for ranks that are lost."""
    time.sleep(_LAST_WORDS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or None
            stream.flush()
    os._exit(1)


_live: weakref.WeakSet[Control] = weakref.WeakSet()
_watching = False


def _watch(control: Control) -> None:
    """Lets a control know when this process ends, raises or forks."""
    global _watching
    _live.add(control)
    if _watching:
        return
    _watching = True
    previous = sys.excepthook

    def hook(kind, error, trace):
        if not hasattr(sys, "ps1"):  # at a prompt an exception ends nothing
            for control in list(_live):
                control._raised(error)
        previous(kind, error, trace)

    def forked():
        for control in list(_live):
            control._abandon()
        _live.clear()

    def end():
        for control in list(_live):
            control._end()

    sys.excepthook = hook
    atexit.register(end)
    os.register_at_fork(after_in_child=forked)
