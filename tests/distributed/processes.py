"""Ranks as real processes, each running a piece of Python, and how their end is watched."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]

# What a rank knows: its control, and a collective that ends when every rank has begun it, which is said through files.
MEETING = """
import os, signal, sys, time
from pathlib import Path
from tinyarr.distributed.runtime import environment, rendezvous
place = environment.find()
control = rendezvous.meet(place, float(os.environ["TEST_TIMEOUT"]))
everyone = "0,1"
number = 0

def collective(operation="all_reduce"):
    global number
    number += 1
    control.begin(everyone, number, operation)
    mark = f"{os.environ['TEST_FOLDER']}/{number}."
    Path(mark + str(place.rank)).touch()
    control.wait(lambda: all(os.path.exists(mark + str(r)) for r in range(2)), everyone, number, range(2))

def say(text):
    print(text, flush=True)
"""


class Rank:
    """A process whose output is read when it has ended. It knows a secret, unless `variables` has another or none."""

    def __init__(self, code, variables, before=()):
        command = [*before, *([] if code is None else [sys.executable, "-c", code])]
        environment = clean() | {"PYTHONPATH": str(ROOT), "TINYARR_SECRET": "secret"} | variables
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes)

    def end(self, limit=60):
        """Exit status, standard output and standard error."""
        try:
            out, err = self.process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        return self.process.returncode, out, err


def clean():
    """The variables of this process without those of any launcher."""
    theirs = ("TINYARR_", "RANK", "WORLD_", "LOCAL_", "MASTER_", "PMI", "MPI_", "OMPI_", "SLURM_", "OMP_", "OPENBLAS_")
    return {name: value for name, value in os.environ.items() if not name.startswith(theirs)}


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def start(folder, *codes, timeout=30.0):
    """A rank for each code, which runs after all have met."""
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(len(codes))}
    test = {"TEST_TIMEOUT": str(timeout), "TEST_FOLDER": str(folder)}
    return [
        Rank(MEETING + textwrap.dedent(code), {**address, **test, "RANK": str(i), "LOCAL_RANK": str(i)})
        for i, code in enumerate(codes)
    ]


def seconds(function):
    """How long a call takes, and its result."""
    begin = time.monotonic()
    result = function()
    return time.monotonic() - begin, result


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, limit=20.0):
    """Waits until something is so, and returns it."""
    end = time.monotonic() + limit
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return found
