"""The lock of a run's folder: one run at a time trains there, and the death of its processes unlocks it. Floor 5."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from .options import Stop
from .ranks import agree, on_first_rank, say

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

NAME = ".lock"
_TAKEN = errno.EWOULDBLOCK, errno.EACCES


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder is this run's until the block ends. Raises Stop where another has it, or it can't be written.

    All ranks share the lock, so that none that outlives the first writes into what the next run does.
    Where the file system has no locks, the run says so and goes on.
    """
    with contextlib.ExitStack() as files:
        missing = on_first_rank(lambda: _exclude_others(folder, files))
        if missing:
            say(f"note: {folder} can't be locked ({missing}): let no other process train there meanwhile")
        else:
            agree(lambda: _flock(_open(folder, files), "LOCK_SH", folder))
        yield


def _exclude_others(folder: Path, files: contextlib.ExitStack) -> str | None:
    """Locks for the first rank, then lets others share; returns why there are no locks, where there are none."""
    if fcntl is None:
        return "this system has no flock"
    file = _open(folder, files)
    try:
        _flock(file, "LOCK_EX", folder)
        with contextlib.suppress(OSError):  # a full disk; what is written is for the words of others alone
            os.ftruncate(file, 0)
            os.pwrite(file, f"pid {os.getpid()} on {socket.gethostname()}".encode(), 0)
        _flock(file, "LOCK_SH", folder)
    except OSError as error:
        return error.strerror
    return None


def _open(folder: Path, files: contextlib.ExitStack) -> int:
    try:
        file = os.open(folder / NAME, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise Stop(f"{folder} can't be written ({error.strerror}): see to that, or choose another folder") from error
    files.callback(os.close, file)
    return file


def _flock(file: int, kind: str, folder: Path) -> None:
    try:
        fcntl.flock(file, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        holder = os.pread(file, 200, 0).decode(errors="replace")
        raise Stop(f"{folder} is in use by another process ({holder}): wait until it has ended, or choose another "
                   "folder") from error
