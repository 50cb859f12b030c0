"""The lock of a run's folder: one run at a time, and what a death leaves is no lock."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from models.lock import locked
from models.options import Stop
from tests.models.test_checkpoint import Ranks


@pytest.fixture(autouse=True)
def folder(tmp_path):
    return tmp_path


def test_a_second_run_in_a_folder_is_refused_until_the_first_ends(folder):
    with locked(folder):
        holder = f"in use by another process \\(pid {os.getpid()} on {socket.gethostname()}\\): wait until it has ended"
        for _ in range(2):
            with pytest.raises(Stop, match=holder), locked(folder):
                pass
    with locked(folder):
        pass


def test_the_death_of_a_process_unlocks(folder):
    code = f"""
from pathlib import Path
from models.lock import locked
with locked(Path({str(folder)!r})):
    print("locked", flush=True)
    input()
"""
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                             env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])})
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(Stop, match=f"pid {other.pid} "), locked(folder):
        pass
    other.send_signal(signal.SIGKILL)
    other.communicate()
    with locked(folder):
        pass


def test_a_run_is_locked_as_long_as_any_of_its_ranks_is_there(folder, monkeypatch):
    with monkeypatch.context() as patch:
        locks = Ranks(patch).run(lambda rank: entered(locked(folder)))
    for lock in locks:
        with pytest.raises(Stop, match="in use by another process"), locked(folder):
            pass
        lock.__exit__(None, None, None)
    with locked(folder):
        pass


def entered(lock):
    lock.__enter__()
    return lock


def test_without_locks_the_run_says_so_and_goes_on(folder, monkeypatch, capsys):
    def flock(file, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(folder):
        assert f"note: {folder} can't be locked (No locks available): let no other process" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_told(folder):
    (folder / ".lock").mkdir()
    with pytest.raises(Stop, match="can't be written \\(Is a directory\\): see to that"), locked(folder):
        pass
