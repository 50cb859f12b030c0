"""CUDA on this machine: its devices, the pieces that are missing, streams' events. Floor 3."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from typing import Any

from .device import Device
from .errors import DeviceError

INSTALL = "pip install 'tinyarr[cuda13]' (cuda12 for CUDA 12)"


@functools.cache
def missing() -> str | None:
    """One line that says why no CUDA device can be used, or None where one can."""
    if importlib.util.find_spec("cupy") is None:
        return f"CuPy is not installed: {INSTALL}"
    try:
        from cupy.cuda import runtime
    except ImportError as error:
        return f"CuPy does not load ({error}): {INSTALL}"
    try:
        driver, built_for = runtime.driverGetVersion(), runtime.runtimeGetVersion()
    except Exception as error:
        return f"no NVIDIA driver answers ({error}): install one, or use the device 'cpu'"
    if driver == 0:
        return "there is no NVIDIA driver: install one, or use the device 'cpu'"
    if driver // 1000 < built_for // 1000:
        versions = f"the driver is for CUDA {_version(driver)}, CuPy for CUDA {_version(built_for)}"
        return f"{versions}: update the driver, or {INSTALL}"
    try:
        count = runtime.getDeviceCount()
    except runtime.CUDARuntimeError as error:
        return f"no GPU can be used ({error}): use the device 'cpu'"
    return None if count else "there is no NVIDIA GPU: use the device 'cpu'"


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def require(index: int = 0) -> None:
    """Raises DeviceError, in one line, where the device `cuda:index` can't be used."""
    reason = missing()
    if reason is not None:
        raise DeviceError(f"cuda:{index}: {reason}")
    from cupy.cuda import runtime

    count = runtime.getDeviceCount()
    if index >= count:
        raise DeviceError(f"cuda:{index}: there are {count} GPUs: use 'cuda:0' to 'cuda:{count - 1}'")


def is_available() -> bool:
    """Returns whether there is a GPU that tinyarr can use."""
    return missing() is None


def get_device_name(device: str | Device = "cuda") -> str:
    """Returns NVIDIA's name of the card, as in 'NVIDIA H100 80GB HBM3'. Raises DeviceError where there is none."""
    index = Device(device).index
    require(index)
    from cupy.cuda import runtime

    return runtime.getDeviceProperties(index)["name"].decode()


LIBRARIES = {  # the module that calls it, the package that binds it, and what is done without
    "cuBLASLt": ("cublaslt", "nvmath-python", "matrix products run on tinyarr's own kernel, several times slower"),
    "cuDNN": ("cudnn", "nvidia-cudnn-frontend", "attention runs on tinyarr's own kernel, or composed of others"),
}


def libraries() -> dict[str, str]:
    """The libraries that speed CUDA up: 'found', or what is missing and which slower path is taken."""
    return {name: _state(name) for name in LIBRARIES}


@functools.cache
def _state(library: str) -> str:
    name, package, instead = LIBRARIES[library]
    module = importlib.import_module(f".backends.cuda.libraries.{name}", __package__)
    if module.is_available():
        return "found"
    if importlib.util.find_spec(module.MODULE) is None:
        return f"{package} is not installed: {instead}"
    return f"{package} is installed, but finds no {library} or no GPU: {instead}"


@functools.cache
def warn_if_missing(library: str) -> None:
    """Warns, once, that a slower path is taken because a library is missing."""
    if _state(library) != "found":
        warnings.warn(f"tinyarr.cuda: {_state(library)}", RuntimeWarning, stacklevel=2)


def synchronize(device: str | Device = "cuda") -> None:
    """Waits until everything launched on the device has run. Raises OutOfBounds for a bad index that a kernel met."""
    Device(device).backend.synchronize()


class Event:
    """A point in a device's stream of work.

    >>> start, end = Event(), Event()                        # doctest: +SKIP
    >>> start.record(); y = x @ x; end.record()              # doctest: +SKIP
    >>> start.elapsed_time(end)                              # doctest: +SKIP
    """

    def __init__(self, device: str | Device = "cuda"):
        import cupy

        self._backend = Device(device).backend
        self._event: Any = cupy.cuda.Event()

    def record(self) -> None:
        """Marks the point that the work launched so far will reach."""
        self._event.record(self._backend.stream)

    def synchronize(self) -> None:
        """Waits until the point is reached."""
        from .backends.cuda.device.events import wait_for

        wait_for(self._event)

    def elapsed_time(self, end: Event) -> float:
        """Milliseconds from this point to `end`, which is waited for."""
        import cupy

        end.synchronize()
        return cupy.cuda.get_elapsed_time(self._event, end._event)
