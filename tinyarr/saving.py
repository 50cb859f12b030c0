"""Tensors in files: safetensors, readable by every other framework, written so that a crash can't damage an old file.

Layout: 8 bytes of length, that much JSON (name to dtype, shape and offsets; strings under "__metadata__"), the data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import dtypes, views
from .array import empty
from .device import Device, default_device
from .dtypes import Dtype
from .errors import ArgumentError, FileError
from .tensor import Tensor, require_tensors, result_tensor
from .views import Shape

_DTYPES = {
    "BOOL": dtypes.bool,
    "U8": dtypes.uint8, "U16": dtypes.uint16, "U32": dtypes.uint32, "U64": dtypes.uint64,
    "I8": dtypes.int8, "I16": dtypes.int16, "I32": dtypes.int32, "I64": dtypes.int64,
    "F16": dtypes.float16, "BF16": dtypes.bfloat16, "F32": dtypes.float32, "F64": dtypes.float64,
    "F8_E4M3": dtypes.float8_e4m3fn, "F8_E5M2": dtypes.float8_e5m2,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def save(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Writes tensors and a table of strings to a safetensors file, a tensor at a time.

    The file appears under its name only when it is complete and on disk; until then an older one stays as it was.
    On return the name is on disk too. A process that is killed meanwhile leaves its unfinished file behind, named
    .NAME.PID.
    Raises ArgumentError for metadata that are no strings, OSError where the file can't be written.
    """
    require_tensors("save", **{str(name): t for name, t in tensors.items()})
    path = Path(path)
    header: dict[str, Any] = {}
    if metadata:
        if not _all_strings(metadata):
            raise ArgumentError(f"save: metadata is {metadata}: names and values must be strings, so use json.dumps")
        header["__metadata__"] = metadata
    # Wide elements first, so that every tensor starts aligned.
    ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
    end = 0
    for name, t in ordered:
        begin, end = end, end + t.nbytes
        header[name] = {"dtype": _NAMES[t.dtype], "shape": t.shape, "data_offsets": (begin, end)}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as f:
            f.write(len(encoded).to_bytes(8, "little") + encoded)
            for _, t in ordered:
                f.write(t.numpy().reshape(-1).view(np.uint8))
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _flush_folder(folder: Path) -> None:
    """Waits until the folder's entries are on disk too: a new name is lost in a power failure before that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load(
    path: str | Path, names: Iterable[str] | None = None, *, device: str | Device | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads (tensors, metadata) from a safetensors file, all of them or only those named; one at a time.

    Raises FileError for a file that is damaged or no safetensors file, and for a name that it lacks.
    """
    place = default_device() if device is None else Device(device)
    with open(path, "rb") as f:
        header, metadata, start = _read_header(f)
        data = np.memmap(f, np.uint8, "r", start) if os.path.getsize(f.fileno()) > start else np.empty(0, np.uint8)
    tensors = {}
    for name in header if names is None else names:
        if name not in header:
            raise FileError(f"load: {path} holds no {name!r}; it has {len(header)} tensors, such as {list(header)[:3]}")
        dtype, shape, begin, end = header[name]
        array = empty(place, shape, dtype)
        values = data[begin:end] != 0 if dtype is dtypes.bool else data[begin:end].view(dtype.numpy)
        place.backend.from_numpy(values.reshape(shape), array)
        tensors[name] = result_tensor(array)
    return tensors, metadata


def contents(path: str | Path) -> dict[str, tuple[Dtype, Shape]]:
    """The dtype and shape of each tensor in a safetensors file, without reading the tensors. Errors as of load."""
    with open(path, "rb") as f:
        header, _, _ = _read_header(f)
    return {name: (dtype, shape) for name, (dtype, shape, _, _) in header.items()}


def _all_strings(metadata: dict) -> bool:
    return all(isinstance(x, str) for pair in metadata.items() for x in pair)


def _read_header(f: BinaryIO) -> tuple[dict[str, tuple], dict[str, str], int]:
    """Name to (dtype, shape, begin, end), the metadata, and where the data begin; checked against one another."""
    size = os.path.getsize(f.fileno())
    length = int.from_bytes(f.read(8), "little")
    header: dict[str, tuple] = {}
    end = 0
    try:
        if 8 + length > size:
            raise ValueError(f"its header should have {length} bytes, but the file has {size}")
        entries = json.loads(f.read(length))
        metadata = entries.pop("__metadata__", {})
        if not _all_strings(metadata):
            raise ValueError("its metadata are no strings")
        for name, entry in sorted(entries.items(), key=lambda item: item[1]["data_offsets"]):
            shape, (begin, stop) = tuple(entry["shape"]), entry["data_offsets"]
            if entry["dtype"] not in _DTYPES:
                raise ValueError(f"{name} has the dtype {entry['dtype']}, which tinyarr lacks")
            dtype = _DTYPES[entry["dtype"]]
            sound = all(type(n) is int and n >= 0 for n in (*shape, begin))
            if not sound or begin != end or stop != begin + views.size(shape) * dtype.itemsize:
                raise ValueError(f"{name} can't lie at {begin} to {stop} with shape {shape}, {dtype.name}")
            header[name], end = (dtype, shape, begin, stop), stop
        if 8 + length + end != size:
            raise ValueError(f"{8 + length + end} bytes are described, the file has {size}")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
        reason = f"{type(e).__name__}: {e}" if type(e) is not ValueError else e
        raise FileError(f"load: {f.name} is not a sound safetensors file ({reason}): copy or save it again") from None
    return header, metadata, 8 + length
