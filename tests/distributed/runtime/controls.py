"""Ranks that are no processes: the controls of a run, in this one."""

import socket
import threading
import time

from tinyarr.distributed.runtime import handshake
from tinyarr.distributed.runtime.control import Control
from tinyarr.distributed.runtime.server import Server

SECRET = "secret"


class Run:
    """A server and the controls of ranks that have joined."""

    def __init__(self, timeout=30.0, size=2, secret=SECRET):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.timeout, self.size, self.secret = timeout, size, secret
        self.server = Server(self.listener, size, timeout, secret)
        self.controls = []

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def joined(self, rank, secret=None, size=None):
        """A rank's connection with the server."""
        given = self.secret if secret is None else secret
        return handshake.join(self.connect(), given, rank, size or self.size, time.monotonic() + 10)

    def join(self, rank, size=None):
        server = self.server if rank == 0 and size is None else None
        control = Control(rank, size or self.size, self.timeout, self.joined(rank, size=size), server)
        self.controls.append(control)
        return control

    def close(self):
        for control in self.controls:
            control._told.set()  # no loss may end this process
            control.close()
        self.listener.close()


def together(*calls):
    """The results of calls, or their errors, each in a thread of its own."""
    results = [None] * len(calls)

    def run(i, call):
        try:
            results[i] = call()
        except Exception as error:
            results[i] = error

    threads = [threading.Thread(target=run, args=(i, call), daemon=True) for i, call in enumerate(calls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def exchanges(*controls):
    """Says that ranks hear one another."""
    everyone, key = range(len(controls)), str(time.monotonic_ns())
    results = together(*(lambda c=c: c.exchange(key, c.rank, everyone) for c in controls))
    return results == [list(everyone)] * len(controls)
