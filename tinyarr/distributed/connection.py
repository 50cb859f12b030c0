"""Messages over a socket: one JSON object a line."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from typing import Any


class Connection:
    """One end of a TCP connection. Any thread may send, one receives."""

    def __init__(self, sock: socket.socket):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = sock
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
        """Waits for bytes; returns the messages that are whole then.

        Raises EOFError at the end of the connection, ValueError where what comes is no message.
        """
        try:
            arrived = self.socket.recv(65536)
        except OSError:
            arrived = b""
        if not arrived:
            raise EOFError
        *lines, self._rest = (self._rest + arrived).split(b"\n")
        messages = [json.loads(line) for line in lines]
        if not all(isinstance(message, dict) and "kind" in message for message in messages):
            raise ValueError("this is no message of a rank")
        return messages

    def end(self) -> None:
        """Closes both ends, also where a thread is receiving."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def abandon(self) -> None:
        """Closes it in this process alone: another has it too since a fork."""
        self.socket.close()
