"""NCCL: the communicators of groups, and the stream of a device's collectives. Floor 3.

Streams wait for each other by events. So a capture of the stream of kernels takes in the collectives that are begun and
waited for meanwhile.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import os
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import cupy
from cupy.cuda import nccl, runtime

from ....dtypes import Dtype
from ....errors import DeviceError, RankError
from ....groups import Group
from ..device.events import on_lost_rank, wait_for
from ..planning.registry import Begin

_communicators: list[Any] = []


class Track:
    """The stream of a device's collectives.

    Tickets are numbered in each program anew: a program is launched as a whole, and begins what it waits for.
    """

    def __init__(self) -> None:
        self.stream = cupy.cuda.Stream(non_blocking=True)
        self._ready = _event()
        self._done: defaultdict[int | None, Any] = defaultdict(_event)

    def follow(self, kernels: int) -> None:
        """Lets the next collective wait for the kernels that were launched on that stream."""
        runtime.eventRecord(self._ready.ptr, kernels)
        runtime.streamWaitEvent(self.stream.ptr, self._ready.ptr)

    def mark(self, ticket: int | None) -> None:
        """Gives the collective that was begun last a ticket."""
        runtime.eventRecord(self._done[ticket].ptr, self.stream.ptr)

    def hold(self, kernels: int, ticket: int | None) -> None:
        """Kernels launched next on that stream find what the collective of a ticket makes."""
        runtime.streamWaitEvent(kernels, self._done[ticket].ptr)

    def finish(self) -> None:
        """Returns when all has run. Raises RankError where a rank is lost."""
        self._ready.record(self.stream)
        wait_for(self._ready)


def prepare(spec: Begin) -> Callable[[int, int, int], None]:
    """run(kernels, source, target): begins a collective. All ranks of the group come here in the same order."""
    device = runtime.getDevice()
    track = _track(device)
    start = _starting(spec, communicator(spec.group, device), track.stream.ptr)

    def run(kernels: int, source: int, target: int) -> None:
        spec.group.begin(spec.operation)
        track.follow(kernels)
        start(source, target)
        track.mark(spec.ticket)

    return run


def prepare_wait(ticket: int | None) -> Callable[[int], None]:
    """run(kernels): lets a stream wait for a collective."""
    track = _track(runtime.getDevice())
    return lambda kernels: track.hold(kernels, ticket)


def _starting(spec: Begin, comm: Any, stream: int) -> Callable[[int, int], None]:
    """start(source, target): NCCL's call."""
    # NCCL's own mean of a single rank has other numbers at its end (2.28.9).
    op = getattr(nccl, _OPERATIONS["sum" if spec.group.size == 1 else spec.op])
    count, dtype, root = spec.elements, _number(spec.dtype), spec.root
    nbytes, is_root = spec.elements * spec.dtype.itemsize, spec.group.rank == root

    def reduce(source: int, target: int) -> None:
        comm.reduce(source, target, count, dtype, op, root, stream)
        if not is_root:
            runtime.memsetAsync(target, 0, nbytes, stream)

    return {
        "all_reduce": lambda x, y: comm.allReduce(x, y, count, dtype, op, stream),
        "reduce": reduce,
        "broadcast": lambda x, y: comm.broadcast(x, y, count, dtype, root, stream),
        "reduce_scatter": lambda x, y: comm.reduceScatter(x, y, count, dtype, op, stream),
        "all_gather": lambda x, y: comm.allGather(x, y, count, dtype, stream),
    }[spec.operation]


_OPERATIONS = {"sum": "NCCL_SUM", "mean": "NCCL_AVG", "max": "NCCL_MAX", "min": "NCCL_MIN"}


def _number(dtype: Dtype) -> int:
    """Returns NCCL's number of a dtype. It has no bool: of 0 and 1 the largest and the smallest are those of bytes."""
    return getattr(nccl, f"NCCL_{'UINT8' if dtype.name == 'bool' else dtype.name.upper()}")


@functools.cache
def _track(device: int) -> Track:
    """Returns the track of the current device."""
    return Track()


@functools.cache
def communicator(group: Group, device: int) -> Any:
    """Returns the communicator that the ranks of a group make together. Raises DeviceError, or RankError."""
    if not nccl.available:
        raise DeviceError("collectives on CUDA go over NCCL: pip install 'tinyarr[nccl13]' (nccl12 for CUDA 12)")
    # While it captures, NCCL would tell the other ranks where buffers are. But each rank captures a program when its
    # own addresses stay the same, which needs not be at the same call.
    os.environ.setdefault("NCCL_GRAPH_REGISTER", "0")
    identity = bytes(group.exchange(list(nccl.get_unique_id()) if group.rank == 0 else None)[0])
    meeting: Future[Any] = Future()

    def meet() -> None:
        try:
            runtime.setDevice(device)
            meeting.set_result(nccl.NcclCommunicator(group.size, identity, group.rank))
        except BaseException as error:
            meeting.set_exception(error)

    number = group.begin("NCCL's start")
    threading.Thread(target=meet, daemon=True).start()  # NCCL would wait for a lost rank for good
    group.wait(meeting.done, number)
    try:
        comm = meeting.result()
    except nccl.NcclError as error:
        raise DeviceError(
            f"NCCL: rank {group.rank} of {group} does not start on cuda:{device} ({error}): give each rank a GPU of "
            "its own; with NCCL_DEBUG=WARN NCCL says more"
        ) from error
    # Never freed, not even when Python ends: NCCL would wait until no CUDA graph holds a collective of it.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(comm))
    if not _communicators:
        atexit.register(_finish)
    _communicators.append(comm)
    return comm


def abort() -> None:
    """Ends all collectives, which would wait for a lost rank for good. None can be begun any more."""
    while _communicators:
        # It returns when there is no CUDA graph with a collective any more; what runs has ended long before.
        threading.Thread(target=_communicators.pop().abort, daemon=True).start()


on_lost_rank.append(abort)


def _finish() -> None:
    """Waits, when Python ends, for collectives that have begun: other ranks may still need them."""
    with contextlib.suppress(RankError):
        if _communicators:
            _track(runtime.getDevice()).finish()


def _event() -> Any:
    return cupy.cuda.Event(disable_timing=True)
