"""Messages over a socket: one JSON object a line. Floor 4."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from typing import Any

# Longest line of who is not known, in bytes. It bounds the brackets that JSON's parser, which recurses, can be made to
# open: a script may have raised Python's own bound on that.
_LINE = 4096


class Connection:
    """One end of a TCP connection. Any thread may send, one receives.

    is_known: whether who is at the other end has proved to be of this run, and may send lines of any length.
    """

    def __init__(self, sock: socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
        self.is_known = False
        self._sending = threading.Lock()
        self._rest = b""

    def send(self, kind: str, **values: Any) -> bool:
        """Sends a message; False where nobody is at the other end. Who needs to know why hears it by receiving."""
        line = json.dumps({"kind": kind, **values}).encode() + b"\n"
        try:
            with self._sending:
                self.socket.sendall(line)
        except OSError:
            return False
        return True

    def receive(self) -> list[dict[str, Any]]:
        """Waits for bytes, unless messages are there; returns those that are whole then.

        Raises EOFError at the end of the connection, ValueError where what comes is no message.
        """
        if b"\n" not in self._rest:
            self._fill()
        *lines, self._rest = self._rest.split(b"\n")
        return [_message(line) for line in lines]

    def first(self, end: float) -> dict[str, Any]:
        """Returns the next message alone, which must be there before `end` by the monotonic clock.

        Raises EOFError at the end of the connection or of the time, ValueError where what comes is no message.
        """
        while b"\n" not in self._rest:
            self.socket.settimeout(max(end - time.monotonic(), 1e-3))
            self._fill()
        line, _, self._rest = self._rest.partition(b"\n")
        return _message(line)

    def _fill(self) -> None:
        most = 65536 if self.is_known else _LINE - len(self._rest)
        if most <= 0:
            raise ValueError(f"this is a line of more than {_LINE} bytes")
        try:
            arrived = self.socket.recv(most)
        except OSError:
            arrived = b""
        if not arrived:
            raise EOFError
        self._rest += arrived

    def end(self) -> None:
        """Closes both ends, also where a thread is receiving."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def abandon(self) -> None:
        """Closes it in this process alone: another has it too since a fork."""
        self.socket.close()


def _message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except RecursionError:
        message = None
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ValueError("this is no message of a rank")
    return message
