"""Signals that end a run after the step that it is in: Ctrl-C, and those of schedulers and terminals. Floor 5."""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import threading
from collections.abc import Iterator

from tinyarr import distributed

# A job is cancelled or near its limit; its terminal has gone; Slurm's --signal. Windows lacks the last two.
OTHERS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """An event that a signal sets, so that a step ends whole; a second Ctrl-C interrupts at once.

    Signals that whoever started the process has ignored stay so, as SIGHUP under nohup.
    """
    received = threading.Event()

    def receive(number: int, _: object) -> None:
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        _leave_lost_terminal()
        received.set()
        if distributed.world().rank == 0:
            with contextlib.suppress(OSError):  # with os.write, as print may be what was interrupted
                os.write(2, b"\nstopping at the next step; Ctrl-C again aborts\n")

    taken = [signal.SIGINT, *(number for number in OTHERS if signal.getsignal(number) != signal.SIG_IGN)]
    before = {number: signal.signal(number, receive) for number in taken}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: a library's, in C


def _leave_lost_terminal() -> None:
    """Lets output go nowhere where it would go to a terminal that has hung up: to write there raises an error."""
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(descriptor).st_mode) and not os.isatty(descriptor):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
