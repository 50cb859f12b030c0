"""How many threads C code runs on."""

from __future__ import annotations

import os


def thread_count() -> int:
    """Threads of a program: $OMP_NUM_THREADS, else the cores that this process may use."""
    chosen = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if chosen.isdigit() and int(chosen):
        return int(chosen)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
