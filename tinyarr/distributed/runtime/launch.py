"""`python -m tinyarr launch`: starts the ranks of a run on this machine, and sees to it that all end together. Floor 4.

Ranks are started by mpiexec, or with torchrun's variables by the launcher itself. Either way each writes into pipes of
its own, so that every line can carry its rank, and gets signals from here: mpiexec would kill all at the first one.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Protocol

from ... import cuda
from ...errors import ArgumentError

_POLL = 0.05  # seconds between two looks at the ranks
_EXPLAIN = 3.0  # seconds that the others have, once a rank has failed, to say what they know of it and end
_TERMINATE = 5.0  # seconds from SIGTERM to SIGKILL
_SHARED = Path("/dev/shm")
_LEFTOVERS = "mpich_shm_*", "ucx_shm_*"  # what killed ranks leave there
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG
_FORWARDED = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1

# Variables by which an outer launcher would speak to the ranks, or to mpiexec, of processes that are not theirs.
_OUTER = "SLURM_", "PMI", "OMPI_", "MPI_LOCAL", "MASTER_", "TORCHELASTIC_", "RANK", "WORLD_SIZE", "LOCAL_"

# What mpiexec starts for a rank, with the folder of the run as $0. The outer shell stays: it notes how the rank has
# ended, and where it has failed keeps that from mpiexec, which would kill the others before they can say why.
_SHELL = """
rank="$0/${PMI_RANK:-$OMPI_COMM_WORLD_RANK}"
exec > "$rank.out" 2> "$rank.err"
echo $$ > "$rank.group"
sh -c 'echo $$ > "$0"; exec "$@"' "$rank.pid" "$@"
status=$?
exec > /dev/null 2>&1
echo $status > "$rank.status"
[ $status = 0 ] || sleep 60
exit $status
"""

Stream = tuple[int, Path | IO[bytes], IO[bytes]]  # a rank, what it writes, and where that goes


class Ranks(Protocol):
    """The processes of a run, however they are started."""

    def streams(self) -> list[Stream]: ...

    def statuses(self) -> dict[int, int]:
        """The exit status of each rank that has ended; 128 and the signal where one ended it."""

    def send(self, number: int) -> bool:
        """Sends a signal to those that have not ended; False where some have not begun."""

    def end(self) -> None:
        """Kills what is still there, with all that the ranks have started."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", type=int, required=True, metavar="N", help="how many ranks")
    parser.add_argument("--by", choices=["mpi", "tcp"], help="default: tcp where each rank has a GPU, else mpi")
    parser.add_argument("--timeout", type=float, help="seconds that ranks wait for one another (default: 60)")
    parser.add_argument("-m", dest="module", action="store_true", help="what follows is a module's name, not a file's")
    parser.add_argument("program", help="what each rank runs")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="its arguments")


def run(chosen: argparse.Namespace) -> int:
    """Runs a program on all ranks and returns the status to exit with: of the first that failed, 0 where none did."""
    if chosen.n < 1:
        raise ArgumentError(f"launch: -n is {chosen.n}: it must be at least 1")
    command = [sys.executable, *(["-m"] if chosen.module else []), chosen.program, *chosen.arguments]
    by = chosen.by or ("tcp" if _gpus() >= chosen.n else "mpi")
    variables, began = _variables(chosen.n, chosen.timeout), time.time()
    with tempfile.TemporaryDirectory(prefix="tinyarr-launch-", ignore_cleanup_errors=True) as folder:
        ranks: Ranks
        if by == "mpi":
            ranks = _ByMpi(command, chosen.n, variables, Path(folder))
        else:
            ranks = _ByTcp(command, chosen.n, variables)
        readers = [threading.Thread(target=_copy, args=stream, daemon=True) for stream in ranks.streams()]
        try:
            for reader in readers:
                reader.start()
            for number in _FORWARDED:
                if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP under nohup
                    signal.signal(number, lambda number, _: ranks.send(number) or sys.exit(128 + number))
            return _supervise(ranks, chosen.n)
        finally:
            ranks.end()
            end = time.monotonic() + 2.0  # one that was never started leaves a reader waiting
            for reader in readers:
                reader.join(max(0.0, end - time.monotonic()))
            if by == "mpi":
                _clean(began)


def _supervise(ranks: Ranks, size: int) -> int:
    """Waits until all have ended. Once one has failed, the others end too, by SIGTERM or SIGKILL where need be."""
    failed, ultimatum = 0, 0.0
    signals = [signal.SIGKILL, signal.SIGTERM]
    while len(statuses := ranks.statuses()) < size:
        if not failed:
            failed = next(filter(None, statuses.values()), 0)
            ultimatum = time.monotonic() + _EXPLAIN
        elif signals and time.monotonic() > ultimatum:
            ranks.send(signals.pop())
            ranks.send(signal.SIGCONT)  # one that is stopped hears of it only now
            ultimatum += _TERMINATE
        time.sleep(_POLL)
    return failed or next(filter(None, statuses.values()), 0)


