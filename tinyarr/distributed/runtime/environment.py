"""Environment variables by which the launcher tells a process its rank, and where the ranks meet. Floor 4.

Launchers are asked from the inside out: mpiexec may run within a step of Slurm, and torchrun within either, so the
variables of an outer one are still there and speak of other processes.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from typing import NamedTuple

from ...errors import ArgumentError


class RankPlace(NamedTuple):
    """Rank of this process, and where it meets the others.

    how: "mpi", "tcp" (address is host:port), "folder" (address is its path), or "none" where it is alone.
    local_rank: which of the ranks on this machine it is. local_size: how many those are, None where it isn't told.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int | None
    how: str
    address: str


class _Launcher(NamedTuple):
    """The names of a launcher's variables."""

    name: str
    how: str
    rank: str
    size: str
    local_rank: str
    local_size: str


_TORCHRUN = _Launcher("torchrun", "tcp", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_MPICH = _Launcher("MPICH's mpiexec", "mpi", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS")
_OPEN_MPI = _Launcher(
    "Open MPI's mpiexec",
    "mpi",
    *[f"OMPI_COMM_WORLD_{name}" for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")],
)
_SLURM = _Launcher("srun", "tcp", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")

_LONGEST = 1e9  # seconds; what waits for much longer no clock of the system takes
_MOST_RANKS = 1 << 20
_DIGITS = 20  # of a number that no launcher sets, and at thousands of which Python gives up
_PORTS = range(10_000, 30_000)  # below those that systems hand out themselves


def find(variables: Mapping[str, str] = os.environ) -> RankPlace:
    """The place of this process. Raises ArgumentError where variables are missing, unreadable, or contradict others."""
    launcher = _launcher(variables)
    chosen = variables.get("TINYARR_RENDEZVOUS")
    if launcher is None:
        if chosen is not None:
            raise ArgumentError(
                f"init: TINYARR_RENDEZVOUS is {chosen!r}, but no variable says which rank this process is: start it "
                "with `python -m tinyarr launch` or mpiexec, or set RANK, WORLD_SIZE and LOCAL_RANK"
            )
        return RankPlace(0, 1, 0, 1, "none", "")
    size = _number(variables, launcher.size, 1, _MOST_RANKS + 1)
    rank = _number(variables, launcher.rank, 0, size)
    local = launcher.local_rank
    if launcher is _MPICH and local not in variables and variables.get(_SLURM.rank) == variables[launcher.rank]:
        local = _SLURM.local_rank  # srun starts MPICH's programs too, and leaves this variable out
    local_rank = _number(variables, local, 0, size)
    told = None
    if launcher is _SLURM:  # 4(x2): four on each of two; 4,2(x2) has not as many on each
        tasks = re.fullmatch(r"([0-9]{1,7})(\(x[0-9]+\))?", variables.get(launcher.local_size, ""))
        told = int(tasks[1]) if tasks else None
    elif launcher.local_size in variables:
        told = _number(variables, launcher.local_size, 1, size + 1)
    how, address = (launcher.how, "") if chosen is None else _chosen(chosen)
    if size == 1:
        how, address = "none", ""
    elif how == "tcp" and not address:
        address = _slurm_address(variables) if launcher is _SLURM else _torchrun_address(variables)
    return RankPlace(rank, size, local_rank, told, how, address)


def timeout(default: float, variables: Mapping[str, str] = os.environ, *, given: float | None = None) -> float:
    """Seconds that ranks wait for one another: what init is given, else what the user has set, else the default."""
    name, value = ("timeout", given) if given is not None else ("TINYARR_TIMEOUT", variables.get("TINYARR_TIMEOUT"))
    if value is None:
        return default
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = 0.0
    if not 0.0 < seconds <= _LONGEST:
        raise ArgumentError(
            f"init: {name} is {value!r}: it must be a number of seconds above 0 and at most {_LONGEST:g}"
        )
    return seconds


def secret(variables: Mapping[str, str] = os.environ) -> str:
    """Returns the secret of a run that meets over TCP; empty where nobody has set one."""
    return variables.get("TINYARR_SECRET", "")


def _launcher(variables: Mapping[str, str]) -> _Launcher | None:
    """Returns the launcher that started this process."""
    inner = (_TORCHRUN, _MPICH, _OPEN_MPI)
    present = [x for x in inner if any(name in variables for name in (x.rank, x.size, x.local_rank))]
    for one, other in itertools.combinations(present, 2):
        for a, b in ((one.rank, other.rank), (one.size, other.size)):
            if variables.get(a) != variables.get(b):
                raise ArgumentError(
                    f"init: {a} is {variables.get(a)!r}, but {b} is {variables.get(b)!r}: unset those of {one.name} "
                    f"or of {other.name}, whichever did not start this process"
                )
    if present:
        return present[0]
    # Slurm sets the other variables in a batch script too, which is a single process.
    return _SLURM if _SLURM.size in variables else None


def _number(variables: Mapping[str, str], name: str, least: int, end: int | None) -> int:
    text = variables.get(name)
    if text is None:
        raise ArgumentError(f"init: {name} is not set, though others of its kind are: set it, or unset the others")
    number = int(text) if text.isascii() and text.isdecimal() and len(text) < _DIGITS else -1
    if number < least or (end is not None and number >= end):
        expected = f"at least {least}" if end is None else f"from {least} to {end - 1}"
        raise ArgumentError(f"init: {name} is {text!r}: it must be a number {expected}")
    return number


def _chosen(text: str) -> tuple[str, str]:
    """Returns how and where ranks meet, by TINYARR_RENDEZVOUS."""
    if text == "mpi":
        return "mpi", ""
    if text.startswith("folder:") and text != "folder:":
        return "folder", text.removeprefix("folder:")
    address = re.fullmatch(r"tcp://(\[[0-9A-Fa-f:.]+\]|[^\s:/?#@[\]]+):([0-9]{1,5})", text)
    if address and 0 < int(address[2]) < 65_536:
        return "tcp", f"{address[1].strip('[]')}:{address[2]}"
    raise ArgumentError(f"init: TINYARR_RENDEZVOUS is {text!r}: give mpi, tcp://host:port, or folder:/path")


def _torchrun_address(variables: Mapping[str, str]) -> str:
    host = variables.get("MASTER_ADDR")
    if not host:
        raise ArgumentError(f"init: {_TORCHRUN.size} is set, MASTER_ADDR is not: set it to the host of rank 0")
    port = _number(variables, "MASTER_PORT", 1, 65_536)
    if variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun itself listens there
        port = _PORTS[port % len(_PORTS)]
    return f"{host}:{port}"


def _slurm_address(variables: Mapping[str, str]) -> str:
    """Task 0 runs on the first host of a step; other jobs and steps on that host meet at other ports."""
    host = first_host(variables.get("SLURM_STEP_NODELIST", ""))
    if not host:
        raise ArgumentError(f"init: {_SLURM.size} is set, SLURM_STEP_NODELIST names no host: set TINYARR_RENDEZVOUS")
    job = _number(variables, "SLURM_JOB_ID", 0, None)
    step = _number(variables, "SLURM_STEP_ID", 0, None)
    return f"{host}:{_PORTS[(job * 100 + step) % len(_PORTS)]}"


def first_host(hosts: str) -> str:
    """The first of Slurm's list of hosts.

    >>> from tinyarr.distributed.runtime.environment import first_host
    >>> first_host("rack[2-3]-node[01-03,7],login")
    'rack2-node01'
    """
    first = re.match(r"(\[[^]]*\]|[^,[])*", hosts)
    assert first is not None  # it matches the empty text
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first[0])
