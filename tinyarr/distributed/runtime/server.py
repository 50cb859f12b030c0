"""Server: the centre of the star, on a thread of rank 0. It passes values around and finds who is lost. Floor 4.

Each rank says every beat which collective of each group it has begun, and what it waits for. So the server knows who
keeps whom waiting. Time is counted in beats and not read from a clock: a run that is stopped as a whole and goes on
has lost nobody.
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from typing import Any

from . import handshake
from .connection import Connection

# After a wait has lasted the time-out, every rank's next beat is awaited, for what it has begun meanwhile.
_FRESH = 1

_STRANGERS = 64  # at once, besides the ranks that have not come


class _Stranger:
    """Somebody who is connected and has not been let in."""

    def __init__(self) -> None:
        self.challenge = handshake.challenge()
        self.beats = 0


class _Rank:
    """State of a rank. begun: the number and operation of the last collective of each group it has begun."""

    def __init__(self, connection: Connection, process: str):
        self.connection = connection
        self.process = process
        self.silent = 0
        self.gone = False
        self.begun: dict[str, tuple[int, str]] = {}
        self.waiting: dict[str, Any] | None = None


def beat(timeout: float) -> float:
    """Seconds between two beats."""
    return min(1.0, timeout / 4)


def left(waiting: dict[str, Any], begun: dict[int, dict[str, tuple[int, str]]]) -> list[int]:
    """The ranks in `begun` that have not begun what is waited for, and no exchange at all."""
    last = {rank: begun[rank].get(waiting["group"], (0, ""))[0] for rank in waiting["ranks"] if rank in begun}
    return [rank for rank, number in last.items() if waiting["number"] is None or number < waiting["number"]]


def what(waiting: dict[str, Any]) -> str:
    """Returns the words for what is waited for, in a message."""
    if waiting["number"] is None:
        return f"exchange {waiting['group']}"
    return f"{waiting['operation']}, collective {waiting['number']} of group {waiting['group']}"


def without_reaching(names: list[str], waiting: dict[str, Any]) -> str:
    """Returns the message about ranks that have ended while they are waited for."""
    ended = f"{', '.join(names)} {_has(names)} ended"
    return f"{ended} without reaching {what(waiting)}: every rank must call the same collectives"


class Server:
    """Listens for all ranks of a run, rank 0's own connection included.

    secret: what a rank must know to belong to this run; anybody else may come to the same port. Whatever they send, or
    keep to themselves, ends their own connection and changes nothing else.
    """

    def __init__(self, listener: socket.socket, size: int, timeout: float, secret: str):
        self._listener, self._size, self._timeout, self._secret = listener, size, timeout, secret
        self._ranks: dict[int, _Rank] = {}
        self._strangers: dict[Connection, _Stranger] = {}  # who came first is first
        self._values: dict[str, dict[int, Any]] = {}
        self._firsts: dict[str, Any] = {}
        self._beats = 0
        self._refused = self._met = self._closing = False
        self._lost: str | None = None
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._serve, name="tinyarr-server", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Waits until rank 0's farewell has been passed on, which takes no longer than a few messages."""
        self._thread.join(1.0)

    def abandon(self) -> None:
        """Lets go, in a forked child, of the sockets, which stay the parent's."""
        for connection in [*(r.connection for r in self._ranks.values()), *self._strangers]:
            connection.abandon()
        self._listener.close()
        self._selector.close()

    def _serve(self) -> None:
        interval = beat(self._timeout)
        following = time.monotonic() + interval
        while not self._closing:
            for key, _ in self._selector.select(max(0.0, following - time.monotonic())):
                if key.data is None:
                    self._accept()
                elif key.data.socket.fileno() >= 0:  # else the one before has ended it
                    self._read(key.data)
            if time.monotonic() >= following:
                following = time.monotonic() + interval
                self._beat()
        self.abandon()

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
            sock.settimeout(1.0)  # nobody who doesn't read may keep the others from being served
            connection = Connection(sock)
        except OSError:  # it left before it was let in, or this process may open no more: it is then to be asked again
            time.sleep(0.01)
            return
        if len(self._strangers) >= _STRANGERS + self._size - len(self._ranks):
            self._end(next(iter(self._strangers)))
        self._strangers[connection] = stranger = _Stranger()
        self._selector.register(sock, selectors.EVENT_READ, connection)
        connection.send("challenge", challenge=stranger.challenge)

    def _read(self, connection: Connection) -> None:
        try:
            for message in connection.receive():
                self._handle(connection, message)
        except EOFError:
            self._end(connection, "has ended without a word: look for why in its output or, where it was killed, in "
                                  "the system's log (out of memory?)")
        except Exception as error:  # whatever can be wrong with what another process has sent
            self._end(connection, f"has sent what cannot be understood ({type(error).__name__}: {error}): see whether "
                                  "all ranks run the same version")

    def _end(self, connection: Connection, why: str = "") -> None:
        """Ends a connection; where it is a rank's that has not said farewell, the run is lost."""
        self._strangers.pop(connection, None)
        self._selector.unregister(connection.socket)
        connection.end()
        for number, rank in self._ranks.items():
            if rank.connection is connection and not rank.gone:
                rank.gone = True
                self._lose(f"{self._name(number)} {why}")

    def _handle(self, connection: Connection, message: dict[str, Any]) -> None:
        kind = message["kind"]
        if connection in self._strangers:
            self._greet(connection, message)
            return
        number, rank = next((n, r) for n, r in self._ranks.items() if r.connection is connection)
        rank.silent = 0
        if kind == "state":
            rank.begun, rank.waiting = _begun(message["begun"]), self._wait(message["waiting"])
        elif kind == "value":
            self._collect(number, message)
        elif kind == "first":
            if message["value"] is not None:
                self._firsts.setdefault(message["key"], message["value"])
            connection.send("values", key=message["answer"], values=[self._firsts.get(message["key"])])
        elif kind == "raised":
            self._lose(f"{self._name(number)} raised {message['error']}: its traceback is in its output")
        elif kind == "farewell":
            rank.gone, rank.begun, rank.waiting = True, _begun(message["begun"]), None
            if number == 0:
                self._tell("closing", gone={n: r.begun for n, r in self._ranks.items() if r.gone})
                self._closing = True
        self._judge()

    def _greet(self, connection: Connection, message: dict[str, Any]) -> None:
        try:
            handshake.greet(connection, self._secret, self._strangers[connection].challenge, message)
        except handshake.Refused:
            self._refused = True
            raise
        number, size, process = message["rank"], message["size"], message["process"]
        if self._lost is not None:
            connection.send("lost", why=self._lost)
            return
        if size != self._size or number not in range(size) or number in self._ranks:
            known = f"{self._name(number)} is there already" if number in self._ranks else f"the run has {self._size}"
            connection.send("lost", why=f"{process} came as rank {number} of {size}, but {known}: start all ranks of a "
                                        "run by one launcher, and each run at an address of its own")
            return
        del self._strangers[connection]
        connection.is_known = True
        self._ranks[number] = _Rank(connection, process)
        if len(self._ranks) == self._size:
            self._met = True
            self._tell("met", processes=[self._ranks[r].process for r in range(self._size)])

    def _wait(self, said: Any) -> dict[str, Any] | None:
        """A wait as a rank describes it. Raises where that is none, before others are judged by it."""
        if said is None:
            return None
        number = None if said["number"] is None else int(said["number"])
        ranks = [rank for rank in said["ranks"] if self._ranks[rank]]
        texts = {name: str(said[name]) for name in ("group", "operation")}
        return {"number": number, "ranks": ranks, "beats": float(said["beats"]), **texts}

    def _collect(self, number: int, message: dict[str, Any]) -> None:
        """Takes in a value of an exchange; the last one answers all."""
        key, ranks = message["key"], message["ranks"]
        values = self._values.setdefault(key, {})
        values[number] = message["value"]
        if all(r in values for r in ranks):
            del self._values[key]
            for r in ranks:
                self._ranks[r].connection.send("values", key=key, values=[values[n] for n in ranks])

    def _beat(self) -> None:
        self._tell("beat")
        self._beats += 1
        interval = beat(self._timeout)
        for connection, stranger in list(self._strangers.items()):
            stranger.beats += 1
            if stranger.beats * interval > handshake.PATIENCE:
                self._end(connection)
        if not self._met:
            missing = [r for r in range(self._size) if r not in self._ranks]
            if self._beats * interval >= self._timeout:
                refused = "; some came with another TINYARR_SECRET" if self._refused else ""
                self._lose(f"{_listed(missing)} of {self._size} did not come within {self._timeout:g} s: see whether "
                           f"each was started and calls init, and whether it can reach this machine{refused}")
            return
        for number, rank in self._ranks.items():
            rank.silent += 1
            if rank.silent * interval >= self._timeout and not rank.gone:
                self._lose(f"{self._name(number)} has not been heard of for {self._timeout:g} s: it is stopped, or "
                           "its machine cannot be reached")
        self._judge()

    def _judge(self) -> None:
        """Looks for a rank that waits for one that is gone, or has waited too long."""
        for rank in self._ranks.values():
            waiting = rank.waiting
            if waiting is None or self._lost is not None:
                continue
            gone = [r for r in self._behind(waiting) if self._ranks[r].gone]
            if gone:
                self._lose(without_reaching([*map(self._name, gone)], waiting))
            elif waiting["beats"] * beat(self._timeout) >= self._timeout + _FRESH * beat(self._timeout):
                self._lose(self._hang(waiting))

    def _behind(self, waiting: dict[str, Any]) -> list[int]:
        """The ranks that have not begun what is waited for."""
        if waiting["number"] is not None:
            return left(waiting, {n: r.begun for n, r in self._ranks.items()})
        values = self._values.get(waiting["group"])
        return [] if values is None else [r for r in waiting["ranks"] if r not in values]

    def _hang(self, waiting: dict[str, Any]) -> str:
        behind = self._behind(waiting)
        if behind:
            names = ", ".join(self._progress(r, waiting) for r in behind)
            return (f"{names} {_has(behind)} not reached {what(waiting)}, for {self._timeout:g} s: output tells where "
                    "each was; give init a longer timeout if that is no mistake")
        all_of_them = "; ".join(self._progress(r, waiting) for r in waiting["ranks"])
        return (f"{what(waiting)}, does not end, though every rank has begun it, for {self._timeout:g} s: all must "
                f"call the same collectives in the same order: {all_of_them}")

    def _progress(self, number: int, waiting: dict[str, Any]) -> str:
        rank = self._ranks[number]
        last = rank.begun.get(waiting["group"])
        begun = f"; its last was {last[1]}, collective {last[0]}" if last else ""
        other = rank.waiting
        elsewhere = f"; it waits for {what(other)}" if other and other["group"] != waiting["group"] else ""
        return f"rank {number} ({rank.process}{begun}{elsewhere})"

    def _name(self, number: int) -> str:
        return f"rank {number} ({self._ranks[number].process})"

    def _lose(self, why: str) -> None:
        """Tells all, once, that the run is lost; what comes of it afterwards is no news."""
        if self._lost is None:
            self._lost = why
            self._tell("lost", why=why)

    def _tell(self, kind: str, **values: Any) -> None:
        for rank in self._ranks.values():
            rank.connection.send(kind, **values)


def _begun(said: Any) -> dict[str, tuple[int, str]]:
    """The collectives a rank has begun, as it describes them. Raises where that is nothing of the kind."""
    return {group: (int(number), str(operation)) for group, (number, operation) in said.items()}


def _has(subjects: list) -> str:
    return "has" if len(subjects) == 1 else "have"


def _listed(ranks: list[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
