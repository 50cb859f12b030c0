"""Tensors on their way from the host to a GPU: on a stream of their own, while kernels run. Floor 3.

So a batch that is made before a step is launched arrives during that step; the next one, which reads it, waits for it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import cupy

from ....array import Array


class Uploads:
    """Uploads that have begun and that the stream of kernels has not yet waited for."""

    def __init__(self, kernels: Any):
        self._kernels = kernels
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._lock = threading.Lock()
        self._coming: list[tuple[Array, Any]] = []  # the array, whose memory stays taken, and the event of its arrival

    def begin(self) -> Any:
        """The stream for a copy into memory that kernels launched so far may still use."""
        event = cupy.cuda.Event(disable_timing=True)
        event.record(self._kernels)
        self._stream.wait_event(event)
        return self._stream

    def add(self, array: Array, arrived: Any) -> None:
        with self._lock:
            self._coming = [(x, event) for x, event in self._coming if not event.done] + [(array, arrived)]

    def wait_for(self, arrays: Sequence[Array] | None) -> None:
        """Lets kernels launched from now on find all that is coming, or what is in the memory of these arrays."""
        if not self._coming:
            return
        wanted = None if arrays is None else {x.storage for x in arrays}
        with self._lock:
            coming, self._coming = self._coming, []
            for array, arrived in coming:
                if wanted is None or array.storage in wanted:
                    self._kernels.wait_event(arrived)
                elif not arrived.done:
                    self._coming.append((array, arrived))
