"""Device: where a tensor's memory lies and its kernels run.

`cpu` runs NumPy (and, compiled, C). `cuda:0` is an NVIDIA GPU. `meta` has shapes and dtypes but no memory: programs
are planned on it as if on another device, `Device("meta", like="cuda:sm_90")`.
"""

from __future__ import annotations

import contextlib
import re
from contextvars import ContextVar
from typing import Any

from .errors import DeviceError

_known: dict[tuple, Device] = {}


class Device:
    """`Device("cpu")`, `Device("cuda")` (= `cuda:0`), `Device("cuda:1")`, `Device("meta", like="cpu")`.

    There is exactly one object a device, so `is` compares them. Raises DeviceError for any other name.
    """

    __slots__ = ("_backend", "index", "kind", "like")

    kind: str
    index: int
    like: str | None
    _backend: Any

    def __new__(cls, name: str | Device = "cpu", *, like: str | None = None) -> Device:
        if isinstance(name, Device):
            return name
        match = re.fullmatch(r"(cpu|meta)|(cuda)(?::(\d+))?", name) if isinstance(name, str) else None
        if match is None:
            raise DeviceError(f"Device: {name!r} is not a device: use 'cpu', 'cuda', 'cuda:N' or 'meta'")
        kind = match[1] or match[2]
        if like is not None and kind != "meta":
            raise DeviceError(f"Device: like={like!r} came with {name!r}: only 'meta' stands in for another device")
        key = (kind, int(match[3] or 0), like)
        if key not in _known:
            self = _known[key] = super().__new__(cls)
            self.kind, self.index, self.like = key
            self._backend = None
        return _known[key]

    @property
    def backend(self):
        """What allocates and runs kernels on this device. Raises DeviceError where it can't be had."""
        if self._backend is None:
            self._backend = _make_backend(self)
        return self._backend

    def __repr__(self) -> str:
        return str(self) if self.like is None else f"meta (like {self.like})"

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if self.kind == "cuda" else self.kind

    def __reduce__(self):
        return _restore, (str(self), self.like)


def _make_backend(device: Device):
    # Imported here, so that a program on one device never loads another's backend.
    if device.kind == "cpu":
        from .backends.cpu import CpuBackend

        return CpuBackend(device)
    if device.kind == "meta":
        from .backends.meta import MetaBackend

        return MetaBackend(device)
    from . import cuda

    cuda.require(device.index)
    from .backends.cuda.backend import CudaBackend

    return CudaBackend(device)


def _restore(name: str, like: str | None) -> Device:
    return Device(name, like=like)


_cpu = Device("cpu")
_default: ContextVar[Device] = ContextVar("default_device", default=_cpu)


def default_device() -> Device:
    """The device on which creation functions allocate when they are given none."""
    return _default.get()


@contextlib.contextmanager
def use_device(device: str | Device):
    """Makes `device` the default inside a `with` block, for this thread or task only."""
    token = _default.set(Device(device))
    try:
        yield Device(device)
    finally:
        _default.reset(token)


def memory_stats(device: str | Device = "cpu"):
    """The device's memory as this process uses it: `in_use`, `peak` and `pooled`, in bytes."""
    return Device(device).backend.memory_stats()
