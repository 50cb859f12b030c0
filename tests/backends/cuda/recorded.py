"""Stand-ins for CuPy, NCCL and the other ranks, which write down what they are asked to do."""

import importlib.util
import sys
import time
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

from tinyarr import groups
from tinyarr.backends.cuda import libraries
from tinyarr.backends.cuda.device import events
from tinyarr.groups import Group

KERNELS = 1  # the stream of kernels
NAMES = ("UINT8", "INT8", "INT32", "UINT32", "INT64", "UINT64", "FLOAT16", "BFLOAT16", "FLOAT32", "FLOAT64",
         "SUM", "AVG", "MAX", "MIN")  # fmt: skip


class Entry(NamedTuple):
    """kind: 'kernel', 'nccl', 'memset', 'record' or 'wait', of what is on a stream."""

    kind: str
    stream: int
    what: Any


class Control:
    """What rank 0 gives in an exchange all ranks give; it comes first. Notes what begins."""

    def __init__(self, values: dict):
        self.values, self.begun = values, []

    def exchange(self, key, value, ranks, begun=None):
        return [self.values.setdefault(key, value)] * len(ranks)

    def begin(self, group, number, operation):
        self.begun.append((group, number, operation))

    def wait(self, done, group, number, ranks):
        while not done():
            time.sleep(0)


def group_of(size: int, rank: int, values: dict | None = None) -> Group:
    return Group(tuple(range(size)), rank, Control({} if values is None else values), {})


class Machine:
    """One rank's GPU. log: what its streams were given, in order."""

    def __init__(self, monkeypatch):
        self.log: list[Entry] = []
        self.communicators: list[Any] = []
        self.handles = KERNELS
        log, machine = self.log, self

        class Handle:
            done = True

            def __init__(self, **_):
                machine.handles += 1
                self.ptr = machine.handles

        class NcclCommunicator:
            def __init__(self, size, identity, rank):
                assert len(identity) == 128
                self.made_of, self.aborted = (size, identity, rank), False
                machine.communicators.append(self)

            def abort(self):
                self.aborted = True

            def __getattr__(self, name):
                return lambda *arguments: log.append(Entry("nccl", arguments[-1], (name, *arguments[:-1])))

        runtime = SimpleNamespace(
            getDevice=lambda: 0,
            setDevice=lambda device: None,
            eventRecord=lambda event, stream: log.append(Entry("record", stream, event)),
            streamWaitEvent=lambda stream, event: log.append(Entry("wait", stream, event)),
            memsetAsync=lambda to, byte, nbytes, stream: log.append(Entry("memset", stream, (to, byte, nbytes))),
        )
        nccl = SimpleNamespace(
            available=True, get_unique_id=lambda: bytes(range(128)), NcclCommunicator=NcclCommunicator,
            NcclError=RuntimeError, **{f"NCCL_{name}": name for name in NAMES},
        )  # fmt: skip
        cupy, inner = ModuleType("cupy"), ModuleType("cupy.cuda")
        vars(inner).update(Stream=Handle, Event=Handle, runtime=runtime, nccl=nccl)
        cupy.cuda = inner
        monkeypatch.setitem(sys.modules, "cupy", cupy)
        monkeypatch.setitem(sys.modules, "cupy.cuda", inner)
        monkeypatch.setattr(groups, "_last_begun", None)
        monkeypatch.setattr(events, "on_lost_rank", [])
        name = "tinyarr.backends.cuda.libraries.nccl"
        spec = importlib.util.find_spec(name)
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        self.module.atexit = SimpleNamespace(register=lambda function: None)
        monkeypatch.setitem(sys.modules, name, self.module)
        monkeypatch.setattr(libraries, "nccl", self.module, raising=False)


def clocks(log: list[Entry]) -> list[dict[int, int]]:
    """For each entry how many of each stream's are over before it runs, itself among them."""
    ends: dict[int, dict[int, int]] = {}
    events: dict[int, dict[int, int]] = {}
    found = []
    for entry in log:
        clock = dict(ends.get(entry.stream, {}))
        if entry.kind == "wait":
            for stream, count in events[entry.what].items():
                clock[stream] = max(clock.get(stream, 0), count)
        clock[entry.stream] = clock.get(entry.stream, 0) + 1
        if entry.kind == "record":
            events[entry.what] = clock
        ends[entry.stream] = clock
        found.append(clock)
    return found
