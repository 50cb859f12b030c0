"""Namespace information as the Array API standard (2024.12) asks for it. Floor 5."""

from __future__ import annotations

from . import dtypes
from .device import Device, default_device
from .dtypes import ALL, Dtype, isdtype

VERSION = "2024.12"
STANDARD = tuple(d for d in ALL if d.name not in ("float16", "bfloat16") and d not in dtypes.FLOAT8)


class NamespaceInfo:
    """Result of `__array_namespace_info__()`: devices, dtypes and capabilities."""

    def capabilities(self) -> dict[str, bool | int | None]:
        """Masks and data-dependent shapes are allowed outside compiled functions; dimensions are not limited."""
        return {"boolean indexing": True, "data-dependent shapes": True, "max dimensions": None}

    def default_device(self) -> Device:
        """The device on which creation functions allocate."""
        return default_device()

    def default_dtypes(self, *, device: Device | None = None) -> dict[str, Dtype]:
        """The dtypes of Python's floats and ints, and of positions."""
        return {"real floating": dtypes.float32, "integral": dtypes.int64, "indexing": dtypes.int64}

    def dtypes(self, *, device: Device | None = None, kind: str | tuple[str, ...] | None = None) -> dict[str, Dtype]:
        """The standard's dtypes, of the kinds asked for."""
        return {d.name: d for d in STANDARD if kind is None or isdtype(d, kind)}

    def devices(self) -> list[Device]:
        """Returns the devices on which tensors can be made."""
        return [Device("cpu")]


def __array_namespace_info__() -> NamespaceInfo:
    """See NamespaceInfo."""
    return NamespaceInfo()
