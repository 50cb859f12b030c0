"""Number of threads that C code runs on. Floor 2."""

from __future__ import annotations

import os

from ...forking import in_children

_started = False  # whether OpenMP has threads
_lost = False  # whether they were left behind in a parent


def thread_count() -> int:
    """Threads of a program: $OMP_NUM_THREADS, else the cores that this process may use."""
    chosen = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if chosen.isdigit() and int(chosen):
        return int(chosen)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def team(threads: int) -> int:
    """Returns the number of threads of a program: one in a forked child of a process that has run some.

    GNU's OpenMP keeps its threads between programs and would wait in the child for those of its parent, for ever. The
    number of threads changes no bit.
    """
    global _started
    if _lost:
        return 1
    _started = _started or threads > 1
    return threads


@in_children
def _lose() -> None:
    global _lost
    _lost = _lost or _started
