"""meet: how the ranks of a run find each other, before anything else is known. Floor 4.

Rank 0 listens on a port and the others learn where: it was given in advance (tcp), stands in a folder that all see,
or comes by MPI. In the latter two rank 0 takes a free port and makes a secret, by which the ranks and its server know
one another (`handshake`); in the first the secret too is given in advance. It listens to the network unless all ranks
are known to be on its machine.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import ipaddress
import json
import os
import secrets
import socket
import stat
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import ArgumentError, RankError
from . import environment, handshake
from .connection import Connection
from .control import Control, end_failed
from .environment import RankPlace
from .server import Server

_RETRY = 0.05  # seconds between two looks
_LOOPBACK = "127.0.0.1"
_PLAINLY = os.O_NOFOLLOW | os.O_NONBLOCK  # no link is followed, and no pipe's writer awaited
_MOST = 1 << 24  # bytes read of a file: one has 80 a rank, and a foreign one may have no end


def meet(place: RankPlace, timeout: float) -> Control:
    """Returns when all ranks have come. Raises RankError that names who has not within `timeout` seconds."""
    return {"tcp": _by_tcp, "folder": _by_folder, "mpi": _by_mpi}[place.how](place, timeout)


def _by_tcp(place: RankPlace, timeout: float) -> Control:
    host, _, port = place.address.rpartition(":")
    secret, inside = environment.secret(), _is_inside(place) or host.lower() == "localhost" or _is_loopback(host)
    if inside and not _is_loopback(host):
        host = _LOOPBACK
    if place.rank == 0:
        if not secret:
            who = "every user of this machine" if inside else f"whoever can reach {host}, port {port},"
            warnings.warn(
                f"init: TINYARR_SECRET is not set, so {who} can come as a rank of this run and spoil it: set it to the "
                "same text, which nobody can guess, on every rank",
                stacklevel=4,
            )
        listener = _listen(host if inside else "::" if ":" in host else "", int(port))
        control = _serve(place, timeout, listener, secret)
    else:
        control = _join(place, timeout, {"hosts": [host], "port": int(port)}, secret, time.monotonic() + timeout)
    control.meet()
    return control


def _by_folder(place: RankPlace, timeout: float) -> Control:
    """Each rank writes a word of its own, and rank 0 repeats those it has read where it writes its address.

    So a rank knows that this address is of its own run and not left over from one that was killed. Nor is it another
    user's, who can't read the word.
    """
    folder, end = Path(place.address), time.monotonic() + timeout
    with _used(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    meeting = folder / "meeting"
    if place.rank == 0:
        listener, where = _listen_anywhere(place)
        expected = {f"rank.{rank}" for rank in range(1, place.size)}
        answered: dict[str, str] = {}

        def answer() -> None:
            words = {file.suffix[1:]: _read(file) for file in folder.glob("rank.*") if file.name in expected}
            if words != answered:
                _write(meeting, json.dumps({**where, "words": words}))
                answered.clear()
                answered.update(words)

        with _removed(meeting):
            control = _serve(place, timeout, listener, where["secret"])
            control.meet(answer)
        return control
    own, word, found = folder / f"rank.{place.rank}", secrets.token_hex(), {}

    def is_answered() -> bool:
        # Before the answer there may be anything, an earlier run's or none of ours.
        with contextlib.suppress(ValueError, RecursionError, LookupError, TypeError):
            said = json.loads(_read(meeting))
            if said["words"][str(place.rank)] == word:
                found.update(said)
        return bool(found)

    with _removed(own):
        _write(own, word)
        missing = f"rank 0 of {place.size} has not written to {folder}"
        _poll(is_answered, end, timeout, missing, "see whether it was started, with this folder, and calls init")
        control = _join(place, timeout, found, found["secret"], end)
        control.meet()
    return control


def _by_mpi(place: RankPlace, timeout: float) -> Control:
    end = time.monotonic() + timeout
    try:
        comm = _mpi_world(timeout)
        if (comm.rank, comm.size) != (place.rank, place.size):
            raise ArgumentError(
                f"init: mpi4py says rank {comm.rank} of {comm.size}, the launcher rank {place.rank} of {place.size}: "
                "use the mpiexec of the MPI that mpi4py was built for"
            )
        if place.rank == 0:
            listener, where = _listen_anywhere(place)
            sent = [comm.isend(where, rank) for rank in range(1, place.size)]
            control = _serve(place, timeout, listener, where["secret"])

            def send_on() -> None:
                for request in sent:
                    request.test()

            control.meet(send_on)
        else:
            missing = f"rank 0 of {place.size} has not said where it is"
            _poll(lambda: comm.iprobe(0), end, timeout, missing, "see whether it calls init")
            where = comm.recv(source=0)
            control = _join(place, timeout, where, where["secret"], end)
            control.meet()
    except RankError:
        atexit.register(end_failed)
        raise
    return control


def _mpi_world(timeout: float) -> Any:
    """MPI's ranks. MPI_Init waits in C for all of them, and lets no thread of Python's work meanwhile."""
    faulthandler.dump_traceback_later(timeout, exit=True, file=2)
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ArgumentError(f"init: mpi4py does not load ({error}): pip install mpi4py mpich") from None
    finally:
        faulthandler.cancel_dump_traceback_later()
    return MPI.COMM_WORLD


def _serve(place: RankPlace, timeout: float, listener: socket.socket, secret: str) -> Control:
    """Rank 0's control, and the server for all."""
    host, port = listener.getsockname()[:2]
    server = Server(listener, place.size, timeout, secret)
    where = {"hosts": [{"0.0.0.0": _LOOPBACK, "::": "::1"}.get(host, host)], "port": port}
    return _join(place, timeout, where, secret, time.monotonic() + timeout, server)


