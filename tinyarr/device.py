"""Device: where a tensor's memory is and its kernels run. Floor 1.

`cpu` runs NumPy (and, compiled, C). `cuda:0` is an NVIDIA GPU. `meta` has shapes and dtypes but no memory: programs
are planned on it as if on another device, `Device("meta", like="cuda:sm_90")`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

from .errors import DeviceError


class DeviceKind(NamedTuple):
    """Kind of devices, and how they are made; see `register`."""

    make: Callable[[Device], Any]
    numbered: bool
    planner: Callable[[str], Any] | None


_kinds: dict[str, DeviceKind] = {}
_known: dict[tuple, Device] = {}


def register(
    kind: str,
    make: Callable[[Device], Any],
    *,
    numbered: bool = False,
    planner: Callable[[str], Any] | None = None,
) -> None:
    """Makes `kind` the name of a device: `make(device)` returns its backend when that is first needed.

    A second registration of a kind takes the place of the first, for devices that are there too. Raises DeviceError
    for a kind that is no name without a colon.

    numbered: there may be several, `kind:0` (which `kind` means too), `kind:1`, ...
    planner(like): returns what plans programs for a device that needn't be there, `Device("meta", like=like)`: an
    object with a backend's `stops`, `kernel`, `holds`, `out_layouts` and `scratch`. None: meta can't stand in.

    >>> from tinyarr.device import register
    >>> register("toy", lambda device: ToyBackend(device))   # doctest: +SKIP
    >>> Tensor([1.0], device="toy")                          # doctest: +SKIP
    """
    if not isinstance(kind, str) or not kind or ":" in kind:
        raise DeviceError(f"register: kind is {kind!r}: give a name without a colon")
    _kinds[kind] = DeviceKind(make, numbered, planner)
    for device in _known.values():
        if device.kind == kind:
            device._backend = None


def planner(like: str) -> Any:
    """Returns what plans programs for the device that `like` names, as "cpu" or "cuda:sm_90".

    Raises DeviceError where no kind of device is called so, or none of that kind can be stood in for.
    """
    kind = _kinds.get(like.partition(":")[0])
    if kind is None or kind.planner is None:
        can = " or ".join(repr(name) for name, kind in _kinds.items() if kind.planner is not None)
        raise DeviceError(f"Device: like={like!r} came: 'meta' can stand in for {can}")
    return kind.planner(like)


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
        match = re.fullmatch(r"([^:]+)(?::(\d+))?", name) if isinstance(name, str) else None
        if match is None or match[1] not in _kinds or (match[2] and not _kinds[match[1]].numbered):
            numbered = [f"{kind}:N" for kind in _kinds if _kinds[kind].numbered]
            *names, last = map(repr, sorted([*_kinds, *numbered]))
            raise DeviceError(f"Device: {name!r} is not a device: use {', '.join(names)} or {last}")
        kind = match[1]
        if like is not None and kind != "meta":
            raise DeviceError(f"Device: like={like!r} came with {name!r}: only 'meta' stands in for another device")
        key = (kind, int(match[2] or 0), like)
        if key not in _known:
            self = _known[key] = super().__new__(cls)
            self.kind, self.index, self.like = key
            self._backend = None
        return _known[key]

    @property
    def backend(self):
        """Backend that allocates and runs kernels on this device. Raises DeviceError where it can't be had."""
        if self._backend is None:
            self._backend = _kinds[self.kind].make(self)
        return self._backend

    def __repr__(self) -> str:
        return str(self) if self.like is None else f"meta (like {self.like})"

    def __str__(self) -> str:
        return f"{self.kind}:{self.index}" if _kinds[self.kind].numbered else self.kind

    def __reduce__(self):
        return _restore, (str(self), self.like)


def _restore(name: str, like: str | None) -> Device:
    return Device(name, like=like)


_default: ContextVar[Device | None] = ContextVar("default_device", default=None)


def default_device() -> Device:
    """The device on which creation functions allocate when they are given none."""
    return _default.get() or _known.get(("cpu", 0, None)) or Device("cpu")  # by name it takes 1 µs


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
