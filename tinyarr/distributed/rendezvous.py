"""meet: how the ranks of a run find each other, before anything else is known.

Rank 0 listens on a port and the others learn where: it was given in advance (tcp), stands in a folder that all see,
or comes by MPI. In the latter two rank 0 takes a free port and makes a token, by which its server knows who is of this
run. It listens to the network unless all ranks are known to be on its machine.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, RankError
from .control import Control, end_failed
from .environment import Place
from .server import Server

_RETRY = 0.05  # seconds between two looks
_LOOPBACK = "127.0.0.1"


def meet(place: Place, timeout: float) -> Control:
    """Returns when all ranks have come. Raises RankError that names who has not within `timeout` seconds."""
    return {"tcp": _by_tcp, "folder": _by_folder, "mpi": _by_mpi}[place.how](place, timeout)


def _by_tcp(place: Place, timeout: float) -> Control:
    host, _, port = place.address.rpartition(":")
    if place.rank == 0:
        inside = host == "localhost" or host.startswith("127.")
        control = _serve(place, timeout, _listen(_LOOPBACK if inside else "", int(port)), "")
    else:
        control = _join(place, timeout, {"hosts": [host], "port": int(port), "token": ""}, time.monotonic() + timeout)
    control.meet()
    return control


def _by_folder(place: Place, timeout: float) -> Control:
    """Each rank writes a word of its own, and rank 0 repeats those it has read where it writes its address.

    So a rank knows that this address is of its own run and not left over from one that was killed.
    """
    folder, end = Path(place.address), time.monotonic() + timeout
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / "meeting"
    if place.rank == 0:
        listener, where = _listen_anywhere(place)
        answered: dict[str, str] = {}

        def answer() -> None:
            words = {file.suffix[1:]: _read(file) for file in folder.glob("rank.*")}
            if words != answered:
                _write(meeting, json.dumps({**where, "words": words}))
                answered.clear()
                answered.update(words)

        with _removed(meeting):
            control = _serve(place, timeout, listener, where["token"])
            control.meet(answer)
        return control
    own, word, found = folder / f"rank.{place.rank}", secrets.token_hex(), {}

    def is_answered() -> bool:
        found.update(json.loads(_read(meeting) or "{}"))
        return found.get("words", {}).get(str(place.rank)) == word

    with _removed(own):
        _write(own, word)
        missing = f"rank 0 of {place.size} has not written to {folder}"
        _poll(is_answered, end, timeout, missing, "see whether it was started, with this folder, and calls init")
        control = _join(place, timeout, found, end)
        control.meet()
    return control


def _by_mpi(place: Place, timeout: float) -> Control:
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
            control = _serve(place, timeout, listener, where["token"])

            def send_on() -> None:
                for request in sent:
                    request.test()

            control.meet(send_on)
        else:
            missing = f"rank 0 of {place.size} has not said where it is"
            _poll(lambda: comm.iprobe(0), end, timeout, missing, "see whether it calls init")
            control = _join(place, timeout, comm.recv(source=0), end)
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


def _serve(place: Place, timeout: float, listener: socket.socket, token: str) -> Control:
    """Rank 0's control, and the server for all."""
    host, port = listener.getsockname()[:2]
    server = Server(listener, place.size, timeout, token)
    own = socket.create_connection((_LOOPBACK if host == "0.0.0.0" else host, port), timeout)
    return Control(0, place.size, timeout, own, token, server)


def _join(place: Place, timeout: float, where: dict[str, Any], end: float) -> Control:
    """Another rank's control: connected with rank 0's server, at the first of its hosts that can be reached."""
    hosts, port = where["hosts"], where["port"]
    sockets: list[socket.socket] = []

    def is_connected() -> bool:
        for host in hosts:
            with contextlib.suppress(OSError):
                sockets.append(socket.create_connection((host, port), timeout=2.0))
                return True
        return False

    missing = f"rank 0 of {place.size} cannot be reached at {' or '.join(hosts)}, port {port},"
    _poll(is_connected, end, timeout, missing, "see whether it was started and calls init, and what firewalls forbid")
    return Control(place.rank, place.size, timeout, sockets[0], where["token"], None)


def _poll(done: Callable[[], bool], end: float, timeout: float, missing: str, advice: str) -> None:
    while not done():
        if time.monotonic() > end:
            raise RankError(f"init: {missing} within {timeout:g} s: {advice}")
        time.sleep(_RETRY)


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), backlog=1024)
    except OSError as error:
        raise ArgumentError(f"init: rank 0 cannot listen on port {port} ({error}): choose another address") from None


def _listen_anywhere(place: Place) -> tuple[socket.socket, dict[str, Any]]:
    """A listener on a free port, and what the others need to know to reach it."""
    inside = place.local_size == place.size
    listener = _listen(_LOOPBACK if inside else "", 0)
    where = {"hosts": [_LOOPBACK] if inside else _hosts(), "port": listener.getsockname()[1]}
    return listener, {**where, "token": secrets.token_hex()}


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
    """What is in a file, nothing where there is none: its writer may remove it at any moment."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        return ""


def _write(file: Path, text: str) -> None:
    """Nobody sees half of it."""
    partial = file.with_name(f"writing-{secrets.token_hex(8)}")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, file)


@contextlib.contextmanager
def _removed(file: Path) -> Iterator[None]:
    """The file is gone afterwards, whatever happens."""
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
