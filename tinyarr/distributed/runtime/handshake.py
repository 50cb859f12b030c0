"""Handshake: both ends of a connection prove that they know the run's secret, which itself is never sent. Floor 4.

The server begins with a challenge, random text that is used once. A rank answers with its hello, which holds a
challenge of its own and a proof: the HMAC under the secret of both challenges and all that it says. The server answers
with a proof too. So nobody else can come as a rank, nor answer as the server does, and what was overheard is of no use.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import time
from typing import Any

from .connection import Connection

PATIENCE = 5.0  # seconds that each end gives the other to begin
_HELLO = {"kind": str, "challenge": str, "rank": int, "size": int, "process": str, "proof": str}


class Refused(ValueError):
    """Somebody has said hello who does not know the secret."""


def challenge() -> str:
    """Returns random text, which is asked on one connection alone."""
    return secrets.token_hex(32)


def join(sock: socket.socket, secret: str, rank: int, size: int, end: float) -> Connection:
    """Introduces a rank to the server of its run, before `end` by the monotonic clock.

    Raises ValueError or EOFError, with the socket closed, where who is at the other end does not do as that would.
    """
    connection, own = Connection(sock), challenge()
    process = f"{socket.gethostname()}, pid {os.getpid()}"
    try:
        asked = connection.first(min(end, time.monotonic() + PATIENCE)).get("challenge")
        if type(asked) is not str:
            raise ValueError("this is no challenge")
        said = {"challenge": own, "rank": rank, "size": size, "process": process}
        connection.send("hello", **said, proof=_proof(secret, "rank", asked, said))
        if not _is_equal(connection.first(end).get("proof"), _proof(secret, "server", asked, own)):
            raise ValueError("this is not who it should be")
    except BaseException:
        connection.end()
        raise
    sock.settimeout(None)
    connection.is_known = True
    return connection


def greet(connection: Connection, secret: str, asked: str, hello: dict[str, Any]) -> None:
    """Welcomes who has answered the challenge `asked` with a hello.

    Raises ValueError where that is no rank's hello, Refused where it comes from who does not know the secret.
    """
    if {name: type(value) for name, value in hello.items()} != _HELLO or hello["kind"] != "hello":
        raise ValueError("this is no hello")
    said = {name: hello[name] for name in ("challenge", "rank", "size", "process")}
    if not _is_equal(hello["proof"], _proof(secret, "rank", asked, said)):
        raise Refused("who says this does not know the secret")
    connection.send("welcome", proof=_proof(secret, "server", asked, hello["challenge"]))


def _proof(secret: str, side: str, asked: str, said: Any) -> str:
    text = json.dumps([side, asked, said], sort_keys=True)
    return hmac.new(secret.encode(errors="surrogateescape"), text.encode(), "sha256").hexdigest()


def _is_equal(given: Any, expected: str) -> bool:
    """Compares proofs in a time that tells nothing of how much of a wrong one is right."""
    return type(given) is str and hmac.compare_digest(given.encode(errors="replace"), expected.encode())