class _ByTcp:
    """Ranks that are this process's children, and meet where torchrun's variables say."""

    def __init__(self, command: Sequence[str], size: int, variables: dict[str, str]):
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        variables |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
        self._processes = []
        for rank in range(size):
            variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            stdin = None if rank == 0 else subprocess.DEVNULL
            self._processes.append(_popen(command, variables, stdin, subprocess.PIPE))

    def streams(self) -> list[Stream]:
        found: list[Stream] = []
        for rank, process in enumerate(self._processes):
            assert process.stdout is not None and process.stderr is not None
            found += [(rank, process.stdout, sys.stdout.buffer), (rank, process.stderr, sys.stderr.buffer)]
        return found

    def statuses(self) -> dict[int, int]:
        codes = {rank: process.poll() for rank, process in enumerate(self._processes)}
        return {rank: _status(code) for rank, code in codes.items() if code is not None}

    def send(self, number: int) -> bool:
        for process in self._processes:
            process.send_signal(number)
        return True

    def end(self) -> None:
        for process in self._processes:
            _kill(os.killpg, process.pid)
            process.wait()


class _ByMpi:
    """Ranks under mpiexec, whose process ids and statuses are written to a folder by their shells.

    They meet in that folder too: while MPI_Init waits for a rank that does not come, nobody could name it.
    """

    def __init__(self, command: Sequence[str], size: int, variables: dict[str, str], folder: Path):
        self._folder, self._size = folder, size
        for rank in range(size):
            os.mkfifo(folder / f"{rank}.out")
            os.mkfifo(folder / f"{rank}.err")
        variables = {"TINYARR_RENDEZVOUS": f"folder:{folder}", **variables}
        self._mpiexec = _popen([_mpiexec(), "-n", str(size), "sh", "-c", _SHELL, str(folder), *command], variables)

    def streams(self) -> list[Stream]:
        kinds = ("out", sys.stdout.buffer), ("err", sys.stderr.buffer)
        return [(rank, self._folder / f"{rank}.{kind}", to) for rank in range(self._size) for kind, to in kinds]

    def statuses(self) -> dict[int, int]:
        code = self._mpiexec.poll()
        found = self._written("status")
        if code is not None:  # where it has failed or was killed, no rank is left
            found = {rank: _status(code) or 1 for rank in range(self._size)} | found
        return found

    def send(self, number: int) -> bool:
        begun, ended = self._written("pid"), self._written("status")
        for rank in begun.keys() - ended.keys():
            _kill(os.kill, begun[rank], number)
        return len(begun) == self._size

    def end(self) -> None:
        self._mpiexec.kill()
        self._mpiexec.wait()
        groups = self._written("group").values()
        for group in groups:
            _kill(os.killpg, group)
        end = time.monotonic() + _TERMINATE
        while any(map(_exists, groups)) and time.monotonic() < end:  # they still map what _clean would remove
            time.sleep(0.01)

    def _written(self, kind: str) -> dict[int, int]:
        texts = {int(file.stem): file.read_text() for file in self._folder.glob(f"*.{kind}")}
        return {rank: int(text) for rank, text in texts.items() if text.endswith("\n")}


def _popen(command: Sequence[str], variables: dict[str, str], stdin=None, output=None) -> subprocess.Popen:
    """A process in a session of its own, which signals from a terminal don't reach, and which dies with this one."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux alone has it
    launcher = os.getpid()

    def prepare() -> None:
        if prctl is not None:
            prctl(_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != launcher:  # it died before
                os._exit(1)

    return subprocess.Popen(
        command, env=variables, stdin=stdin, stdout=output, stderr=output, start_new_session=True, preexec_fn=prepare
    )


def _mpiexec() -> str:
    """The one of the environment that Python is of, else the one on the path."""
    beside = str(Path(sys.executable).parent)
    found = shutil.which("mpiexec", path=beside) or shutil.which("mpiexec")
    if found is None:
        raise ArgumentError("launch: there is no mpiexec: pip install mpi4py mpich, or start the ranks with --by tcp")
    return found


def _variables(size: int, timeout: float | None) -> dict[str, str]:
    """The environment of every rank: the ranks share the cores, unless the user has said otherwise."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(_OUTER)}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = inherited.get("OMP_NUM_THREADS", str(max(cores // size, 1)))
    chosen = {} if timeout is None else {"TINYARR_TIMEOUT": str(timeout)}
    own = {"PYTHONUNBUFFERED": "1", "TINYARR_SECRET": secrets.token_hex(32), **chosen}
    return {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, **inherited, **own}


def _gpus() -> int:
    if cuda.missing() is not None:
        return 0
    from cupy.cuda import runtime

    return runtime.getDeviceCount()


def _status(code: int) -> int:
    """An exit status as a shell has it."""
    return code if code >= 0 else 128 - code


def _kill(function, process: int, number: int = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        function(process, number)


def _exists(group: int) -> bool:
    """Returns whether a group has processes, zombies among them."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _copy(rank: int, source: Path | IO[bytes], to: IO[bytes]) -> None:
    """Passes on the lines of a rank."""
    with open(source, "rb") if isinstance(source, Path) else source as lines:
        for line in lines:
            with contextlib.suppress(OSError):  # nobody reads on; the rank's pipe is to be emptied all the same
                to.write(b"[%d] %s\n" % (rank, line.removesuffix(b"\n")))
                to.flush()


def _clean(began: float) -> None:
    """Removes the shared memory that killed ranks have left: what came to be meanwhile and no process has mapped."""
    for file in (file for pattern in _LEFTOVERS for file in _SHARED.glob(pattern)):
        with contextlib.suppress(OSError):
            if file.stat().st_mtime >= began and not _is_mapped(file):
                file.unlink()


def _is_mapped(file: Path) -> bool:
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with contextlib.suppress(OSError):
            if str(file) in maps.read_text():
                return True
    return False