def _join(
    place: RankPlace, timeout: float, where: dict[str, Any], secret: str, end: float, server: Server | None = None
) -> Control:
    """A rank's control: connected with rank 0's server, at the first of its hosts that can be reached."""
    connections: list[Connection] = []
    others: list[str] = []  # hosts at which somebody else listens

    def is_connected() -> bool:
        for host in where["hosts"]:
            try:
                sock = socket.create_connection((host, where["port"]), timeout=2.0)
            except (OSError, UnicodeError):  # the latter of what can be no host's name
                continue
            try:
                connections.append(handshake.join(sock, secret, place.rank, place.size, end))
                return True
            except (EOFError, ValueError):
                others.append(host)
        return False

    address = f"{' or '.join(where['hosts'])}, port {where['port']},"
    missing = f"rank 0 of {place.size} cannot be reached at {address}"
    advice = "see whether it was started and calls init, and what firewalls forbid"
    try:
        _poll(is_connected, end, timeout, missing, advice)
    except RankError:
        if not others:
            raise
        raise RankError(
            f"init: who listens at {others[-1]}, port {where['port']}, has not shown within {timeout:g} s to be rank 0 "
            f"of {place.size}: see whether all ranks have the same TINYARR_SECRET, and whether the port is another "
            "program's"
        ) from None
    return Control(place.rank, place.size, timeout, connections[0], server)


def _poll(done: Callable[[], bool], end: float, timeout: float, missing: str, advice: str) -> None:
    while not done():
        if time.monotonic() > end:
            raise RankError(f"init: {missing} within {timeout:g} s: {advice}")
        time.sleep(_RETRY)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=1024, dualstack_ipv6=both)
    except OSError as error:
        raise ArgumentError(f"init: rank 0 cannot listen on port {port} ({error}): choose another address") from None


def _is_inside(place: RankPlace) -> bool:
    """Says that all ranks are known to be on this machine."""
    return place.local_size == place.size


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen_anywhere(place: RankPlace) -> tuple[socket.socket, dict[str, Any]]:
    """A listener on a free port, and what the others need to know to reach it."""
    inside = _is_inside(place)
    listener = _listen(_LOOPBACK if inside else "", 0)
    where = {"hosts": [_LOOPBACK] if inside else _hosts(), "port": listener.getsockname()[1]}
    return listener, {**where, "secret": secrets.token_hex()}


def _hosts() -> list[str]:
    """Addresses of this machine: the one from which it reaches others, and what its name stands for."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.connect(("192.0.2.1", 9))  # an address that is nobody's; nothing is sent
        found.append(sock.getsockname()[0])
    with contextlib.suppress(OSError):
        found.append(socket.gethostbyname(socket.gethostname()))
    others = [host for host in dict.fromkeys(found) if not host.startswith("127.")]
    return others or [_LOOPBACK]


def _read(file: Path) -> str:
    """The text of a file, nothing where there is none: its writer may remove it at any moment, others put there a pipe.
    """
    try:
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | _PLAINLY)) as stream:
            is_file = stat.S_ISREG(os.fstat(stream.fileno()).st_mode)
            return stream.read(_MOST).decode(errors="replace") if is_file else ""
    except OSError:
        return ""


def _write(file: Path, text: str) -> None:
    """Writes a file of which nobody sees a half, and no other user any part."""
    partial = file.with_name(f"writing-{secrets.token_hex(8)}")
    with _used(file.parent), _removed(partial):
        with open(partial, "x", opener=lambda path, flags: os.open(path, flags, 0o600), encoding="utf-8") as stream:
            stream.write(text)
        os.replace(partial, file)


@contextlib.contextmanager
def _removed(file: Path) -> Iterator[None]:
    """The file is gone afterwards, whatever happens."""
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _used(folder: Path) -> Iterator[None]:
    """Raises ArgumentError where the folder does not serve."""
    try:
        yield
    except OSError as error:
        raise ArgumentError(
            f"init: the ranks cannot meet in {folder} ({error}): give TINYARR_RENDEZVOUS a folder that every rank can "
            "read and write"
        ) from None
